"""What starlette has no public form for."""

from __future__ import annotations

from starlette.requests import Request


def body_is_read(request: Request) -> bool:
    """Whether a request's body has been read to its end, so that whoever receives more takes nothing of it away."""
    return request._stream_consumed or hasattr(request, "_body")
