"""A wallet that lives in a browser: a page on loopback shows what is to be signed and brings the signature back.

The page answers at an address with a random part, to this machine alone, for one message and a few minutes. What comes
back is checked here: the signature must be the wallet's own over exactly this message.
"""

import json
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from fabric.operator.wallet import WalletError, signer_of
from fabric.wire.delegation import DelegationError, unhex

WAIT_S = 300.0
"""How long a person has to look and sign."""

_MAX_BODY = 4096
_POLL_S = 0.05
_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class BrowserWallet:
    """Signs through whatever wallet the person's browser has (EIP-1193, `eth_signTypedData_v4`).

    Args:
        show: told the page's address, which the person must open.
        wait_s: how long to wait for the signature.
    """

    def __init__(self, show: Callable[[str], None], wait_s: float = WAIT_S) -> None:
        self._show = show
        self._wait_s = wait_s

    def sign(self, typed_data: dict[str, Any]) -> bytes:
        """The 65-byte signature of an EIP-712 message.

        Raises:
            WalletError: nobody signed in time, or the wallet declined.
        """
        page = _Page(typed_data)
        server = ThreadingHTTPServer(("127.0.0.1", 0), page.handler())
        page.host = f"127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(_POLL_S,), daemon=True).start()
        try:
            self._show(f"http://{page.host}{page.path}")
            if not page.over.wait(self._wait_s):
                raise WalletError(f"nobody signed within {self._wait_s:.0f} s; run the command again")
        finally:
            server.shutdown()
            server.server_close()
        if page.declined:
            raise WalletError(f"the browser's wallet did not sign: {page.declined}")
        return page.signature


class _Page:
    """One message, waiting for its signature."""

    def __init__(self, typed_data: dict[str, Any]) -> None:
        self.typed_data = typed_data
        self.path = f"/{secrets.token_urlsafe(24)}"
        self.host = ""
        self.over = threading.Event()
        self.signature = b""
        self.declined = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if page.knows(self):
                    nonce = secrets.token_urlsafe(16)
                    _answer(self, HTTPStatus.OK, page.html(nonce), "text/html; charset=utf-8", nonce)

            def do_POST(self) -> None:
                if page.knows(self):
                    status, text = page.take(self)
                    _answer(self, status, text.encode(), "text/plain; charset=utf-8")
                    if status is HTTPStatus.OK:
                        page.over.set()

            def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the base class's name
                """The page's address is a secret: it goes into no log."""

        return Handler

    def knows(self, request: BaseHTTPRequestHandler) -> bool:
        """Whether the request names the page, and names this machine as its host: no other site's script does both."""
        if secrets.compare_digest(request.path.encode(), self.path.encode()) and request.headers["Host"] == self.host:
            return True
        _answer(request, HTTPStatus.NOT_FOUND, b"nothing here", "text/plain")
        return False

    def html(self, nonce: str) -> bytes:
        template = files("fabric.operator").joinpath("browser_wallet.html").read_text(encoding="utf-8")
        message = json.dumps(self.typed_data).replace("<", "\\u003c")
        return template.replace("@nonce@", nonce).replace("@typed_data@", message).encode()

    def take(self, request: BaseHTTPRequestHandler) -> tuple[HTTPStatus, str]:
        """Keep the answer if it is one; what is wrong with it goes back to the page."""
        try:
            length = int(request.headers.get("Content-Length", ""))
            if not 0 < length <= _MAX_BODY:
                return HTTPStatus.BAD_REQUEST, f"an answer has 1 to {_MAX_BODY} bytes, not {length}"
            members = json.loads(request.rfile.read(length))
            if "declined" in members:
                self.declined = str(members["declined"])[:200]
                return HTTPStatus.OK, "declined"
            address, signature = str(members["address"]), unhex(members["signature"], "signature")
        except (ValueError, KeyError, TypeError, DelegationError) as error:
            return HTTPStatus.BAD_REQUEST, f"that is not a signature: {error}"
        signer = signer_of(self.typed_data, signature)
        if signer.lower() != address.lower():
            return HTTPStatus.BAD_REQUEST, f"that signature is {signer or 'nobody'}'s, not {address}'s; sign again"
        self.signature = signature
        return HTTPStatus.OK, signer


def _answer(
    request: BaseHTTPRequestHandler, status: HTTPStatus, body: bytes, content_type: str, nonce: str = ""
) -> None:
    request.send_response(status)
    request.send_header("Content-Type", content_type)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("Cache-Control", "no-store")
    request.send_header("Referrer-Policy", "no-referrer")
    request.send_header("Content-Security-Policy", _POLICY.format(nonce=nonce) if nonce else "default-src 'none'")
    request.end_headers()
    request.wfile.write(body)
