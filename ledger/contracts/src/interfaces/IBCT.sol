// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @title Berkeley Compute Token
/// @notice ERC-20 with permit, 18 decimals. The genesis allocation is minted in the constructor; from then on only
/// Settlement mints, for finalised epochs, so that supply <= genesis + S(e) at every moment.
interface IBCT is IERC20 {
    /// @notice Somebody other than the minter asked for new tokens.
    error NotMinter(address caller);

    /// @notice The only account that may mint: Settlement, fixed at deployment.
    function minter() external view returns (address);

    /// @notice Mints `amount` wei to `to`. Only the minter.
    function mint(address to, uint256 amount) external;

    /// @notice Burns `amount` wei of `from` out of the caller's allowance.
    function burnFrom(address from, uint256 amount) external;
}
