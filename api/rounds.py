"""Challenges of GPUs: when a round begins, what is asked next, how an answer is judged (`fabric.wire.challenge`).

A round goes to all idle GPUs of one operator. Each step waits for all of them: they start in the same moment, and the
key comes when the last has committed, so one GPU cannot answer for several, neither in turns nor from one memory. All
of it is rows; any control plane may do the next step. A lease that comes meanwhile ends the GPU's challenge.

What a GPU's results mean is `api.standing`'s business.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from random import Random

import structlog
from sqlalchemy import select
from sqlmodel import Session, col

from api import locks, standing
from api.database import say
from api.fleets import note_change
from api.ledger_jobs import clock_of
from api.lifecycle import NEAR_SILENT_MS
from api.plane import Plane
from api.signals import CAPACITY, cluster_topic
from api.tables import ClusterRow, GpuRow, LeaseGpuRow, LeaseRow, NodeRow, OperatorRow
from api.verification_tables import ChallengeRow, StandingRow, VerifyPlanRow
from api.verified import PASSED, standing_of
from fabric.wire import link
from fabric.wire.bands import plan_for
from fabric.wire.challenge import OPENED, Opening, Plan, Referee
from fabric.wire.ids import new_id

_log = structlog.get_logger(__name__)

PREPARE_MS = 60_000
"""So long a prover may take to start and to take its memory; nothing is timed then."""
FIRST_MS = (10_000, 60_000)
"""A GPU that is new is challenged after about so long."""
LEAST_APART_MS = 60_000
_SHARED = b"fabric-challenge-shared\0"


class Stage(StrEnum):
    """What a challenge waits for, or how it ended."""

    PREPARE = "prepare"  # the prover takes its memory
    READY = "ready"  # and waits for the others
    FILL = "fill"
    FILLED = "filled"
    DIGEST = "digest"
    OPEN = "open"
    PASSED = "passed"
    FAILED = "failed"
    CANCELLED = "cancelled"  # a lease came


_ASKED = {Stage.PREPARE, Stage.FILL, Stage.DIGEST, Stage.OPEN}
_LIVE = (Stage.PREPARE, Stage.READY, Stage.FILL, Stage.FILLED, Stage.DIGEST, Stage.OPEN)
_WAIT_FOR_ALL = {Stage.PREPARE: Stage.READY, Stage.FILL: Stage.FILLED}


def sweep(plane: Plane, random: Random) -> None:
    """Begin what is due, end what is late, go on where all have answered; about once a second."""
    if not plane.settings.challenges:
        return
    with plane.database.write() as session:
        if locks.hold(plane, session, "challenges") is None:
            return
        _cancel_leased(plane, session)
        _end_late(plane, session)
        refresh_levels(plane, session)
        for name in list(session.scalars(_live(ChallengeRow.round).distinct())):
            _go_on(plane, session, name)
        for operator in list(session.scalars(select(OperatorRow.id))):  # type: ignore[call-overload]
            _begin_due(plane, session, operator, random)


def challenge_soon(session: Session, now_ms: int, operators: Iterable[str], random: Random) -> None:
    """Let these operators be challenged shortly: something about them is in doubt."""
    for operator in operators:
        plan = session.get(VerifyPlanRow, operator) or VerifyPlanRow(operator=operator, due_ms=2**62)
        plan.due_ms = min(plan.due_ms, now_ms + random.randint(*FIRST_MS))
        session.add(plan)
    session.flush()


def to_send(session: Session, cluster: str) -> list[tuple[tuple[str, ...], link.Prove]]:
    """The steps that a cluster's agent is to be asked now."""
    query = select(ChallengeRow).where(col(ChallengeRow.cluster) == cluster, col(ChallengeRow.stage).in_(_ASKED))
    return [(("prove", row.id, row.stage), _prove(row)) for row in session.scalars(query)]


