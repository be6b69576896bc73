"""Tables of what was verified of GPUs: every challenge, and where each GPU stands because of them.

Times are Unix ms by the control plane's clock. `fabric.wire.challenge` says what a challenge is.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Table
from sqlmodel import Field, SQLModel

from ledger.tables import table_of


def _named(name: str) -> Any:
    return name


def _ms() -> Any:
    return Field(default=None, sa_type=BigInteger, nullable=True)


class ChallengeRow(SQLModel, table=True):
    """One challenge of one GPU. Those of one `round` went to all idle GPUs of their operator with the same `begun_ms`.

    `state` is of `api.rounds.Stage`; `gpu_id` the public id; `indices` the blocks to open, "" while nobody may know.
    `cost_gpu_ms` is for how long the GPU was kept busy by it.
    """

    __tablename__ = _named("challenges")
    __table_args__ = (
        Index("challenges_of_gpu", "gpu", "prepared_ms"),
        Index("challenges_in_stage", "stage", "cluster"),
        Index("challenges_passed", "begun_ms"),
        Index("challenges_ended", "ended_ms"),
    )

    id: str = Field(primary_key=True)
    round: str = Field(index=True)
    operator: str = Field(foreign_key="operators.id")
    cluster: str = Field(foreign_key="clusters.id")
    node: str
    gpu: str = Field(foreign_key="gpus.uuid")
    gpu_id: str
    stage: str
    reason: str = ""
    plan: dict[str, Any] = Field(sa_type=JSON)
    seed: bytes
    key: bytes = b""
    indices: list[int] = Field(default_factory=list, sa_type=JSON)
    root: bytes = b""
    keyed_root: bytes = b""
    prepared_ms: int = Field(sa_type=BigInteger)
    ready_ms: int | None = _ms()
    begun_ms: int | None = _ms()
    filled_ms: int | None = _ms()
    keyed_ms: int | None = _ms()
    digested_ms: int | None = _ms()
    ended_ms: int | None = _ms()
    cost_gpu_ms: int = Field(default=0, sa_type=BigInteger)


class StandingRow(SQLModel, table=True):
    """Where a GPU stands: its verification level, what it is held against, and what the last challenges were.

    `strikes` are failures since the last pass: at `api.standing.BOUND` it gets no new lease.
    """

    __tablename__ = _named("gpu_standings")
    __table_args__ = (CheckConstraint("level >= 0 AND strikes >= 0", name="gpu_standings_not_negative"),)

    gpu: str = Field(primary_key=True, foreign_key="gpus.uuid")
    level: int
    strikes: int
    in_a_row: int
    passed_ms: int | None = _ms()
    failed_ms: int | None = _ms()
    reason: str = ""
    cost_gpu_ms: int = Field(default=0, sa_type=BigInteger)


class VerifyPlanRow(SQLModel, table=True):
    """When the next round of an operator is due; drawn at random, so that nobody can be ready for it."""

    __tablename__ = _named("verify_plans")

    operator: str = Field(primary_key=True, foreign_key="operators.id")
    due_ms: int = Field(sa_type=BigInteger)


def verification_tables() -> list[Table]:
    """All tables of this module, in the order in which they can be created."""
    return [table_of(row) for row in (ChallengeRow, StandingRow, VerifyPlanRow)]
