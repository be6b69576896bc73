// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Epochs, pay and claims
/// @notice Epochs are closed strictly in order: post -> dispute window -> finalise -> claim. Closing costs the same
/// whatever the number of GPUs.
///
/// Pay: `paid = rewards + stake` of an epoch is bounded in this code by
/// - `value(e)`: the BCT that the DC burned in e buy at the higher of the oracle's price at the epoch's last second and its
///   24 hour average, rounded down, read by this contract itself when the epoch is posted;
/// - `emission(e) + remintable()`: emission(e) = S(e+1) - S(e), S(e) = P x (2N - x) / N^2 with x = min(e, N), rounded
///   down; remintable = BCT burned for DC and not minted again. What is paid beyond emission(e) leaves remintable; what
///   is not paid of emission(e) is never minted. Hence supply <= genesis + S(finalised).
///
/// `post` checks all that can be known then. What depends on the epochs queued before (remintable, deposits) is checked
/// again by `finalise`, which refuses the epoch and rewinds the queue to it instead of reverting: it never blocks.
/// @dev Payout leaf, as `fabric.wire.merkle.leaf` builds it:
/// `keccak256(keccak256(abi.encode(keccak256("fabric.payout.v1"), gpu, holder, cumulativeBct)))`, pairs hashed in sorted
/// order. No chain id or contract address is in the leaf: roots are accepted from this contract's poster only, each
/// proof is checked against this contract's own root, and the sums are cumulative, so no leaf pays twice.
interface ISettlement {
    /// @notice What closes an epoch.
    /// @param epoch its number, from 0.
    /// @param burnedDc DC of the usage final in this epoch.
    /// @param rewards BCT wei this epoch adds to the leaves of `payoutRoot`.
    /// @param stake BCT wei for the stakers: `(rewards + stake) x stakeBps / 10000`, rounded down.
    /// @param exitedTotal DC: the sum of all leaves of `exitRoot`.
    /// @param payoutRoot leaves (gpu, holder, cumulative BCT wei).
    /// @param exitRoot leaves (account, cumulative DC exited).
    /// @param usageRoot leaves (epoch, gpu, GPU-ms, DC, root of its leases); proved against off chain.
    /// @param file content address of the epoch file that everything above can be recomputed from.
    struct Closing {
        uint64 epoch;
        uint128 burnedDc;
        uint128 rewards;
        uint128 stake;
        uint128 exitedTotal;
        bytes32 payoutRoot;
        bytes32 exitRoot;
        bytes32 usageRoot;
        bytes32 file;
    }

    /// @param cumulative all BCT wei ever rewarded to the holder for this GPU, as in the leaf.
    struct Payout {
        bytes32 gpu;
        uint256 cumulative;
        bytes32[] proof;
    }

    /// @notice All parameters fixed at deployment.
    /// @param start second at which epoch 0 begins, at most 366 days before or after the deployment.
    /// @param epochSeconds length of an epoch, 1 second to 30 days.
    /// @param windowSeconds dispute window, 1 second to 30 days.
    /// @param supply P in wei: what all epochs together may emit, at most 2^96 - 1.
    /// @param epochs N, 1 to 100000: after so many epochs the emission has ended.
    struct Schedule {
        uint256 start;
        uint256 epochSeconds;
        uint256 windowSeconds;
        uint256 supply;
        uint256 epochs;
    }

    enum Refusal {
        None,
        AboveEmission,
        NotCovered
    }

    event Posted(uint256 indexed epoch, uint256 indexed postId, Closing closing, uint256 value, uint256 readyAt);
    event Disputed(uint256 indexed epoch, uint256 indexed postId, address indexed disputer, uint256 bond);
    event DisputeResolved(uint256 indexed epoch, uint256 indexed postId, bool upheld);
    event BondReturned(uint256 indexed postId, address indexed disputer, uint256 bond);
    event Rewound(uint256 indexed toEpoch, Refusal refusal);
    event Finalised(uint256 indexed epoch, uint256 indexed postId, uint256 paid, bytes32 payoutRoot);
    event Claimed(bytes32 indexed gpu, address indexed holder, uint256 amount, uint256 cumulative);
    event PosterSet(address poster);
    event StakersSet(address stakers);
    event StakeBpsSet(uint256 bps, uint256 fromEpoch);
    event BondSet(uint256 bond);

