"""The agents' WebSocket."""

from fastapi import APIRouter, WebSocket

router = APIRouter(prefix="/v1")


@router.websocket("/agent")
async def agent(websocket: WebSocket) -> None:
    await websocket.app.state.agents.serve(websocket)