def heard(plane: Plane, cluster: str, answer: link.Proved) -> None:
    """An agent's answer to one step; what is too late, or not asked, changes nothing."""
    now = plane.now_ms()
    with plane.database.read() as session:
        row = session.get(ChallengeRow, answer.challenge)
        if row is None or row.cluster != cluster or row.stage != answer.step:
            return
        session.expunge(row)
    problem = answer.error
    if not problem and answer.step == Stage.OPEN:
        problem = _judge(row, answer.openings)  # seconds of work, so before the transaction
    with plane.database.write() as session:
        row = session.get_one(ChallengeRow, answer.challenge)
        if row.stage == answer.step:
            _take(plane, session, row, answer, problem, now)
            _go_on(plane, session, row.round)


def _take(plane: Plane, session: Session, row: ChallengeRow, answer: link.Proved, problem: str, now: int) -> None:
    plan = Plan(**row.plan)
    if problem and _leased_since(session, row):
        _cancel(plane, row)
    elif problem:
        _fail(plane, session, row, problem, wrong=not answer.error)
    elif answer.step == Stage.PREPARE:
        row.stage, row.ready_ms = Stage.READY, now
    elif answer.step == Stage.FILL:
        row.stage, row.filled_ms, row.root = Stage.FILLED, now, answer.root
        _check_time(plane, session, row, now - (row.begun_ms or 0), plan.fill_limit_ms, plan.fill_least_ms)
    elif answer.step == Stage.DIGEST:
        row.stage, row.digested_ms, row.keyed_root = Stage.OPEN, now, answer.root
        row.indices = [secrets.randbelow(plan.blocks) for _ in range(OPENED)]
        _check_time(plane, session, row, now - (row.keyed_ms or 0), plan.digest_limit_ms, 0)
    else:
        _pass(plane, session, row, now)
    session.add(row)
    session.flush()
    say(session, cluster_topic(row.cluster))


def _check_time(plane: Plane, session: Session, row: ChallengeRow, took_ms: int, limit_ms: int, least_ms: int) -> None:
    what = "the product" if row.stage == Stage.FILLED else "the digests of its memory"
    if took_ms > limit_ms:
        _fail(plane, session, row, f"{what} took {took_ms} ms; the model needs at most {limit_ms}", wrong=False)
    elif took_ms < least_ms:
        _fail(plane, session, row, f"{what} took {took_ms} ms; the model needs at least {least_ms}", wrong=True)


def _judge(row: ChallengeRow, openings: Sequence[link.BlockOpening]) -> str:
    plan = Plan(**row.plan)
    shown = [
        Opening(one.index, one.block, one.digests, tuple(one.path), one.keyed, tuple(one.keyed_path))
        for one in openings
    ]
    referee = Referee(_shared(row.round), plan.edge, secrets.token_bytes(32))
    return referee.problem(plan, row.seed, row.key, row.root, row.keyed_root, row.indices, shown)


def _go_on(plane: Plane, session: Session, name: str) -> None:
    """The next step of a round, where nobody is waited for any more."""
    rows = list(session.scalars(_live(ChallengeRow).where(col(ChallengeRow.round) == name)))
    stages = {row.stage for row in rows}
    now = plane.now_ms()
    if stages == {Stage.READY}:
        for row in rows:
            row.stage, row.begun_ms = Stage.FILL, now
    elif stages == {Stage.FILLED}:
        for row in rows:
            row.stage, row.keyed_ms, row.key = Stage.DIGEST, now, secrets.token_bytes(32)
    else:
        return
    session.add_all(rows)
    session.flush()
    say(session, *{cluster_topic(row.cluster) for row in rows})


def _end_late(plane: Plane, session: Session) -> None:
    now = plane.now_ms()
    for row in list(session.scalars(_live(ChallengeRow))):
        plan = Plan(**row.plan)
        since, limit_ms = {
            Stage.PREPARE: (row.prepared_ms, PREPARE_MS),
            Stage.FILL: (row.begun_ms, plan.fill_limit_ms),
            Stage.DIGEST: (row.keyed_ms, plan.digest_limit_ms),
            Stage.OPEN: (row.digested_ms, plan.open_limit_ms),
        }.get(Stage(row.stage), (None, 0))
        if since is not None and now - since > limit_ms:
            _fail(plane, session, row, f"no answer to {row.stage!r} within {limit_ms} ms", wrong=False)


