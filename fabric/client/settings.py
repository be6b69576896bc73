"""What a person may set for the SDK in the environment."""

from collections.abc import Mapping
from dataclasses import dataclass

from fabric.wire.errors import InvalidRequest
from fabric.wire.keys import UnknownKey, refuse_unknown


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The SDK's keys; a plain class, because pydantic's settings would double the time `import` takes.

    Attributes:
        url: `FABRIC_URL`, the control plane; empty means the embedded fabric of this machine.
        api_key: `FABRIC_API_KEY`, the account's key.
    """

    url: str = ""
    api_key: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "ClientSettings":
        """Raises InvalidRequest on a `FABRIC_` key that nothing reads, or on a key without its URL."""
        try:
            refuse_unknown(environ)
        except UnknownKey as error:
            raise InvalidRequest(str(error)) from None
        settings = cls(environ.get("FABRIC_URL", ""), environ.get("FABRIC_API_KEY", ""))
        if settings.api_key and not settings.url:
            raise InvalidRequest("FABRIC_API_KEY is set without FABRIC_URL; set the URL of its control plane too")
        return settings
