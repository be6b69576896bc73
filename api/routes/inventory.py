"""GPUs by their public id, and operators; no account is needed."""

from fastapi import APIRouter
from sqlalchemy import func
from sqlmodel import Session, col, select

from api import schemas
from api.commitments import is_draining
from api.conditions import Viewer
from api.deps import PlaneDep, ReadSession, Token, caller_of
from api.errors import NotFound
from api.lifecycle import NEAR_SILENT_MS
from api.plane import Plane
from api.tables import ClusterRow, GpuRow, NodeRow, OperatorRow, SessionKeyRow
from api.verification_tables import StandingRow

router = APIRouter(prefix="/v1", tags=["inventory"])


@router.get("/gpus", summary="Every GPU that was ever offered, by public id")
def gpus(plane: PlaneDep, session: ReadSession, token: Token, after: str = "", limit: int = 500) -> schemas.Gpus:
    viewer = _viewer(plane, session, token)
    query = select(GpuRow).where(col(GpuRow.id) > after).order_by(col(GpuRow.id)).limit(min(max(limit, 1), 1000))
    return schemas.Gpus(gpus=[_gpu(session, row, plane.now_ms(), viewer) for row in session.exec(query)])


@router.get("/gpus/{gpu_id}", summary="One GPU")
def gpu(plane: PlaneDep, session: ReadSession, token: Token, gpu_id: str) -> schemas.Gpu:
    row = session.exec(select(GpuRow).where(col(GpuRow.id) == gpu_id.lower())).first()
    if row is None:
        raise NotFound(f"there is no GPU {gpu_id}; ids are keccak256 of the UUID, 0x and 64 hexadecimal digits")
    return _gpu(session, row, plane.now_ms(), _viewer(plane, session, token))


@router.get("/operators", summary="Every operator, with the keys that verify its receipts")
def operators(plane: PlaneDep, session: ReadSession) -> schemas.Operators:
    rows = session.exec(select(OperatorRow).order_by(col(OperatorRow.id)))
    return schemas.Operators(operators=[_operator(session, row, plane.now_ms()) for row in rows])


def _viewer(plane: Plane, session: Session, token: str | None) -> Viewer:
    """No account is needed; who has one may see more."""
    return Viewer(session, caller_of(plane, token).customer if token else "")


def _gpu(session: Session, row: GpuRow, now_ms: int, viewer: Viewer) -> schemas.Gpu:
    condition = viewer.condition(row)
    node = session.get(NodeRow, (row.cluster, row.node))
    cluster = session.get_one(ClusterRow, row.cluster)
    up = _live(cluster, now_ms) and node is not None and node.present and not node.lost
    up = up and not is_draining(session, row.cluster, row.node)
    return schemas.Gpu(
        id=row.id,
        operator=row.operator,
        operator_name=session.get_one(OperatorRow, row.operator).name,
        region=node.region if node else "",
        vendor=row.vendor,
        model=row.model,
        memory_bytes=row.memory_bytes,
        simulated=row.simulated,
        healthy=row.healthy,
        offered=up and row.present and row.healthy,
        used_milli=row.used_milli,
        verification=_verification(session, row.uuid),
        condition=schemas.Condition.model_validate(condition) if condition is not None else None,
    )


def _verification(session: Session, gpu: str) -> schemas.Verification:
    row = session.get(StandingRow, gpu) or StandingRow(gpu=gpu, level=0, strikes=0, in_a_row=0)
    return schemas.Verification(
        level=row.level,
        passed_at_ms=row.passed_ms,
        failed_at_ms=row.failed_ms,
        reason=row.reason,
        strikes=row.strikes,
        cost_gpu_ms=row.cost_gpu_ms,
    )


def _operator(session: Session, row: OperatorRow, now_ms: int) -> schemas.Operator:
    clusters = session.exec(select(ClusterRow).where(col(ClusterRow.operator) == row.id))
    keys = session.exec(select(SessionKeyRow).where(col(SessionKeyRow.operator) == row.id))
    count = select(func.count()).select_from(GpuRow).where(col(GpuRow.operator) == row.id, col(GpuRow.present))
    return schemas.Operator(
        id=row.id,
        name=row.name,
        payout=row.payout,
        reputation=row.reputation,
        connected=any(_live(cluster, now_ms) for cluster in clusters),
        gpus=session.exec(count).one(),
        session_keys=[key.public_key for key in keys],
    )


def _live(row: ClusterRow, now_ms: int) -> bool:
    return row.connected and now_ms - row.last_heard_ms < NEAR_SILENT_MS