def _cancel_leased(plane: Plane, session: Session) -> None:
    for row in list(session.scalars(_live(ChallengeRow))):
        if _leased_since(session, row):
            _cancel(plane, row)
            session.add(row)
    session.flush()


def _cancel(plane: Plane, row: ChallengeRow) -> None:
    row.stage, row.ended_ms, row.reason = Stage.CANCELLED, plane.now_ms(), "a lease came"
    _cost(row)


def _leased_since(session: Session, row: ChallengeRow) -> bool:
    """Whether the GPU was leased after the challenge began, be it over again: the prover had to leave."""
    leases = select(LeaseRow.id).join(LeaseGpuRow, col(LeaseGpuRow.lease) == col(LeaseRow.id))  # type: ignore[call-overload]
    leases = leases.where(col(LeaseGpuRow.gpu) == row.gpu, col(LeaseRow.granted_ms) >= row.prepared_ms)
    return session.scalar(leases.limit(1)) is not None


def _pass(plane: Plane, session: Session, row: ChallengeRow, now: int) -> None:
    row.stage, row.ended_ms = PASSED, now
    _stand(plane, session, row, standing.passed(standing_of(session, row.gpu), row.begun_ms or now))
    _log.info("GPU verified", gpu=row.gpu_id, operator=row.operator, cost_gpu_ms=row.cost_gpu_ms)


def _fail(plane: Plane, session: Session, row: ChallengeRow, reason: str, *, wrong: bool) -> None:
    row.stage, row.reason, row.ended_ms = Stage.FAILED, reason, plane.now_ms()
    before = standing_of(session, row.gpu)
    _stand(plane, session, row, standing.failed(before, row.ended_ms, reason, wrong=wrong))
    session.add(row)
    session.flush()
    _log.warning("GPU not verified", gpu=row.gpu_id, operator=row.operator, reason=reason)


def _stand(plane: Plane, session: Session, row: ChallengeRow, now_stands: standing.Standing) -> None:
    _cost(row)
    known = session.get(StandingRow, row.gpu) or StandingRow(gpu=row.gpu, level=0, strikes=0, in_a_row=0)
    for name in ("strikes", "in_a_row", "passed_ms", "failed_ms", "reason"):
        setattr(known, name, getattr(now_stands, name))
    known.cost_gpu_ms = row.cost_gpu_ms
    session.add(known)
    _set_level(plane, session, known, row.cluster, row.node, changed=True)


def refresh_levels(plane: Plane, session: Session) -> None:
    """Bring down the levels that were not confirmed lately."""
    epoch_ms = plane.ledger_settings.epoch_ms
    stale = plane.now_ms() - standing.FRESH_EPOCHS * epoch_ms
    query = select(StandingRow, GpuRow).join(GpuRow, col(GpuRow.uuid) == col(StandingRow.gpu))
    for row, gpu in list(session.execute(query.where(col(StandingRow.level) > 1, col(StandingRow.passed_ms) < stale))):
        _set_level(plane, session, row, gpu.cluster, gpu.node, changed=False)


def _set_level(plane: Plane, session: Session, row: StandingRow, cluster: str, node: str, *, changed: bool) -> None:
    stands = standing.Standing(row.strikes, row.in_a_row, row.passed_ms, row.failed_ms, row.reason)
    level = standing.level(stands, plane.now_ms(), plane.ledger_settings.epoch_ms)
    if level != row.level or changed:
        row.level = level
        session.add(row)
        note_change(session, plane.now_ms(), cluster, [node])
        say(session, CAPACITY)
    session.flush()


def _cost(row: ChallengeRow) -> None:
    """For how long the GPU was busy, as seen from here: from its start until the last step's answer or end."""
    if row.begun_ms is not None and row.ended_ms is not None:
        row.cost_gpu_ms = row.ended_ms - row.begun_ms


def _begin_due(plane: Plane, session: Session, operator: str, random: Random) -> None:
    now = plane.now_ms()
    plan = session.get(VerifyPlanRow, operator)
    if session.scalar(_live(ChallengeRow.id).where(col(ChallengeRow.operator) == operator).limit(1)) is not None:
        return
    idle = _idle(session, operator, now)
    if plan is None:
        if idle:
            challenge_soon(session, now, [operator], random)
        return
    if plan.due_ms > now:
        _hasten(plane, session, plan, idle, random)
    elif idle:
        _begin(plane, session, operator, idle)
        plan.due_ms = _next_epoch(plane, now, random)
        session.add(plan)


