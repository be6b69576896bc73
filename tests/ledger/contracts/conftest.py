"""The five contracts deployed on an in-process EVM (pyrevm), with named people and a clock that waits."""

import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyrevm
import pytest
from eth_abi.abi import decode, encode

from fabric.wire import merkle
from fabric.wire.hashing import keccak256
from ledger.contracts import NAMES, artifact

BCT = 10**18
USD = 10**18
DAY = 86_400
GENESIS = 1_000_000 * BCT
SUPPLY = 500_000_000 * BCT
EPOCHS = 2557
T0 = 1_800_000_000
ARTIFACTS = os.environ.get("CONTRACT_ARTIFACTS")  # set by mutants.py: where the mutated contracts lie


def address_of(person: str) -> str:
    return "0x" + keccak256(person.encode())[-20:].hex()


class Reverted(Exception):
    """A call was reverted with the custom error ``name`` and its arguments."""

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        super().__init__(f"{name}{args}")
        self.name = name
        self.arguments = args


def _type(item: dict[str, Any]) -> str:
    if item["type"].startswith("tuple"):
        return "(" + ",".join(map(_type, item["components"])) + ")" + item["type"][5:]
    return item["type"]


def _load(name: str) -> tuple[list[dict[str, Any]], bytes]:
    if ARTIFACTS is None:
        return artifact(name)
    parsed = json.loads((Path(ARTIFACTS) / f"{name}.json").read_text("utf-8"))
    return parsed["abi"], bytes.fromhex(parsed["bytecode"][2:])


class Interface:
    """The ABI of one contract: encodes calls, decodes returns, errors and events."""

    def __init__(self, name: str) -> None:
        abi, self.bytecode = _load(name)
        self.functions = {e["name"]: e for e in abi if e["type"] == "function"}
        self.errors = {self._selector(e): e for e in abi if e["type"] == "error"}
        self.events = {keccak256(self._signature(e).encode()): e for e in abi if e["type"] == "event"}
        self.constructor = next(e for e in abi if e["type"] == "constructor")

    def creation(self, *args: Any) -> bytes:
        return self.bytecode + encode([_type(i) for i in self.constructor["inputs"]], args)

    def call(self, function: str, *args: Any) -> bytes:
        entry = self.functions[function]
        return self._selector(entry) + encode([_type(i) for i in entry["inputs"]], args)

    def returned(self, function: str, data: bytes) -> Any:
        values = decode([_type(o) for o in self.functions[function]["outputs"]], data)
        return values[0] if len(values) == 1 else values or None

    @staticmethod
    def _signature(entry: dict[str, Any]) -> str:
        return entry["name"] + "(" + ",".join(map(_type, entry["inputs"])) + ")"

    @classmethod
    def _selector(cls, entry: dict[str, Any]) -> bytes:
        return keccak256(cls._signature(entry).encode())[:4]


INTERFACES = {name: Interface(name) for name in NAMES}


@dataclass
class Settings:
    """Constructor arguments; a test changes what it is about."""

    reporters: tuple[str, ...] = ("reporter-1", "reporter-2", "reporter-3")
    quorum: int = 2
    freshness: int = 3600
    step_bps: int = 2000
    genesis: int = GENESIS
    start: int = T0
    epoch_seconds: int = 600
    window_seconds: int = 60
    supply: int = SUPPLY
    epochs: int = EPOCHS
    stake_bps: int = 1000
    bond: int = 10 * BCT
    stakers: str = "stakers"


