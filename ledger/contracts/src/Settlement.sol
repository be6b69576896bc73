// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Checkpoints} from "@openzeppelin/contracts/utils/structs/Checkpoints.sol";
import {BCT} from "./BCT.sol";
import {Conversion} from "./Conversion.sol";
import {DataCredits} from "./DataCredits.sol";
import {IPriceOracle} from "./interfaces/IPriceOracle.sol";
import {ISettlement} from "./interfaces/ISettlement.sol";

/// @title See ISettlement.
/// @dev Transfers' return values are not looked at: BCT is OpenZeppelin's ERC20, which reverts instead of returning false.
contract Settlement is ISettlement, Ownable2Step {
    using Checkpoints for Checkpoints.Trace208;

    struct Entry {
        bytes32 closing;
        uint64 postId;
        uint64 readyAt;
    }

    struct Dispute {
        address disputer;
        uint96 bond;
        uint64 epoch;
    }

    bytes32 public constant PAYOUT_TAG = keccak256("fabric.payout.v1");
    uint256 public constant MAX_SECONDS = 30 days;
    uint256 public constant START_RANGE = 366 days;
    uint256 public constant MAX_EPOCHS = 100_000;
    uint256 public constant MIN_STAKE_BPS = 200;
    uint256 public constant MAX_STAKE_BPS = 1_000;
    uint256 public constant MIN_BOND = 1e18;
    uint256 public constant MAX_BOND = 1_000_000e18;

    BCT public immutable bct;
    DataCredits public immutable credits;
    IPriceOracle public immutable oracle;
    uint256 public immutable start;
    uint256 public immutable epochSeconds;
    uint256 public immutable windowSeconds;
    uint256 public immutable supply;
    uint256 public immutable epochs;

    address public poster;
    address public stakers;
    uint256 public bond;
    Checkpoints.Trace208 private _stakeBps;

    /// @notice The next epoch to post and the next one to finalise; [finalised, posted) is the queue.
    uint64 public posted;
    uint64 public finalised;
    uint64 public lastPostId;
    mapping(uint256 epoch => Entry) public entries;
    mapping(uint256 postId => Dispute) public disputes;

    /// @notice The root of the last finalised epoch; the only one that pays.
    bytes32 public payoutRoot;
    uint128 public paidTotal;
    uint128 public promisedTotal;
    uint128 public claimedTotal;
    uint128 public reminted;
    mapping(bytes32 gpu => mapping(address holder => uint256)) public claimed;

    /// @param bct_ must name this contract as minter, `credits_` as settlement: their deployment computes its address.
    constructor(
        address owner_,
        BCT bct_,
        DataCredits credits_,
        Schedule memory schedule,
        address poster_,
        address stakers_,
        uint256 stakeBps,
        uint256 bond_
    ) Ownable(owner_) {
        if (bct_.minter() != address(this) || credits_.settlement() != address(this)) revert WrongDeployment();
        if (address(credits_.bct()) != address(bct_)) revert WrongDeployment();
        bct = bct_;
        credits = credits_;
        oracle = credits_.oracle();
        start = _within("start", schedule.start, block.timestamp - START_RANGE, block.timestamp + START_RANGE);
        epochSeconds = _within("epochSeconds", schedule.epochSeconds, 1, MAX_SECONDS);
        windowSeconds = _within("windowSeconds", schedule.windowSeconds, 1, MAX_SECONDS);
        supply = _within("supply", schedule.supply, 1, type(uint96).max);
        epochs = _within("epochs", schedule.epochs, 1, MAX_EPOCHS);
        _setPoster(poster_);
        _setStakers(stakers_);
        _setStakeBps(stakeBps, 0);
        _setBond(bond_);
    }

    /// @inheritdoc ISettlement
    function post(Closing calldata closing) external {
        if (msg.sender != poster) revert NotPoster(msg.sender);
        uint256 epoch = closing.epoch;
        if (epoch != posted) revert OutOfOrder(posted, epoch);
        if (block.timestamp < endOf(epoch)) revert NotOver(endOf(epoch));
        uint256 value = _checkPay(closing);
        Refusal refusal = _refusal(closing);
        if (refusal != Refusal.None) revert Refused(refusal);
        uint64 postId = ++lastPostId;
        uint256 readyAt = block.timestamp + windowSeconds;
        entries[epoch] = Entry(keccak256(abi.encode(closing)), postId, uint64(readyAt));
        posted = closing.epoch + 1;
        emit Posted(epoch, postId, closing, value, readyAt);
    }

    /// @inheritdoc ISettlement
    function finalise(Closing calldata closing) external returns (bool accepted) {
        uint256 epoch = closing.epoch;
        if (epoch != finalised) revert OutOfOrder(finalised, epoch);
        Entry memory entry = _queued(epoch);
        if (entry.closing != keccak256(abi.encode(closing))) revert WrongClosing(epoch);
        if (block.timestamp < entry.readyAt) revert WindowOpen(entry.readyAt);
        if (disputes[entry.postId].disputer != address(0)) revert UnderDispute(entry.postId);
        Refusal refusal = _refusal(closing);
        if (refusal != Refusal.None) {
            _rewind(closing.epoch, refusal);
            return false;
        }
        _pay(closing);
        emit Finalised(epoch, entry.postId, uint256(closing.rewards) + closing.stake, closing.payoutRoot);
        return true;
    }

    /// @inheritdoc ISettlement
    function dispute(uint256 epoch) external {
        Entry memory entry = _queued(epoch);
        if (block.timestamp >= entry.readyAt) revert WindowClosed(entry.readyAt);
        if (disputes[entry.postId].disputer != address(0)) revert UnderDispute(entry.postId);
        disputes[entry.postId] = Dispute(msg.sender, uint96(bond), uint64(epoch));
        emit Disputed(epoch, entry.postId, msg.sender, bond);
        bct.transferFrom(msg.sender, address(this), bond);
    }

    /// @inheritdoc ISettlement
    function resolve(uint256 epoch, bool upheld) external onlyOwner {
        uint256 postId = _queued(epoch).postId;
        Dispute memory d = disputes[postId];
        if (d.disputer == address(0)) revert NoDispute(postId);
        delete disputes[postId];
        emit DisputeResolved(epoch, postId, upheld);
        if (upheld) {
            _rewind(uint64(epoch), Refusal.None);
            _returnBond(postId, d);
        } else {
            bct.burn(d.bond);
        }
    }

    /// @inheritdoc ISettlement
    function reclaimBond(uint256 postId) external {
        Dispute memory d = disputes[postId];
        if (d.disputer == address(0)) revert NoDispute(postId);
        if (d.epoch < posted && entries[d.epoch].postId == postId) revert UnderDispute(postId);
        delete disputes[postId];
        _returnBond(postId, d);
    }

    /// @inheritdoc ISettlement
    function claim(address holder, Payout[] calldata payouts) external {
        uint256 sum = 0;
        for (uint256 i = 0; i < payouts.length; ++i) {
            sum += _take(holder, payouts[i]);
        }
        if (sum == 0) revert NothingToClaim();
        uint256 total = claimedTotal + sum;
        if (total > promisedTotal) revert AbovePromised(total, promisedTotal);
        claimedTotal = uint128(total);
        bct.transfer(holder, sum);
    }

    /// @inheritdoc ISettlement
    function setPoster(address poster_) external onlyOwner {
        _setPoster(poster_);
    }

    /// @inheritdoc ISettlement
    function setStakers(address stakers_) external onlyOwner {
        _setStakers(stakers_);
    }

    /// @inheritdoc ISettlement
    function setStakeBps(uint256 bps) external onlyOwner {
        _setStakeBps(bps, block.timestamp < start ? 0 : (block.timestamp - start) / epochSeconds + 1);
    }

    /// @inheritdoc ISettlement
    function setBond(uint256 bond_) external onlyOwner {
        _setBond(bond_);
    }

    /// @inheritdoc ISettlement
    function scheduled(uint256 epoch) public view returns (uint256) {
        uint256 x = Math.min(epoch, epochs);
        return (supply * x * (2 * epochs - x)) / (epochs * epochs);
    }

    /// @inheritdoc ISettlement
    function emission(uint256 epoch) public view returns (uint256) {
        return scheduled(epoch + 1) - scheduled(epoch);
    }

    /// @inheritdoc ISettlement
    function remintable() public view returns (uint256) {
        return credits.bctBurned() - reminted;
    }

    /// @inheritdoc ISettlement
    function valueOf(uint256 epoch, uint256 burnedDc) public view returns (uint256) {
        if (burnedDc == 0) return 0;
        (uint256 price, uint256 average) = oracle.read(endOf(epoch) - 1);
        return Conversion.bctForDcDown(burnedDc, Math.max(price, average));
    }

    /// @inheritdoc ISettlement
    function stakeBpsOf(uint256 epoch) public view returns (uint256) {
        return _stakeBps.upperLookup(uint48(epoch));
    }

    /// @inheritdoc ISettlement
    function endOf(uint256 epoch) public view returns (uint256) {
        return start + (epoch + 1) * epochSeconds;
    }

    /// @dev What depends on the epoch alone: the stakers' share and the value of its burned DC. Returns the value.
    function _checkPay(Closing calldata closing) private view returns (uint256 value) {
        uint256 paid = uint256(closing.rewards) + closing.stake;
        uint256 stake = (paid * stakeBpsOf(closing.epoch)) / 10_000;
        if (closing.stake != stake) revert WrongStake(stake, closing.stake);
        value = valueOf(closing.epoch, closing.burnedDc);
        if (paid > value) revert AboveValue(paid, value);
    }

    /// @dev What depends on the epochs finalised before.
    function _refusal(Closing calldata closing) private view returns (Refusal) {
        uint256 paid = uint256(closing.rewards) + closing.stake;
        if (paid > emission(closing.epoch) + remintable()) return Refusal.AboveEmission;
        if (!credits.covers(closing.burnedDc, closing.exitedTotal)) return Refusal.NotCovered;
        return Refusal.None;
    }

    function _pay(Closing calldata closing) private {
        uint128 paid = closing.rewards + closing.stake;
        reminted += uint128(Math.saturatingSub(paid, emission(closing.epoch)));
        finalised = closing.epoch + 1;
        payoutRoot = closing.payoutRoot;
        paidTotal += paid;
        promisedTotal += closing.rewards;
        credits.settle(closing.epoch, closing.burnedDc, closing.exitedTotal, closing.exitRoot);
        bct.mint(address(this), closing.rewards);
        bct.mint(stakers, closing.stake);
    }

    /// @dev Books one payout and returns what it adds: 0 when it was claimed before.
    function _take(address holder, Payout calldata payout) private returns (uint256 amount) {
        bytes32 leaf =
            keccak256(bytes.concat(keccak256(abi.encode(PAYOUT_TAG, payout.gpu, holder, payout.cumulative))));
        if (!MerkleProof.verifyCalldata(payout.proof, payoutRoot, leaf)) revert WrongProof(payout.gpu);
        amount = Math.saturatingSub(payout.cumulative, claimed[payout.gpu][holder]);
        if (amount == 0) return 0;
        claimed[payout.gpu][holder] = payout.cumulative;
        emit Claimed(payout.gpu, holder, amount, payout.cumulative);
    }

    function _queued(uint256 epoch) private view returns (Entry memory) {
        if (epoch < finalised || epoch >= posted) revert NotPosted(epoch);
        return entries[epoch];
    }

    function _rewind(uint64 epoch, Refusal refusal) private {
        posted = epoch;
        emit Rewound(epoch, refusal);
    }

    function _returnBond(uint256 postId, Dispute memory d) private {
        emit BondReturned(postId, d.disputer, d.bond);
        bct.transfer(d.disputer, d.bond);
    }

    function _setPoster(address poster_) private {
        poster = poster_;
        emit PosterSet(poster_);
    }

    function _setStakers(address stakers_) private {
        if (stakers_ == address(0)) revert ZeroAddress();
        stakers = stakers_;
        emit StakersSet(stakers_);
    }

    function _setStakeBps(uint256 bps, uint256 fromEpoch) private {
        _stakeBps.push(uint48(fromEpoch), uint208(_within("stakeBps", bps, MIN_STAKE_BPS, MAX_STAKE_BPS)));
        emit StakeBpsSet(bps, fromEpoch);
    }

    function _setBond(uint256 bond_) private {
        bond = _within("bond", bond_, MIN_BOND, MAX_BOND);
        emit BondSet(bond_);
    }

    function _within(bytes32 what, uint256 given, uint256 low, uint256 high) private pure returns (uint256) {
        if (given < low || given > high) revert OutOfBounds(what, given);
        return given;
    }
}
