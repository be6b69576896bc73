// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title One NFT per physical GPU
/// @notice The token id is the GPU's public id, `uint256(keccak256("fabric-gpu" || UUID))`, so a GPU has at most one NFT;
/// the hash of the serial number is unique besides, so a device whose UUID was changed is not minted twice.
/// @dev Rewards never follow the current holder: Settlement pays the holder named in a leaf, who held it at the time of
/// use. Minting makes no callback to the receiver.
interface IGpuNFT {
    /// @param agreement hash of the hosting agreement.
    /// @param title hash of the document of title.
    /// @param operator who runs the device.
    /// @param inService when it went into service, seconds since the Unix epoch.
    struct Hosting {
        bytes32 agreement;
        bytes32 title;
        address operator;
        uint64 inService;
    }

    event RegistrarSet(address indexed registrar, bool allowed);
    event Registered(uint256 indexed gpu, address indexed holder, bytes32 indexed serialHash, Hosting hosting);
    event HostingSet(uint256 indexed gpu, Hosting hosting);

    /// @notice The caller is not a registrar.
    error NotRegistrar(address caller);
    /// @notice Another GPU has this serial number, or the hash is zero.
    error SerialTaken(bytes32 serialHash);
    /// @notice The public id of a GPU is a hash, never zero.
    error NoGpu();
    /// @notice A hosting record names no operator.
    error NoOperator();

    /// @notice Mints the NFT of a GPU to `holder`. Only registrars.
    function register(address holder, uint256 gpu, bytes32 serialHash, Hosting calldata hosting) external;

    /// @notice Replaces the hosting record (ERC-4906 event). Only registrars.
    function setHosting(uint256 gpu, Hosting calldata hosting) external;

    /// @notice Allows or forbids a registrar. Only the owner.
    function setRegistrar(address registrar, bool allowed) external;

    /// @notice Sets where metadata is read from; a token's URI is this followed by its id (ERC-4906 event). Only the owner.
    function setBaseURI(string calldata uri) external;
}