    /// @notice BCT or DataCredits name another Settlement, or other contracts, than this one.
    error WrongDeployment();
    /// @notice A parameter is outside the bounds in the code.
    error OutOfBounds(bytes32 what, uint256 given);
    /// @notice Stakers need an address.
    error ZeroAddress();
    /// @notice Only the poster posts.
    error NotPoster(address caller);
    /// @notice Epochs are posted and finalised in order.
    error OutOfOrder(uint256 expected, uint256 given);
    /// @notice The epoch is still running.
    error NotOver(uint256 endsAt);
    /// @notice The stakers' share is not the one in force in that epoch.
    error WrongStake(uint256 expected, uint256 given);
    /// @notice The epoch pays more than the burned DC are worth.
    error AboveValue(uint256 paid, uint256 value);
    /// @notice The epoch promises more than may be minted, or burns or exits more than was deposited.
    error Refused(Refusal refusal);
    /// @notice The epoch is not in the queue.
    error NotPosted(uint256 epoch);
    /// @notice The closing is not the one that was posted.
    error WrongClosing(uint256 epoch);
    /// @notice The dispute window is still open.
    error WindowOpen(uint256 readyAt);
    /// @notice The dispute window has closed.
    error WindowClosed(uint256 readyAt);
    /// @notice The epoch waits for a dispute to be resolved.
    error UnderDispute(uint256 postId);
    /// @notice There is no open dispute.
    error NoDispute(uint256 postId);
    /// @notice The proof of this GPU does not lead to the payout root.
    error WrongProof(bytes32 gpu);
    /// @notice Everything the leaves grant was paid before.
    error NothingToClaim();
    /// @notice The root's leaves grant more than the epochs promised.
    error AbovePromised(uint256 wouldBeClaimed, uint256 promisedTotal);

    /// @notice Queues the closing of the next epoch. Only the poster; after the epoch's end.
    /// Reverts with the oracle's errors while it has no price for the epoch's last second, unless nothing was burned.
    function post(Closing calldata closing) external;

    /// @notice Finalises the oldest queued epoch after its window: mints what it pays and replaces the roots. Anybody.
    /// @return accepted false when the epoch was refused and the queue rewound to it.
    function finalise(Closing calldata closing) external returns (bool accepted);

    /// @notice Disputes a queued epoch within its window, with a bond in BCT (allowance needed). Anybody.
    function dispute(uint256 epoch) external;

    /// @notice Ends a dispute. Upheld: the bond returns and the queue rewinds to that epoch. Rejected: the bond is
    /// burned (and not remintable). Only the owner.
    function resolve(uint256 epoch, bool upheld) external;

    /// @notice Returns the bond of a dispute whose post left the queue because an earlier one was rewound. Anybody.
    function reclaimBond(uint256 postId) external;

    /// @notice Pays `holder` what the leaves grant beyond what was paid before. Anybody may call, only `holder` is paid.
    function claim(address holder, Payout[] calldata payouts) external;

    /// @notice Who posts; zero pauses posting. Only the owner.
    function setPoster(address poster) external;

    /// @notice Where the stakers' share goes. Only the owner.
    function setStakers(address stakers) external;

    /// @notice The stakers' share, 200 to 1000 bps, from the next epoch on. Only the owner.
    function setStakeBps(uint256 bps) external;

    /// @notice The bond of a dispute, 1 to 1,000,000 BCT. Only the owner.
    function setBond(uint256 bond) external;

    /// @notice S(e): all that epochs before `epoch` may emit, in wei, rounded down.
    function scheduled(uint256 epoch) external view returns (uint256);

    /// @notice S(e+1) - S(e), in wei.
    function emission(uint256 epoch) external view returns (uint256);

    /// @notice BCT wei burned for DC and not minted again.
    function remintable() external view returns (uint256);

    /// @notice BCT wei that `burnedDc` are worth to `epoch`, rounded down; 0 for 0 without asking the oracle.
    function valueOf(uint256 epoch, uint256 burnedDc) external view returns (uint256);

    /// @notice The stakers' share in force in `epoch`.
    function stakeBpsOf(uint256 epoch) external view returns (uint256);

    /// @notice The first second after `epoch`.
    function endOf(uint256 epoch) external view returns (uint256);
}
