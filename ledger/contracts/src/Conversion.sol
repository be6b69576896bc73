// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Data Credits and BCT at a price
/// @notice 1 DC = USD 0.00001; prices are USD x 1e-18 per whole BCT; BCT amounts are wei.
library Conversion {
    uint256 private constant SCALE = 1e31; // 1e18 wei per BCT x 1e18 per USD / 1e5 DC per USD

    /// @notice Whole DC for `bct` wei, rounded down.
    function dcForBctDown(uint256 bct, uint256 price) internal pure returns (uint256) {
        return (bct * price) / SCALE;
    }

    /// @notice BCT wei that `dc` buy, rounded down.
    function bctForDcDown(uint256 dc, uint256 price) internal pure returns (uint256) {
        return (dc * SCALE) / price;
    }
}
