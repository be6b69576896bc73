"""GPU titles: one per device, one per serial number, readable hosting record, metadata events."""

import pytest

SERIAL = b"\x07" * 32
HOSTING = (b"\x01" * 32, b"\x02" * 32, "0x" + "11" * 20, 1_800_000_000)


@pytest.fixture
def titled(world):
    world.send("registrar", "GpuNFT", "register", world.address("alice"), 7, SERIAL, HOSTING)
    return world


def test_registering_mints_to_the_holder_and_records_serial_and_hosting(titled):
    assert titled.events("GpuNFT") == ["Transfer", "Registered"]
    assert titled.view("GpuNFT", "ownerOf", 7) == titled.address("alice")
    assert titled.view("GpuNFT", "gpuOfSerial", SERIAL) == 7
    assert titled.view("GpuNFT", "hostingOf", 7) == HOSTING


def test_a_gpu_and_a_serial_number_are_registered_once_even_after_the_nft_moved(titled, reverts):
    titled.send("alice", "GpuNFT", "transferFrom", titled.address("alice"), titled.address("bob"), 7)
    with reverts("SerialTaken"):
        titled.send("registrar", "GpuNFT", "register", titled.address("alice"), 8, SERIAL, HOSTING)
    with reverts("ERC721InvalidSender"):
        titled.send("registrar", "GpuNFT", "register", titled.address("alice"), 7, b"\x08" * 32, HOSTING)
    with reverts("SerialTaken"):
        titled.send("registrar", "GpuNFT", "register", titled.address("alice"), 9, bytes(32), HOSTING)
    titled.send("registrar", "GpuNFT", "register", titled.address("alice"), 8, b"\x08" * 32, HOSTING)


def test_an_operator_is_needed_at_registration(world, reverts):
    with reverts("NoOperator"):
        nobody = (*HOSTING[:2], "0x" + "00" * 20, 0)
        world.send("registrar", "GpuNFT", "register", world.address("alice"), 7, SERIAL, nobody)


def test_minting_makes_no_callback_to_a_contract_that_receives(world):
    world.send("registrar", "GpuNFT", "register", world.at["BCT"], 7, SERIAL, HOSTING)
    assert world.view("GpuNFT", "ownerOf", 7) == world.at["BCT"]


def test_a_changed_hosting_record_says_so_to_those_who_show_it(titled):
    changed = (b"\x03" * 32, *HOSTING[1:])
    titled.send("registrar", "GpuNFT", "setHosting", 7, changed)
    assert titled.events("GpuNFT") == ["HostingSet", "MetadataUpdate"]
    assert titled.view("GpuNFT", "hostingOf", 7) == changed


def test_the_uri_is_the_base_and_the_id_and_the_owner_moves_the_base(titled):
    assert titled.view("GpuNFT", "tokenURI", 7) == "https://fabric.test/gpus/7"
    titled.send("owner", "GpuNFT", "setBaseURI", "ipfs://x/")
    assert titled.events("GpuNFT") == ["BatchMetadataUpdate"]
    assert titled.view("GpuNFT", "tokenURI", 7) == "ipfs://x/7"


def test_a_registrar_who_was_dismissed_registers_no_more(world, reverts):
    world.send("owner", "GpuNFT", "setRegistrar", world.address("registrar"), False)
    with reverts("NotRegistrar"):
        world.send("registrar", "GpuNFT", "register", world.address("alice"), 7, SERIAL, HOSTING)


@pytest.mark.parametrize(
    ("interface", "known"), [("01ffc9a7", True), ("80ac58cd", True), ("49064906", True), ("ffffffff", False)]
)
def test_it_says_which_standards_it_follows(world, interface, known):
    assert world.view("GpuNFT", "supportsInterface", bytes.fromhex(interface)) is known
