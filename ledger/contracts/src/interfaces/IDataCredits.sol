// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Data Credits (DC)
/// @notice 1 DC = USD 0.00001, no decimals, not transferable. DC come into being only by burning BCT, at the lower of the
/// oracle's price and its 24 hour average, rounded down. `deposit` hands DC to this contract; who owns how much of the
/// deposits is the ledger's business until `claimExit` gives them back. At every moment:
/// deposited = held by this contract + burned for usage + paid out by exits.
/// @dev Exit leaf, as `fabric.wire.merkle.leaf` builds it:
/// `keccak256(keccak256(abi.encode(keccak256("fabric.exit.v1"), account, cumulativeDc)))`, pairs hashed in sorted order.
/// No chain id or contract address is in the leaf: a root is accepted from one Settlement only, on its own chain.
interface IDataCredits {
    event Minted(address indexed account, uint256 bct, uint256 dc, uint256 price);
    event Deposited(address indexed account, uint256 dc, uint256 depositedTotal);
    event ExitRequested(address indexed account, uint256 dc, uint256 requested);
    event ExitPaid(address indexed account, uint256 dc, uint256 paid);
    event Settled(uint256 indexed epoch, uint256 burnedDc, uint256 exitedTotal, bytes32 exitRoot);

    /// @notice DC cannot be transferred or approved.
    error NotTransferable();
    /// @notice The BCT burned buy fewer DC than the caller asked for, or none.
    error TooFewCredits(uint256 got, uint256 wanted);
    /// @notice An amount of zero.
    error ZeroAmount();
    /// @notice Only Settlement settles.
    error NotSettlement(address caller);
    /// @notice Burned and exited sums must not shrink and must be covered by deposits.
    error NotCovered(uint256 burnedDc, uint256 exitedTotal);
    /// @notice The account never asked for that much.
    error NotRequested(uint256 cumulativeDc, uint256 requested);
    /// @notice The request waits for the next finalised epoch.
    error ExitNotDue();
    /// @notice The proof does not lead to the exit root.
    error WrongProof();
    /// @notice Everything the leaf grants was paid before.
    error NothingToPay();
    /// @notice The root's leaves grant more than the epoch said it exits.
    error AboveExited(uint256 wouldBePaid, uint256 exitedTotal);

    /// @notice Burns `bct` wei of the caller (allowance or permit needed) and mints it DC.
    /// @param minDc the least number of DC the caller accepts.
    /// Reverts with the oracle's errors when there is no price.
    function mint(uint256 bct, uint256 minDc) external returns (uint256 dc);

    /// @notice Moves `dc` of the caller into the deposits; the ledger credits them when the block is final.
    function deposit(uint256 dc) external;

    /// @notice Asks for `dc` of the caller's deposits back. The ledger moves what is available to exiting.
    function requestExit(uint256 dc) external;

    /// @notice Pays `account`, in DC, what the leaf grants beyond what was paid before. Anybody may call.
    /// @dev Paid by the first root finalised after the account's last request; when no epoch has been finalised for
    /// 30 days, the last root pays. Sums are cumulative: no root ever pays twice.
    /// @param cumulativeDc all DC the account has ever moved to exiting, as in the leaf.
    function claimExit(address account, uint256 cumulativeDc, bytes32[] calldata proof) external;

    /// @notice Books an epoch: burns the DC of its usage and takes its exit root. Only Settlement.
    /// @param burnedDc DC of the usage final in this epoch.
    /// @param exitedTotal sum of all leaves of `exitRoot`.
    function settle(uint256 epoch, uint128 burnedDc, uint128 exitedTotal, bytes32 exitRoot) external;

    /// @notice Whether `settle` would accept these sums now.
    function covers(uint256 burnedDc, uint256 exitedTotal) external view returns (bool);

    /// @notice All BCT wei ever burned for DC.
    function bctBurned() external view returns (uint256);

    /// @notice The Settlement this contract obeys, fixed at deployment.
    function settlement() external view returns (address);
}
