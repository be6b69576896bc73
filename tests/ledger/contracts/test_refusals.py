"""Every custom error of the five contracts, reached. The table must name each error in the ABIs, and no other."""

from collections.abc import Callable
from typing import Any

import pytest
from eth_account import Account

BCT = USD = 10**18
GPU = b"\x07" * 32
NOBODY = "0x" + "00" * 20
AGREEMENT = (b"\x01" * 32, b"\x02" * 32, "0x" + "11" * 20, 1_800_000_000)
CASES: dict[tuple[str, str], Callable[[Any], Any]] = {}

# Errors that OpenZeppelin's code carries but that no call to these contracts can raise.
UNREACHABLE = {
    ("BCT", "ECDSAInvalidSignatureLength"): "permit takes v, r and s, never a byte string",
    ("BCT", "InvalidAccountNonce"): "permit uses the next nonce, it takes none",
    ("BCT", "InvalidShortString"): "the name is a constant of 22 bytes",
    ("BCT", "StringTooLong"): "the name is a constant of 22 bytes",
    ("DataCredits", "ERC20InvalidSpender"): "DC cannot be approved",
    ("Settlement", "CheckpointUnorderedInsertion"): "shares are set from the next epoch on, and time does not go back",
}


def case(contract: str, error: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def enter(act: Callable[[Any], Any]) -> Callable[[Any], Any]:
        assert (contract, error) not in CASES
        CASES[contract, error] = act
        return act

    return enter


def test_the_table_names_every_error_of_the_contracts_and_no_other(interfaces):
    in_abis = {(name, e["name"]) for name, interface in interfaces.items() for e in interface.errors.values()}
    assert CASES.keys() | UNREACHABLE.keys() == in_abis
    assert not CASES.keys() & UNREACHABLE.keys()


@pytest.mark.parametrize(("contract", "error"), CASES, ids=lambda value: value)
def test_it_is_reached(world, contract, error, reverts):
    with reverts(error):
        CASES[contract, error](world)


# BCT


@case("BCT", "NotMinter")
def _(w):
    w.send("treasury", "BCT", "mint", w.address("treasury"), 1)


@case("BCT", "ERC20InsufficientBalance")
def _(w):
    w.send("poor", "BCT", "transfer", w.address("rich"), 1)


@case("BCT", "ERC20InsufficientAllowance")
def _(w):
    w.send("thief", "BCT", "burnFrom", w.address("treasury"), 1)


@case("BCT", "ERC20InvalidReceiver")
def _(w):
    w.send("treasury", "BCT", "transfer", NOBODY, 1)


@case("BCT", "ERC20InvalidSender")
def _(w):
    w.send(NOBODY, "BCT", "transfer", w.address("rich"), 0)


@case("BCT", "ERC20InvalidApprover")
def _(w):
    w.send(NOBODY, "BCT", "approve", w.address("rich"), 1)


@case("BCT", "ERC20InvalidSpender")
def _(w):
    w.send("treasury", "BCT", "approve", NOBODY, 1)


def _permit(w, deadline: int, v: int, r: int, s: int) -> None:
    owner, spender = w.address("treasury"), w.address("spender")
    w.send("spender", "BCT", "permit", owner, spender, 1, deadline, v, r.to_bytes(32, "big"), s.to_bytes(32, "big"))


@case("BCT", "ERC2612ExpiredSignature")
def _(w):
    _permit(w, w.now - 1, 27, 1, 1)


@case("BCT", "ERC2612InvalidSigner")
def _(w):
    signed = Account.unsafe_sign_hash(b"\x01" * 32, b"\x02" * 32)
    _permit(w, w.now, signed.v, signed.r, signed.s)


@case("BCT", "ECDSAInvalidSignature")
def _(w):
    _permit(w, w.now, 1, 1, 1)


@case("BCT", "ECDSAInvalidSignatureS")
def _(w):
    _permit(w, w.now, 27, 1, 2**256 - 1)


# PriceOracle


def _oracle(w, reporters: int = 3, quorum: int = 2, freshness: int = 3600, step_bps: int = 2000, owner="owner"):
    owner = owner if owner.startswith("0x") else w.address(owner)
    people = [w.address(f"reporter-{i}") for i in range(1, reporters + 1)]
    w.deploy("PriceOracle", owner, people, quorum, freshness, step_bps)


@case("PriceOracle", "NotReporter")
def _(w):
    w.send("stranger", "PriceOracle", "report", USD)


@case("PriceOracle", "ZeroPrice")
def _(w):
    w.send("reporter-1", "PriceOracle", "report", 0)


@case("PriceOracle", "OutOfBounds")
def _(w):
    w.send("owner", "PriceOracle", "setStepBps", 99)


@case("PriceOracle", "DuplicateReporter")
def _(w):
    w.send("owner", "PriceOracle", "setReporters", [w.address("a"), w.address("a")], 1)


def _halt(w):
    w.report(2 * USD)
    assert w.view("PriceOracle", "halted")


@case("PriceOracle", "OracleHalted")
def _(w):
    _halt(w)
    w.view("PriceOracle", "read", w.now)


@case("PriceOracle", "NotHalted")
def _(w):
    w.send("owner", "PriceOracle", "resume")


@case("PriceOracle", "TooFewReports")
def _(w):
    _halt(w)
    w.pass_time(3601)
    w.send("owner", "PriceOracle", "resume")


@case("PriceOracle", "NoPrice")
def _(w):
    w.pass_time(3601)
    w.view("PriceOracle", "read", w.now)


@case("PriceOracle", "InTheFuture")
def _(w):
    w.view("PriceOracle", "read", w.now + 1)


@case("PriceOracle", "OwnableUnauthorizedAccount")
def _(w):
    _halt(w)
    w.send("reporter-1", "PriceOracle", "resume")


@case("PriceOracle", "OwnableInvalidOwner")
def _(w):
    _oracle(w, owner=NOBODY)


@pytest.mark.parametrize(
    "arguments",
    [
        {"reporters": 0, "quorum": 0},
        {"reporters": 16},
        {"quorum": 0},
        {"quorum": 4},
        {"freshness": 59},
        {"freshness": 86_401},
        {"step_bps": 99},
        {"step_bps": 5001},
    ],
    ids=str,
)
def test_an_oracle_outside_its_bounds_is_not_deployed(world, arguments, reverts):
    with reverts("OutOfBounds"):
        _oracle(world, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"reporters": 1, "quorum": 1}, {"reporters": 15, "quorum": 15}, {"freshness": 60}, {"freshness": 86_400}],
    ids=str,
)
def test_an_oracle_at_its_bounds_is_deployed(world, arguments):
    _oracle(world, **arguments)


