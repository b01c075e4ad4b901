"""Who may ask: the token, and the names of the host that a server on this machine alone answers to."""

from __future__ import annotations

import hashlib
import hmac
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from gptask.serving.http.http_errors import ApiError
from gptask.serving.state import ServerState

OPEN_PATHS = {"/health", "/"}  # without a token: whether the process lives, and the page, which asks for the token
OPEN_FOLDER = "/static/"  # the page's files


class Access:
    """Refuses requests without the server's token.

    Without a token, a server on a loopback address refuses requests under other host names: a web page whose name its
    owner points at 127.0.0.1 (DNS rebinding) could read the answers in a visitor's browser.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app = app
        self.digest = hashlib.sha256(state.token.encode()).digest() if state.token else None
        host = state.options.host.strip("[]").lower()
        self.hosts = {host, "localhost", "127.0.0.1", "::1"} if is_loopback(host) and not self.digest else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for who may ask."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            if self.hosts is not None and b"host" in headers:
                self._check_host(headers[b"host"].decode("latin-1"))
            is_open = scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER)
            if self.digest is not None and not is_open:
                self._check_token(headers.get(b"authorization", b""), self.digest)
        await self.app(scope, receive, send)

    def _check_host(self, header: str) -> None:
        name = header.partition("]")[0] if header.startswith("[") else header.partition(":")[0]
        if name.strip("[").lower() not in (self.hosts or ()):
            raise ApiError(
                421,
                f"this server answers to localhost and 127.0.0.1, not to the host {header[:60]!r}; "
                "set a token (token_env or token_file) to serve it under other names",
            )

    def _check_token(self, header: bytes, digest: bytes) -> None:
        scheme, _, token = header.partition(b" ")
        # of digests, so that the time tells nothing of the token, its length included
        is_equal = hmac.compare_digest(hashlib.sha256(token.strip()).digest(), digest)
        if not is_equal or scheme.lower() != b"bearer":
            problem = "the token is wrong" if header else "a token is needed"
            raise ApiError(
                401,
                f"{problem}: send the header Authorization: Bearer <token>",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def is_loopback(host: str) -> bool:
    """Whether a server that listens on an address or name is reached from its own machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
