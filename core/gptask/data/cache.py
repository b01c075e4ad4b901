"""The folder of the cache, and the keys of what it holds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gptask.errors import UserError


def cache_folder() -> Path:
    """The folder of converted backbones and encoded data: ``$GPTASK_CACHE``, else ``~/.cache/gptask``.

    Raises `UserError` where it can't be made.
    """
    folder = Path(os.environ.get("GPTASK_CACHE") or Path.home() / ".cache" / "gptask")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache folder {folder} can't be made ({error.strerror}); set GPTASK_CACHE") from error
    return folder


def digest(text: str) -> str:
    """The first sixteen hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
