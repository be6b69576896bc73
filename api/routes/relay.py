"""The relay: customers' WebSocket, agents' ends of it, and pings that go the same way."""

from fastapi import APIRouter, Response, WebSocket
from starlette.requests import Request

from api.errors import NotFound

router = APIRouter(prefix="/v1", tags=["relay"])


@router.websocket("/relay")
async def customer(websocket: WebSocket) -> None:
    await websocket.app.state.relay.customer(websocket)


@router.websocket("/relay/{name}")
async def agent(websocket: WebSocket, name: str) -> None:
    await websocket.app.state.relay.agent(websocket, name)


@router.get("/relay/{operator}/{cluster}/ping", status_code=204, summary="Answered after a round trip to the agent")
async def ping(request: Request, operator: str, cluster: str) -> Response:
    if not await request.app.state.relay.ping(f"{operator}/{cluster}"):
        raise NotFound(f"no agent of {operator}/{cluster} is connected to this control plane")
    return Response(status_code=204)
