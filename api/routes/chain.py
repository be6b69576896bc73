"""What a person may do about the chain: let the indexer go on once it has halted."""

from fastapi import APIRouter

from api import schemas
from api.chain_jobs import ChainJobs
from api.deps import AdminDep, PlaneDep
from api.errors import Conflict, NotFound
from ledger.chain.errors import StillHalted
from ledger.chain.index import Index

router = APIRouter(prefix="/v1/chain", tags=["chain"])


@router.post("/resume", summary="Follow the chain again after a halt (admin key)")
def resume(plane: PlaneDep, _admin: AdminDep) -> schemas.ChainHealth:
    if plane.chain is None:
        raise NotFound("this control plane has no chain; FABRIC_CHAIN_URL and FABRIC_CHAIN_ADDRESSES name one")
    try:
        ChainJobs(plane).resume()
    except StillHalted as halted:
        raise Conflict(
            f"still halted: {halted}; point FABRIC_CHAIN_URL at a node of the chain that was final"
        ) from None
    with plane.database.read() as session:
        found = Index(session).status()
    if found is None:
        raise NotFound("nothing of the chain was read yet; there is nothing to resume")
    return schemas.ChainHealth(chain_id=found.chain_id, tip=found.tip, final=found.final, halted=found.halted)
