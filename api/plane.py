"""Everything one control plane process has, built once and handed to whoever needs it: nothing is global."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from nacl.signing import SigningKey
from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from api import keys
from api.blobs import Blobs, Large
from api.database import Database, DatabaseUnusable
from api.database_faults import fault
from api.distances import Distances
from api.fleets import Fleets
from api.logs import Logs
from api.metrics import Metrics
from api.schema import migrate
from api.settings import Settings
from api.signals import Signals
from api.steady import SteadyClock
from api.tables import ClusterRow, FactRow, UptimeRow
from fabric.wire.bands import Band
from fabric.wire.clock import Clock
from fabric.wire.ids import new_id
from ledger.chain.errors import ChainError, Disagreement
from ledger.chain.holders import known_ms
from ledger.chain.settings import ChainSettings
from ledger.pools import PoolRules
from ledger.settings import LedgerSettings
from ledger.store import Ledger

if TYPE_CHECKING:
    from ledger.chain.link import ChainLink  # web3 with it, which a control plane without a chain does not need

_FABRIC_ID, _PAYER_SALT, _GENESIS, _EPOCH_MS = "fabric_id", "payer_salt", "genesis_ms", "epoch_ms"
_SIGNER = "token_key"


@dataclass(frozen=True)
class Plane:
    """The parts that shells share. `life` names this life of the process; `chain` is None where none is configured."""

    settings: Settings
    clock: Clock
    database: Database
    signals: Signals
    blobs: Blobs
    logs: Logs
    metrics: Metrics
    token_key: SigningKey
    fabric_id: str
    payer_salt: bytes
    ledger_settings: LedgerSettings
    chain: "ChainLink | None"
    life: str
    version: str
    bands: Mapping[str, Band]
    distances: Distances
    fleets: Fleets

    def ledger(self, session: Session) -> Ledger:
        """The ledger inside one transaction."""
        return Ledger(session, self.clock, self.ledger_settings, None if self.chain is None else known_ms)

    @property
    def pool_rules(self) -> PoolRules:
        """How slowly pools change."""
        return PoolRules(exit_delay_epochs=self.settings.pool_exit_delay_epochs)

    def now_ms(self) -> int:
        return self.clock.now_ms()


def build(settings: Settings, clock: Clock, chain_settings: ChainSettings | None = None) -> Plane:
    """Open the state directory and the database, migrate it, and put the parts together.

    Raises:
        DatabaseUnusable: corrupt, or of a newer version of this program.
        ChainError: the chain's settings cannot be used; on the first start also when the chain does not answer.
    """
    chain = _link(chain_settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    signals = Signals()
    database = Database(settings.sqlalchemy_url, signals.notify)
    try:
        database.check()
        migrate(database)
        life = new_id("life")
        token_key = keys.load_or_make(settings.state_dir / "token.key")
        steady, facts = _begin(database, clock, life, settings, chain)
        if database.shared:
            token_key = _shared_key(database, token_key)
    except DBAPIError as error:
        database.close()
        raise (error if fault(error) is None else database.unusable(error)) from None
    except BaseException:
        database.close()
        raise
    return Plane(
        settings=settings,
        clock=steady,
        database=database,
        signals=signals,
        blobs=Blobs(
            settings.state_dir / "blobs",
            database,
            steady,
            quota_bytes=settings.blob_quota_bytes,
            large=Large(settings.blob_large_quota_bytes, settings.blob_large_after_dc),
            max_bytes=settings.max_blob_bytes,
        ),
        logs=Logs(settings.state_dir / "logs", database, signals),
        metrics=Metrics(),
        token_key=token_key,
        fabric_id=facts[_FABRIC_ID],
        payer_salt=bytes.fromhex(facts[_PAYER_SALT]),
        ledger_settings=replace(settings.ledger, genesis_ms=int(facts[_GENESIS])),
        chain=chain,
        life=life,
        version=_version(),
        bands=settings.bands,
        distances=Distances(),
        fleets=Fleets(),
    )


def _begin(
    database: Database, clock: Clock, life: str, settings: Settings, chain: "ChainLink | None"
) -> tuple[SteadyClock, dict[str, str]]:
    """Note that a life begins, its clock no earlier than the last one ended; facts are made on the first start."""
    epoch_ms = settings.ledger.epoch_ms
    with database.read() as session:
        last = session.scalar(select(func.max(UptimeRow.last_seen_ms)))  # type: ignore[arg-type]
        known = session.get(FactRow, _GENESIS)
    steady = SteadyClock(clock, not_before_ms=last or 0)
    genesis_ms = _genesis_ms(steady.now_ms(), epoch_ms, chain) if known is None else int(known.value)
    with database.write() as session:
        now = steady.now_ms()
        session.add(UptimeRow(id=life, started_ms=now, last_seen_ms=now))
        if database.is_sqlite:  # one process: whoever was connected to the one before is not
            session.execute(update(ClusterRow).values(connected=False))
        facts = {
            _FABRIC_ID: secrets.token_hex(16),
            _PAYER_SALT: secrets.token_hex(32),
            _GENESIS: str(genesis_ms),
            _EPOCH_MS: str(epoch_ms),
        }
        for name, value in facts.items():
            facts[name] = _fact(session, name, value)
    if facts[_EPOCH_MS] != str(epoch_ms):
        raise DatabaseUnusable(
            f"the epochs of this fabric are {int(facts[_EPOCH_MS]) // 1000} s long, FABRIC_EPOCH_S says "
            f"{settings.epoch_s}; set it back, or use another state directory"
        )
    return steady, facts


def _shared_key(database: Database, own: SigningKey) -> SigningKey:
    """The key of all control planes on one database: the first one's, so that each accepts the others' tokens.

    Whoever may read the database could sign lease tokens with it; they could grant themselves leases there as well.
    """
    with database.write() as session:
        return SigningKey(bytes.fromhex(_fact(session, _SIGNER, bytes(own).hex())))


def _link(settings: ChainSettings | None) -> "ChainLink | None":
    if settings is None or not settings.has_chain:
        return None
    try:
        from ledger.chain.link import ChainLink
    except ModuleNotFoundError as missing:
        raise ChainError(
            f"a chain is configured and {missing.name} is not installed; pip install 'berkeley-compute[chain]'"
        ) from None
    return ChainLink.from_settings(settings)


def _genesis_ms(now_ms: int, epoch_ms: int, chain: "ChainLink | None") -> int:
    """When epoch 0 begins: where the contract says, else with the running stretch of time."""
    if chain is None:
        return now_ms - now_ms % epoch_ms
    genesis_ms = chain.span_s()[0] * 1000
    chain.expect_epochs(genesis_ms, epoch_ms)
    if genesis_ms > now_ms:
        raise Disagreement(f"epoch 0 begins on the chain at second {genesis_ms // 1000}; start the control plane then")
    return genesis_ms


def _fact(session: Session, name: str, value: str) -> str:
    row = session.get(FactRow, name) or FactRow(name=name, value=value)
    session.add(row)
    return row.value


def _version() -> str:
    try:
        return version("berkeley-compute")
    except PackageNotFoundError:
        return "0.1.0"
