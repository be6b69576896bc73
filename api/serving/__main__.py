"""Starts the serving router: `python -P -m api.serving`. Settings come from `FABRIC_` keys of the environment.

It shares `serving.key` in the state directory with the control plane, and a database with nobody.
"""

import os
import sys
import time
from pathlib import Path

import uvicorn
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from api import router_tokens
from api.serving.app import create_app
from api.serving.registry import Registry
from fabric.wire.keys import UnknownKey, refuse_unknown


class Settings(BaseSettings):
    """Every key that a router reads."""

    model_config = SettingsConfigDict(env_prefix="FABRIC_", frozen=True, extra="ignore")

    url: str = Field(description="The control plane.")
    host: str = Field(default="127.0.0.1", description="Address to listen on; loopback unless told otherwise.")
    port: int = Field(default=8710, ge=1, le=65535, description="Port to listen on.")
    state_dir: Path = Field(
        default=Path("fabric-control"), description="The control plane's: `serving.key` lies there."
    )
    serving_idle_s: float = Field(default=60.0, gt=0, description="So long a replica nobody needs is kept.")


def main() -> None:
    """Serve until SIGTERM or SIGINT; replicas are released then."""
    try:
        refuse_unknown(os.environ)
        settings = Settings()  # type: ignore[call-arg]  # the environment has the URL
    except (UnknownKey, ValidationError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    secret = router_tokens.load_secret(settings.state_dir)

    async def serve() -> None:
        registry = Registry(settings.url, secret, lambda: time.time_ns() // 1_000_000, idle_s=settings.serving_idle_s)
        config = uvicorn.Config(
            create_app(registry), host=settings.host, port=settings.port, log_config=None, access_log=False,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        await uvicorn.Server(config).serve()

    import asyncio

    asyncio.run(serve())


if __name__ == "__main__":
    main()