class World:
    """All contracts, deployed in order by ``deployer``; ``send`` moves the state, ``view`` does not."""

    def __init__(self, settings: Settings | None = None) -> None:
        s = self.settings = settings or Settings()
        self.evm = pyrevm.EVM(spec_id="CANCUN")
        self.now = T0
        self.pass_time(0)
        who = address_of
        future = self._future_address(3)
        self.at: dict[str, str] = {}
        self.deploy("PriceOracle", who("owner"), [who(r) for r in s.reporters], s.quorum, s.freshness, s.step_bps)
        self.deploy("BCT", who("treasury"), s.genesis, future)
        self.deploy("DataCredits", self.at["BCT"], self.at["PriceOracle"], future)
        schedule = (s.start, s.epoch_seconds, s.window_seconds, s.supply, s.epochs)
        people = (who("poster"), address_of(s.stakers), s.stake_bps, s.bond)
        self.deploy("Settlement", who("owner"), self.at["BCT"], self.at["DataCredits"], schedule, *people)
        self.deploy("GpuNFT", who("owner"), who("registrar"), "https://fabric.test/gpus/")

    def deploy(self, name: str, *args: Any) -> str:
        """Creates a contract; the latest of a name is the one ``send`` and ``view`` speak to."""
        created = self._try(lambda: self.evm.deploy(address_of("deployer"), INTERFACES[name].creation(*args)), name)
        self.at[name] = created
        return created

    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        self.evm.set_block_env(pyrevm.BlockEnv(timestamp=self.now, number=1))

    def send(self, person: str, contract: str, function: str, *args: Any) -> Any:
        """A transaction by ``person`` (a name, or an address beginning with 0x)."""
        sender = person if person.startswith("0x") else address_of(person)
        data = INTERFACES[contract].call(function, *args)
        raw = self._try(lambda: self.evm.message_call(sender, self.at[contract], data), contract)
        return INTERFACES[contract].returned(function, raw)

    def view(self, contract: str, function: str, *args: Any) -> Any:
        data = INTERFACES[contract].call(function, *args)
        before = self.evm.snapshot()
        try:
            raw = self._call(lambda: self.evm.message_call(address_of("nobody"), self.at[contract], data), contract)
        finally:
            self.evm.revert(before)
        return INTERFACES[contract].returned(function, raw)

    def events(self, contract: str) -> list[str]:
        """Names of the events of ``contract`` in the last transaction, in order."""
        known = INTERFACES[contract].events
        result = self.evm.result
        assert result is not None
        mine = [log for log in result.logs if log.address.lower() == self.at[contract].lower()]
        return [known[bytes.fromhex(log.topics[0].removeprefix("0x"))]["name"] for log in mine]

    def report(self, price: int) -> None:
        """The same price from every reporter."""
        for reporter in self.settings.reporters:
            self.send(reporter, "PriceOracle", "report", price)

    def fund(self, person: str, bct: int) -> None:
        self.send("treasury", "BCT", "transfer", address_of(person), bct)

    def buy_dc(self, person: str, bct: int) -> int:
        self.send(person, "BCT", "approve", self.at["DataCredits"], bct)
        return self.send(person, "DataCredits", "mint", bct, 0)

    @staticmethod
    def closing(epoch: int, paid: int = 0, stake_bps: int = 1000, **fields: Any) -> tuple[Any, ...]:
        """The `Closing` of an epoch that pays ``paid`` wei in all; ``fields`` replace single members."""
        stake = paid * stake_bps // 10_000
        whole = {
            "epoch": epoch,
            "burned_dc": 0,
            "rewards": paid - stake,
            "stake": stake,
            "exited_total": 0,
            "payout_root": merkle.EMPTY_ROOT,
            "exit_root": merkle.EMPTY_ROOT,
            "usage_root": merkle.EMPTY_ROOT,
            "file": merkle.EMPTY_ROOT,
        }
        assert fields.keys() <= whole.keys()
        return tuple((whole | fields).values())

    def deposit_dc(self, person: str, bct: int) -> int:
        """Gives ``person`` ``bct`` wei, burns them to DC and deposits those."""
        self.fund(person, bct)
        dc = self.buy_dc(person, bct)
        self.send(person, "DataCredits", "deposit", dc)
        return dc

    def settle(self, *closings: tuple[Any, ...]) -> None:
        """Posts and finalises: waits for each epoch's end and window, with fresh prices on the way."""
        for closing in closings:
            self.wait_for(self.view("Settlement", "endOf", closing[0]))
            self.send("poster", "Settlement", "post", closing)
            self.pass_time(self.settings.window_seconds)
            assert self.send("anybody", "Settlement", "finalise", closing)

    def wait_for(self, second: int) -> None:
        """Moves the clock to ``second``, if it lies ahead, and reports a dollar just before and at it."""
        if second > self.now:
            self.pass_time(second - 1 - self.now)
            self.report(USD)
            self.pass_time(1)
        self.report(USD)

    @staticmethod
    def payout_leaf(gpu: bytes, holder: str, cumulative: int) -> bytes:
        return merkle.leaf(merkle.tag("fabric.payout.v1"), gpu, bytes.fromhex(address_of(holder)[2:]), cumulative)

    @staticmethod
    def exit_leaf(account: str, cumulative: int) -> bytes:
        raw = account if account.startswith("0x") else address_of(account)
        return merkle.leaf(merkle.tag("fabric.exit.v1"), bytes.fromhex(raw[2:]), cumulative)

    @staticmethod
    def address(person: str) -> str:
        return address_of(person)

    def _try(self, action: Callable[[], Any], contract: str) -> Any:
        before = self.evm.snapshot()
        try:
            result = self._call(action, contract)
        except Reverted:
            self.evm.revert(before)
            raise
        self.evm.commit()
        return result

    def _call(self, action: Callable[[], Any], contract: str) -> Any:
        try:
            return action()
        except RuntimeError as failure:
            text = str(failure)
            if "output: 0x" not in text:
                raise
            raise self._reverted(
                bytes.fromhex(text.partition("output: 0x")[2].split(maxsplit=1)[0]), contract
            ) from None

    @staticmethod
    def _reverted(output: bytes, contract: str) -> Reverted:
        for interface in (INTERFACES[contract], *INTERFACES.values()):
            entry = interface.errors.get(output[:4])
            if entry is not None:
                return Reverted(entry["name"], decode([_type(i) for i in entry["inputs"]], output[4:]))
        return Reverted("0x" + output.hex(), ())

    def _future_address(self, creations: int) -> str:
        nonce = self.evm.basic(address_of("deployer")).nonce + creations
        rlp = bytes([0xD6, 0x94]) + bytes.fromhex(address_of("deployer")[2:]) + bytes([nonce or 0x80])
        return "0x" + keccak256(rlp)[-20:].hex()


@pytest.fixture(scope="session")
def new_world() -> Callable[..., World]:
    """Deploys a fresh set of contracts; keywords are constructor arguments (``Settings``)."""
    return lambda **settings: World(Settings(**settings))


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    """The contracts with a price of one US dollar known."""
    deployed = new_world()
    deployed.report(USD)
    return deployed


@pytest.fixture(scope="session")
def interfaces() -> dict[str, Interface]:
    return INTERFACES


@pytest.fixture(scope="session")
def reverts() -> Callable[..., Any]:
    """A context that expects a custom error by name and, when any are given, its arguments."""

    @contextmanager
    def expecting(name: str, *args: Any):
        with pytest.raises(Reverted) as caught:
            yield
        assert caught.value.name == name, caught.value
        if args:
            assert caught.value.arguments == args

    return expecting
