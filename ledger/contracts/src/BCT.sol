// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {IBCT} from "./interfaces/IBCT.sol";

/// @title See IBCT.
contract BCT is ERC20, ERC20Burnable, ERC20Permit, IBCT {
    /// @inheritdoc IBCT
    address public immutable minter;

    /// @param genesisHolder receives the genesis allocation.
    /// @param genesis in wei; 0 is allowed.
    /// @param minter_ the address Settlement will be created at; Settlement checks it in its constructor.
    constructor(address genesisHolder, uint256 genesis, address minter_)
        ERC20("Berkeley Compute Token", "BCT")
        ERC20Permit("Berkeley Compute Token")
    {
        minter = minter_;
        _mint(genesisHolder, genesis);
    }

    /// @inheritdoc IBCT
    function mint(address to, uint256 amount) external {
        if (msg.sender != minter) revert NotMinter(msg.sender);
        _mint(to, amount);
    }

    /// @inheritdoc IBCT
    function burnFrom(address from, uint256 amount) public override(ERC20Burnable, IBCT) {
        super.burnFrom(from, amount);
    }
}
