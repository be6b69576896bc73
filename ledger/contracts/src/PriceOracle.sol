// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IPriceOracle} from "./interfaces/IPriceOracle.sol";

/// @title See IPriceOracle.
contract PriceOracle is IPriceOracle, Ownable2Step {
    struct Report {
        uint40 since;
        uint88 price;
    }

    /// @dev `cumulative` is the sum of price x seconds from the first observation up to `since`.
    struct Observation {
        uint40 since;
        uint88 price;
        uint128 cumulative;
    }

    uint256 public constant AVERAGE_WINDOW = 24 hours;
    uint256 public constant STEP_WINDOW = 1 hours;
    uint256 public constant MAX_REPORTERS = 15;
    uint256 public constant MIN_STEP_BPS = 100;
    uint256 public constant MAX_STEP_BPS = 5_000;
    uint256 public constant MIN_FRESHNESS = 1 minutes;
    uint256 public constant MAX_FRESHNESS = 1 days;

    /// @notice Seconds for which a report and an observation count as fresh.
    uint256 public immutable freshness;

    /// @inheritdoc IPriceOracle
    bool public halted;
    uint256 public quorum;
    uint256 public stepBps;
    address[] public reporters;
    mapping(address => bool) public isReporter;
    mapping(address => Report) public reports;

    Observation[] public observations;
    /// @dev The observation the current run of steps starts from: 0, or the one of the last resume.
    uint256 private _base;

    constructor(address owner_, address[] memory reporters_, uint256 quorum_, uint256 freshness_, uint256 stepBps_)
        Ownable(owner_)
    {
        if (freshness_ < MIN_FRESHNESS || freshness_ > MAX_FRESHNESS) revert OutOfBounds("freshness", freshness_);
        freshness = freshness_;
        _setReporters(reporters_, quorum_);
        _setStepBps(stepBps_);
    }

    /// @inheritdoc IPriceOracle
    function read(uint256 time) external view returns (uint256 price, uint256 average) {
        if (halted) revert OracleHalted();
        if (time > block.timestamp) revert InTheFuture(time);
        (uint256 index, uint256 known) = _locate(time);
        return (observations[index].price, _average(index, known));
    }

    /// @inheritdoc IPriceOracle
    function report(uint88 price) external {
        if (!isReporter[msg.sender]) revert NotReporter(msg.sender);
        if (price == 0) revert ZeroPrice();
        reports[msg.sender] = Report(uint40(block.timestamp), price);
        emit Reported(msg.sender, price);
        if (halted) return;
        (uint256 median, uint256 fresh) = _median();
        if (fresh < quorum) return;
        if (_withinStep(median)) {
            _observe(median);
        }
    }

    /// @inheritdoc IPriceOracle
    function resume() external onlyOwner {
        if (!halted) revert NotHalted();
        (uint256 median, uint256 fresh) = _median();
        if (fresh < quorum) revert TooFewReports(fresh, quorum);
        halted = false;
        _base = observations.length;
        _observe(median);
        emit Resumed(median);
    }

    /// @inheritdoc IPriceOracle
    function setReporters(address[] calldata reporters_, uint256 quorum_) external onlyOwner {
        _setReporters(reporters_, quorum_);
    }

    /// @inheritdoc IPriceOracle
    function setStepBps(uint256 bps) external onlyOwner {
        _setStepBps(bps);
    }

    function _setReporters(address[] memory reporters_, uint256 quorum_) private {
        uint256 count = reporters_.length;
        if (count == 0 || count > MAX_REPORTERS) revert OutOfBounds("reporters", count);
        if (quorum_ == 0 || quorum_ > count) revert OutOfBounds("quorum", quorum_);
        for (uint256 i = 0; i < reporters.length; ++i) {
            isReporter[reporters[i]] = false;
        }
        for (uint256 i = 0; i < count; ++i) {
            if (isReporter[reporters_[i]]) revert DuplicateReporter(reporters_[i]);
            isReporter[reporters_[i]] = true;
        }
        reporters = reporters_;
        quorum = quorum_;
        emit ReportersSet(reporters_, quorum_);
    }

    function _setStepBps(uint256 bps) private {
        if (bps < MIN_STEP_BPS || bps > MAX_STEP_BPS) revert OutOfBounds("stepBps", bps);
        stepBps = bps;
        emit StepSet(bps);
    }

    /// @dev Halts when the median is too far from the price one step window ago; true when it may be taken.
    function _withinStep(uint256 median) private returns (bool) {
        uint256 count = observations.length;
        if (count == 0) return true;
        uint256 upTo = _countUpTo(block.timestamp - STEP_WINDOW);
        uint256 anchor = observations[upTo > _base ? upTo - 1 : _base].price;
        uint256 move = median > anchor ? median - anchor : anchor - median;
        if (move * 10_000 <= anchor * stepBps) return true;
        halted = true;
        emit HaltedBy(anchor, median);
        return false;
    }

    function _observe(uint256 price) private {
        uint256 count = observations.length;
        uint256 cumulative = count == 0 ? 0 : _cumulative(count - 1, block.timestamp);
        observations.push(Observation(uint40(block.timestamp), uint88(price), uint128(cumulative)));
        emit Observed(price);
    }

    /// @dev The median of the fresh reports (mean of the middle two, rounded down) and how many are fresh.
    function _median() private view returns (uint256 median, uint256 fresh) {
        uint256[] memory sorted = new uint256[](reporters.length);
        for (uint256 i = 0; i < sorted.length; ++i) {
            Report memory r = reports[reporters[i]];
            if (r.since == 0 || block.timestamp - r.since > freshness) continue;
            uint256 j = fresh++;
            for (; j > 0 && sorted[j - 1] > r.price; --j) sorted[j] = sorted[j - 1];
            sorted[j] = r.price;
        }
        if (fresh > 0) median = (sorted[(fresh - 1) / 2] + sorted[fresh / 2]) / 2;
    }

    /// @dev The observation that gives the price at `time`, and when it was known: `time`, or the end of the gap.
    function _locate(uint256 time) private view returns (uint256 index, uint256 known) {
        uint256 count = observations.length;
        uint256 upTo = _countUpTo(time);
        if (upTo > 0 && time - observations[upTo - 1].since <= freshness) return (upTo - 1, time);
        if (upTo == count) revert NoPrice(count == 0 ? 0 : observations[count - 1].since);
        return (upTo, observations[upTo].since);
    }

    /// @dev Time-weighted over [max(time - 24 h, first), time]; `index` is the observation that holds at `time`.
    function _average(uint256 index, uint256 time) private view returns (uint256) {
        uint256 first = observations[0].since;
        uint256 from = time > first + AVERAGE_WINDOW ? time - AVERAGE_WINDOW : first;
        if (time == from) return observations[index].price;
        return (_cumulative(index, time) - _cumulative(_countUpTo(from) - 1, from)) / (time - from);
    }

    function _cumulative(uint256 index, uint256 time) private view returns (uint256) {
        Observation storage o = observations[index];
        return o.cumulative + uint256(o.price) * (time - o.since);
    }

    /// @dev How many observations were made at or before `time`: binary search.
    function _countUpTo(uint256 time) private view returns (uint256 low) {
        uint256 high = observations.length;
        while (low < high) {
            uint256 middle = (low + high) / 2;
            if (observations[middle].since <= time) low = middle + 1;
            else high = middle;
        }
    }
}
