"""Where converted backbones and encoded data are kept, and the keys they are found by."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gptask.errors import UserError


def cache_folder() -> Path:
    """Where converted backbones and encoded data are kept: ``$GPTASK_CACHE``, else ``~/.cache/gptask``."""
    folder = Path(os.environ.get("GPTASK_CACHE") or Path.home() / ".cache" / "gptask")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache {folder} can't be made ({error.strerror}); set GPTASK_CACHE") from error
    return folder


def digest(text: str) -> str:
    """Sixteen hex digits that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
