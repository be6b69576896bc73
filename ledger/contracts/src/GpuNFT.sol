// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IERC4906} from "@openzeppelin/contracts/interfaces/IERC4906.sol";
import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";
import {IERC165} from "@openzeppelin/contracts/utils/introspection/IERC165.sol";
import {IGpuNFT} from "./interfaces/IGpuNFT.sol";

/// @title See IGpuNFT.
contract GpuNFT is IGpuNFT, IERC4906, ERC721, Ownable2Step {
    bytes4 private constant ERC4906_ID = 0x49064906; // the id the standard assigns; it has no functions

    mapping(address => bool) public isRegistrar;
    mapping(bytes32 serialHash => uint256) public gpuOfSerial;
    mapping(uint256 gpu => Hosting) public hostingOf;
    string private _uri;

    constructor(address owner_, address registrar, string memory baseURI) ERC721("Berkeley Compute GPU", "BCGPU") Ownable(owner_) {
        _uri = baseURI;
        isRegistrar[registrar] = true;
        emit RegistrarSet(registrar, true);
    }

    modifier onlyRegistrar() {
        if (!isRegistrar[msg.sender]) revert NotRegistrar(msg.sender);
        _;
    }

    /// @inheritdoc IGpuNFT
    function register(address holder, uint256 gpu, bytes32 serialHash, Hosting calldata hosting) external onlyRegistrar {
        if (gpu == 0) revert NoGpu();
        if (serialHash == 0 || gpuOfSerial[serialHash] != 0) revert SerialTaken(serialHash);
        if (hosting.operator == address(0)) revert NoOperator();
        gpuOfSerial[serialHash] = gpu;
        hostingOf[gpu] = hosting;
        _mint(holder, gpu);
        emit Registered(gpu, holder, serialHash, hosting);
    }

    /// @inheritdoc IGpuNFT
    function setHosting(uint256 gpu, Hosting calldata hosting) external onlyRegistrar {
        _requireOwned(gpu);
        if (hosting.operator == address(0)) revert NoOperator();
        hostingOf[gpu] = hosting;
        emit HostingSet(gpu, hosting);
        emit MetadataUpdate(gpu);
    }

    /// @inheritdoc IGpuNFT
    function setRegistrar(address registrar, bool allowed) external onlyOwner {
        isRegistrar[registrar] = allowed;
        emit RegistrarSet(registrar, allowed);
    }

    /// @inheritdoc IGpuNFT
    function setBaseURI(string calldata uri) external onlyOwner {
        _uri = uri;
        emit BatchMetadataUpdate(0, type(uint256).max);
    }

    function supportsInterface(bytes4 id) public view override(ERC721, IERC165) returns (bool) {
        return id == ERC4906_ID || super.supportsInterface(id);
    }

    function _baseURI() internal view override returns (string memory) {
        return _uri;
    }
}