# DataCredits


def _exit_root(w, account: str, granted: int, exited_total: int):
    """An epoch whose exit root grants ``granted`` DC to ``account`` and which says it exits ``exited_total``."""
    w.deposit_dc("alice", BCT)
    root = w.exit_leaf(account, granted)
    w.settle(w.closing(0, exit_root=root, exited_total=exited_total))


@case("DataCredits", "NotTransferable")
def _(w):
    w.send("alice", "DataCredits", "transfer", w.address("bob"), 0)


@case("DataCredits", "TooFewCredits")
def _(w):
    w.fund("alice", BCT)
    w.send("alice", "BCT", "approve", w.at["DataCredits"], BCT)
    w.send("alice", "DataCredits", "mint", BCT, 100_001)


@case("DataCredits", "ZeroAmount")
def _(w):
    w.send("alice", "DataCredits", "requestExit", 0)


@case("DataCredits", "NotSettlement")
def _(w):
    w.send("poster", "DataCredits", "settle", 0, 0, 0, bytes(32))


@case("DataCredits", "NotCovered")
def _(w):
    w.deploy("DataCredits", w.at["BCT"], w.at["PriceOracle"], w.address("settlement"))
    w.send("settlement", "DataCredits", "settle", 0, 1, 0, bytes(32))


@case("DataCredits", "NotRequested")
def _(w):
    w.send("alice", "DataCredits", "requestExit", 5)
    w.send("alice", "DataCredits", "claimExit", w.address("alice"), 6, [])


@case("DataCredits", "ExitNotDue")
def _(w):
    w.send("alice", "DataCredits", "requestExit", 5)
    w.send("alice", "DataCredits", "claimExit", w.address("alice"), 5, [])


@case("DataCredits", "WrongProof")
def _(w):
    w.send("alice", "DataCredits", "requestExit", 6)
    _exit_root(w, "alice", 5, 5)
    w.send("alice", "DataCredits", "claimExit", w.address("alice"), 6, [])


@case("DataCredits", "NothingToPay")
def _(w):
    w.send("alice", "DataCredits", "requestExit", 5)
    _exit_root(w, "alice", 5, 5)
    w.send("alice", "DataCredits", "claimExit", w.address("alice"), 5, [])
    w.send("alice", "DataCredits", "claimExit", w.address("alice"), 5, [])


