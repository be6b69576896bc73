// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Conversion} from "./Conversion.sol";
import {IBCT} from "./interfaces/IBCT.sol";
import {IDataCredits} from "./interfaces/IDataCredits.sol";
import {IPriceOracle} from "./interfaces/IPriceOracle.sol";

/// @title See IDataCredits.
contract DataCredits is ERC20, IDataCredits {
    struct Exit {
        uint256 requested;
        uint128 paid;
        uint64 settledAtRequest;
    }

    bytes32 public constant EXIT_TAG = keccak256("fabric.exit.v1");
    uint256 public constant STALLED_AFTER = 30 days;

    IBCT public immutable bct;
    IPriceOracle public immutable oracle;
    /// @inheritdoc IDataCredits
    address public immutable settlement;

    /// @inheritdoc IDataCredits
    uint256 public bctBurned;
    uint128 public burnedTotal;
    uint128 public exitedTotal;
    uint128 public depositedTotal;
    uint128 public exitsPaidTotal;

    bytes32 public exitRoot;
    /// @notice How many epochs have been settled, and when the last one was (at first: the deployment).
    uint64 public settledCount;
    uint64 public settledAt;
    mapping(address => Exit) public exits;

    constructor(IBCT bct_, IPriceOracle oracle_, address settlement_) ERC20("Data Credits", "DC") {
        bct = bct_;
        oracle = oracle_;
        settlement = settlement_;
        settledAt = uint64(block.timestamp);
    }

    /// @inheritdoc IDataCredits
    function mint(uint256 bctAmount, uint256 minDc) external returns (uint256 dc) {
        bct.burnFrom(msg.sender, bctAmount);
        bctBurned += bctAmount;
        (uint256 spot, uint256 average) = oracle.read(block.timestamp);
        uint256 price = Math.min(spot, average);
        dc = Conversion.dcForBctDown(bctAmount, price);
        if (dc == 0 || dc < minDc) revert TooFewCredits(dc, minDc);
        _mint(msg.sender, dc);
        emit Minted(msg.sender, bctAmount, dc, price);
    }

    /// @inheritdoc IDataCredits
    function deposit(uint256 dc) external {
        if (dc == 0) revert ZeroAmount();
        _transfer(msg.sender, address(this), dc);
        depositedTotal += uint128(dc);
        emit Deposited(msg.sender, dc, depositedTotal);
    }

    /// @inheritdoc IDataCredits
    function requestExit(uint256 dc) external {
        if (dc == 0) revert ZeroAmount();
        Exit storage e = exits[msg.sender];
        e.requested += dc;
        e.settledAtRequest = settledCount;
        emit ExitRequested(msg.sender, dc, e.requested);
    }

    /// @inheritdoc IDataCredits
    function claimExit(address account, uint256 cumulativeDc, bytes32[] calldata proof) external {
        Exit storage e = exits[account];
        if (cumulativeDc > e.requested) revert NotRequested(cumulativeDc, e.requested);
        if (e.settledAtRequest == settledCount && block.timestamp < settledAt + STALLED_AFTER) revert ExitNotDue();
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(EXIT_TAG, account, cumulativeDc))));
        if (!MerkleProof.verifyCalldata(proof, exitRoot, leaf)) revert WrongProof();
        if (cumulativeDc <= e.paid) revert NothingToPay();
        uint256 dc = cumulativeDc - e.paid;
        if (exitsPaidTotal + dc > exitedTotal) revert AboveExited(exitsPaidTotal + dc, exitedTotal);
        e.paid = uint128(cumulativeDc);
        exitsPaidTotal += uint128(dc);
        _transfer(address(this), account, dc);
        emit ExitPaid(account, dc, cumulativeDc);
    }

    /// @inheritdoc IDataCredits
    function settle(uint256 epoch, uint128 burnedDc, uint128 exitedTotal_, bytes32 exitRoot_) external {
        if (msg.sender != settlement) revert NotSettlement(msg.sender);
        if (!covers(burnedDc, exitedTotal_)) revert NotCovered(burnedDc, exitedTotal_);
        burnedTotal += burnedDc;
        exitedTotal = exitedTotal_;
        exitRoot = exitRoot_;
        settledCount += 1;
        settledAt = uint64(block.timestamp);
        _burn(address(this), burnedDc);
        emit Settled(epoch, burnedDc, exitedTotal_, exitRoot_);
    }

    /// @inheritdoc IDataCredits
    function covers(uint256 burnedDc, uint256 exitedTotal_) public view returns (bool) {
        if (exitedTotal_ < exitedTotal || exitedTotal_ > depositedTotal - burnedTotal) return false;
        return burnedDc <= depositedTotal - burnedTotal - exitedTotal_;
    }

    /// @notice DC are whole.
    function decimals() public pure override returns (uint8) {
        return 0;
    }

    /// @dev No transfers by anybody's hand; deposits and exits are the only moves.
    function transfer(address, uint256) public pure override returns (bool) {
        revert NotTransferable();
    }

    function transferFrom(address, address, uint256) public pure override returns (bool) {
        revert NotTransferable();
    }

    function approve(address, uint256) public pure override returns (bool) {
        revert NotTransferable();
    }
}
