// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Price of one BCT
/// @notice Unit everywhere: USD x 1e-18 per whole BCT (1e18 = one US dollar).
/// @dev Reporters report; whenever at least `quorum` reports are fresh, their median becomes an observation. A median
/// that lies further than the step bound from the price one step window ago halts the oracle: it is neither taken nor
/// clamped, and nothing can be read until the owner resumes from the then current median. Observations are appended and
/// never changed, so a price that could be read for a past second stays what it was.
interface IPriceOracle {
    event ReportersSet(address[] reporters, uint256 quorum);
    event StepSet(uint256 stepBps);
    event Reported(address indexed reporter, uint256 price);
    event Observed(uint256 price);
    event HaltedBy(uint256 anchor, uint256 median);
    event Resumed(uint256 price);

    /// @notice The caller is not a reporter.
    error NotReporter(address caller);
    /// @notice A price of zero was reported.
    error ZeroPrice();
    /// @notice A parameter is outside the bounds in the code.
    error OutOfBounds(bytes32 what, uint256 given);
    /// @notice The same reporter was named twice.
    error DuplicateReporter(address reporter);
    /// @notice A move beyond the step bound halted the oracle; the owner has to resume it.
    error OracleHalted();
    /// @notice Nothing to resume: the oracle is not halted.
    error NotHalted();
    /// @notice Resuming needs `quorum` fresh reports.
    error TooFewReports(uint256 fresh, uint256 quorum);
    /// @notice No price is known for that time (yet): the last observation, at `last` (0: none), is not fresh there.
    error NoPrice(uint256 last);
    /// @notice A price of the future was asked for.
    error InTheFuture(uint256 time);

    /// @notice The price at second `time` and its time-weighted average over the 24 hours before.
    /// @dev The price is the last observation at or before `at`, if that one was fresh then. In a gap it is the first
    /// observation after the gap (and the average is taken there), so that an epoch which ends in a gap can be closed
    /// once reports come again. With less than 24 hours of history the average covers what there is. Rounded down.
    /// Final for every second before the current one.
    /// Reverts: OracleHalted, InTheFuture, NoPrice.
    function read(uint256 time) external view returns (uint256 price, uint256 average);

    /// @notice Reports a price. Only reporters. May halt the oracle.
    function report(uint88 price) external;

    /// @notice Ends a halt: the median of the fresh reports is taken without the step bound. Only the owner.
    function resume() external;

    /// @notice Replaces all reporters. 1 to 15 of them, 1 <= quorum <= reporters. Only the owner.
    function setReporters(address[] calldata reporters, uint256 quorum) external;

    /// @notice Sets the step bound, 100 to 5000 bps within one hour. Only the owner.
    function setStepBps(uint256 bps) external;

    /// @notice Whether a move beyond the step bound has halted the oracle.
    function halted() external view returns (bool);
}