@case("DataCredits", "AboveExited")
def _(w):
    w.send("alice", "DataCredits", "requestExit", 5)
    _exit_root(w, "alice", 5, 4)
    w.send("alice", "DataCredits", "claimExit", w.address("alice"), 5, [])


@case("DataCredits", "ERC20InsufficientBalance")
def _(w):
    w.send("alice", "DataCredits", "deposit", 1)


@case("DataCredits", "ERC20InsufficientAllowance")
def _(w):
    w.fund("alice", BCT)
    w.send("alice", "DataCredits", "mint", BCT, 0)


@case("DataCredits", "ERC20InvalidApprover")
def _(w):
    w.send(NOBODY, "DataCredits", "mint", 0, 0)


@case("DataCredits", "ERC20InvalidSender")
def _(w):
    w.send(NOBODY, "DataCredits", "deposit", 1)


@case("DataCredits", "ERC20InvalidReceiver")
def _(w):
    w.send(NOBODY, "DataCredits", "requestExit", 5)
    _exit_root(w, NOBODY, 5, 5)
    w.send("anybody", "DataCredits", "claimExit", NOBODY, 5, [])


# GpuNFT


def _register(w, holder: str = "alice", gpu: int = 7, serial: bytes = b"\x07" * 32, by: str = "registrar"):
    w.send(by, "GpuNFT", "register", w.address(holder) if holder else NOBODY, gpu, serial, AGREEMENT)


@case("GpuNFT", "NotRegistrar")
def _(w):
    _register(w, by="owner")


@case("GpuNFT", "SerialTaken")
def _(w):
    _register(w)
    _register(w, gpu=8)


@case("GpuNFT", "NoGpu")
def _(w):
    _register(w, gpu=0)


@case("GpuNFT", "NoOperator")
def _(w):
    _register(w)
    w.send("registrar", "GpuNFT", "setHosting", 7, (*AGREEMENT[:2], NOBODY, 0))


@case("GpuNFT", "ERC721NonexistentToken")
def _(w):
    w.send("registrar", "GpuNFT", "setHosting", 7, AGREEMENT)


@case("GpuNFT", "ERC721InvalidSender")
def _(w):
    _register(w)
    _register(w, serial=b"\x08" * 32)


@case("GpuNFT", "ERC721InvalidReceiver")
def _(w):
    _register(w, holder="")


@case("GpuNFT", "ERC721IncorrectOwner")
def _(w):
    _register(w)
    w.send("alice", "GpuNFT", "transferFrom", w.address("bob"), w.address("carol"), 7)


@case("GpuNFT", "ERC721InsufficientApproval")
def _(w):
    _register(w)
    w.send("bob", "GpuNFT", "transferFrom", w.address("alice"), w.address("bob"), 7)


@case("GpuNFT", "ERC721InvalidApprover")
def _(w):
    _register(w)
    w.send("bob", "GpuNFT", "approve", w.address("bob"), 7)


@case("GpuNFT", "ERC721InvalidOperator")
def _(w):
    w.send("alice", "GpuNFT", "setApprovalForAll", NOBODY, True)


@case("GpuNFT", "ERC721InvalidOwner")
def _(w):
    w.view("GpuNFT", "balanceOf", NOBODY)


@case("GpuNFT", "OwnableUnauthorizedAccount")
def _(w):
    w.send("registrar", "GpuNFT", "setRegistrar", w.address("friend"), True)


@case("GpuNFT", "OwnableInvalidOwner")
def _(w):
    w.deploy("GpuNFT", NOBODY, w.address("registrar"), "")


# Settlement


def _post(w, closing: tuple[Any, ...] | None = None):
    closing = closing or w.closing(0)
    w.wait_for(w.view("Settlement", "endOf", closing[0]))
    w.send("poster", "Settlement", "post", closing)
    return closing


def _dispute(w, epoch: int = 0, by: str = "auditor"):
    w.fund(by, 10 * BCT)
    w.send(by, "BCT", "approve", w.at["Settlement"], 10 * BCT)
    w.send(by, "Settlement", "dispute", epoch)


def _payable(w, granted: int = 9, paid: int = 10):
    """A finalised epoch that pays ``paid`` wei, whose only leaf grants ``granted`` wei to alice."""
    w.deposit_dc("alice", BCT)
    w.settle(w.closing(0, paid=paid, burned_dc=100, payout_root=w.payout_leaf(GPU, "alice", granted)))


def _claim(w, amount: int, holder: str = "alice"):
    w.send("anybody", "Settlement", "claim", w.address(holder), [(GPU, amount, [])])


