"""The page at `/`: try every model of a server in the browser.

Its files lie in `static/`; it shares those that show an explanation with the page of `gptask explain`. They load
nothing but each other, hold no inline script or style, and name each other and the API by relative URLs, so that the
page works under a strict Content-Security-Policy and behind a path prefix.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request, Response

from gptask.analysis.explain import explain_page

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}


def playground_router() -> APIRouter:
    """The routes of the page and its files. They hold nothing of a run, so no token guards them."""
    router = APIRouter(include_in_schema=False)
    for file in page_files():
        path = "/" if file.name == "index.html" else f"/static/{file.name}"
        answer = partial(_answer, file.read_bytes(), MEDIA_TYPES[file.suffix])
        router.add_api_route(path, answer, methods=["GET", "HEAD"])
    return router


def page_files() -> list[Path]:
    """The files of the page."""
    return sorted([*STATIC.iterdir(), *(explain_page.STATIC / name for name in explain_page.SHARED)])


async def _answer(content: bytes, media_type: str, request: Request) -> Response:
    """The file, or 304 where the browser has it: it asks each time, so that a newer gptask shows its own page."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