def _hasten(plane: Plane, session: Session, plan: VerifyPlanRow, idle: Sequence[GpuRow], random: Random) -> None:
    """Come earlier for an idle GPU that has not passed in this epoch, if there is still time in it."""
    clock, now = clock_of(plane), plane.now_ms()
    epoch = clock.at(now)
    end, length = clock.end(epoch), plane.ledger_settings.epoch_ms
    if plan.due_ms < end - length // 20:
        return
    wants = any((standing_of(session, gpu.uuid).passed_ms or 0) < clock.start(epoch) for gpu in idle)
    due = now + max(min(LEAST_APART_MS, length // 4), random.randint(length // 50, length // 10))
    if wants and due < end - length // 20:
        plan.due_ms = due
        session.add(plan)
        session.flush()


def _next_epoch(plane: Plane, now: int, random: Random) -> int:
    clock, length = clock_of(plane), plane.ledger_settings.epoch_ms
    return clock.end(clock.at(now)) + random.randint(length // 20, length * 4 // 5)


def _begin(plane: Plane, session: Session, operator: str, idle: Sequence[GpuRow]) -> None:
    now, name = plane.now_ms(), new_id("round")
    for gpu in idle:
        plan = plan_for(gpu.model, gpu.memory_bytes, simulated=gpu.simulated, measured=plane.bands)
        session.add(
            ChallengeRow(
                id=new_id("chl"),
                round=name,
                operator=operator,
                cluster=gpu.cluster,
                node=gpu.node,
                gpu=gpu.uuid,
                gpu_id=gpu.id,
                stage=Stage.PREPARE,
                plan={field: getattr(plan, field) for field in Plan.__dataclass_fields__},
                seed=secrets.token_bytes(32),
                prepared_ms=now,
            )
        )
    session.flush()
    say(session, *{cluster_topic(gpu.cluster) for gpu in idle})


def _idle(session: Session, operator: str, now: int) -> list[GpuRow]:
    """The operator's GPUs that could be leased now and are not."""
    query = (
        select(GpuRow)
        .join(ClusterRow, col(ClusterRow.id) == col(GpuRow.cluster))
        .join(NodeRow, (col(NodeRow.cluster) == col(GpuRow.cluster)) & (col(NodeRow.name) == col(GpuRow.node)))
        .where(
            col(GpuRow.operator) == operator,
            col(GpuRow.present),
            col(GpuRow.healthy),
            col(GpuRow.used_milli) == 0,
            col(NodeRow.present),
            ~col(NodeRow.lost),
            col(ClusterRow.connected),
            col(ClusterRow.last_heard_ms) > now - NEAR_SILENT_MS,
        )
        .order_by(col(GpuRow.uuid))
    )
    return list(session.scalars(query))


def _prove(row: ChallengeRow) -> link.Prove:
    """Nothing is told before its step."""
    stage = Stage(row.stage)
    filling, digesting, opening = stage is Stage.FILL, stage is Stage.DIGEST, stage is Stage.OPEN
    return link.Prove(
        challenge=row.id,
        node=row.node,
        gpu=row.gpu,
        step=stage.value,  # type: ignore[arg-type]
        plan=link.ChallengePlan(edge=row.plan["edge"], blocks=row.plan["blocks"]),
        seed=row.seed if filling else b"",
        shared=_shared(row.round) if filling else b"",
        key=row.key if digesting else b"",
        indices=row.indices if opening else [],
    )


def _shared(name: str) -> bytes:
    """The seed of B, one for a round. Its name is random, and known to agents only with the seeds."""
    return _SHARED + name.encode()


def _live(what: type[ChallengeRow] | Callable[..., object] | object):  # noqa: ANN202 - SQLAlchemy's own type
    return select(what).where(col(ChallengeRow.stage).in_(_LIVE))  # type: ignore[call-overload]