@case("Settlement", "WrongDeployment")
def _(w):
    people = (w.address("poster"), w.address("stakers"), 1000, BCT)
    w.deploy("Settlement", w.address("owner"), w.at["BCT"], w.at["DataCredits"], (w.now, 600, 60, 1, 1), *people)


@case("Settlement", "OutOfBounds")
def _(w):
    w.send("owner", "Settlement", "setStakeBps", 199)


@case("Settlement", "ZeroAddress")
def _(w):
    w.send("owner", "Settlement", "setStakers", NOBODY)


@case("Settlement", "OwnableUnauthorizedAccount")
def _(w):
    w.send("poster", "Settlement", "setPoster", w.address("friend"))


@case("Settlement", "OwnableInvalidOwner")
def _(w):
    people = (w.address("poster"), w.address("stakers"), 1000, BCT)
    w.deploy("Settlement", NOBODY, w.at["BCT"], w.at["DataCredits"], (w.now, 600, 60, 1, 1), *people)


@case("Settlement", "NotPoster")
def _(w):
    w.send("owner", "Settlement", "post", w.closing(0))


@case("Settlement", "OutOfOrder")
def _(w):
    w.send("poster", "Settlement", "post", w.closing(1))


@case("Settlement", "NotOver")
def _(w):
    w.send("poster", "Settlement", "post", w.closing(0))


@case("Settlement", "WrongStake")
def _(w):
    _post(w, w.closing(0, paid=1000, stake=99, rewards=901))


@case("Settlement", "AboveValue")
def _(w):
    _post(w, w.closing(0, paid=10**13 + 1, burned_dc=1))


@case("Settlement", "Refused")
def _(w):
    _post(w, w.closing(0, burned_dc=1))


@case("Settlement", "NotPosted")
def _(w):
    w.send("anybody", "Settlement", "finalise", w.closing(0))


@case("Settlement", "WrongClosing")
def _(w):
    _post(w)
    w.pass_time(60)
    w.send("anybody", "Settlement", "finalise", w.closing(0, file=b"\x01" * 32))


@case("Settlement", "WindowOpen")
def _(w):
    closing = _post(w)
    w.pass_time(59)
    w.send("anybody", "Settlement", "finalise", closing)


@case("Settlement", "WindowClosed")
def _(w):
    _post(w)
    w.pass_time(60)
    _dispute(w)


@case("Settlement", "UnderDispute")
def _(w):
    closing = _post(w)
    _dispute(w)
    w.pass_time(60)
    w.send("anybody", "Settlement", "finalise", closing)


@case("Settlement", "NoDispute")
def _(w):
    _post(w)
    w.send("owner", "Settlement", "resolve", 0, True)


@case("Settlement", "WrongProof")
def _(w):
    _payable(w)
    _claim(w, 9, holder="bob")


@case("Settlement", "NothingToClaim")
def _(w):
    _payable(w)
    _claim(w, 9)
    _claim(w, 9)


@case("Settlement", "AbovePromised")
def _(w):
    _payable(w, granted=10)
    _claim(w, 10)


def test_a_second_dispute_and_the_bond_of_a_live_one_wait(world, reverts):
    _post(world)
    _dispute(world)
    with reverts("UnderDispute"):
        _dispute(world, by="second")
    with reverts("UnderDispute"):
        world.send("auditor", "Settlement", "reclaimBond", 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"epoch_seconds": 0},
        {"epoch_seconds": 30 * 86_400 + 1},
        {"window_seconds": 0},
        {"window_seconds": 30 * 86_400 + 1},
        {"supply": 0},
        {"supply": 2**96},
        {"epochs": 0},
        {"epochs": 100_001},
        {"stake_bps": 199},
        {"stake_bps": 1001},
        {"bond": BCT - 1},
        {"bond": 1_000_000 * BCT + 1},
        {"start": 1},
        {"start": 2**63},
    ],
    ids=str,
)
def test_a_settlement_outside_its_bounds_is_not_deployed(new_world, settings, reverts):
    with reverts("OutOfBounds"):
        new_world(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"epoch_seconds": 1, "window_seconds": 1},
        {"epoch_seconds": 30 * 86_400, "window_seconds": 30 * 86_400},
        {"supply": 1, "epochs": 1},
        {"supply": 2**96 - 1, "epochs": 100_000},
        {"stake_bps": 200, "bond": BCT},
        {"stake_bps": 1000, "bond": 1_000_000 * BCT},
    ],
    ids=str,
)
def test_a_settlement_at_its_bounds_is_deployed(new_world, settings):
    deployed = new_world(**settings)
    assert deployed.view("Settlement", "emission", 0) >= 1
