"""Write a file completely or leave it as it was."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which knows no nan and no infinity: such a number becomes null."""
    return json.dumps(finite(value), ensure_ascii=False, indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with None for each number that is not finite, and with the names of objects as texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): finite(member) for name, member in value.items()}
    return [finite(member) for member in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any, durable: bool = False) -> None:
    """Write a value as indented JSON, as `write_text` does."""
    write_text(path, json_text(value, indent=2) + "\n", durable)


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a text in UTF-8 as `written_whole` does; a ``durable`` one also survives the loss of power."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
        if durable:
            sync(partial)
    if durable:
        sync(path.parent)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a file to write beside ``path``, then move it there: a reader sees the old file or the new one."""
    partial = path.with_name(f"{path.name}.part")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync(*paths: Path) -> None:
    """Wait until files, and folders with the names in them, are on the disk; Windows has no such call for folders."""
    windows = os.name == "nt"
    for path in paths:
        if windows and path.is_dir():
            continue
        descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlast a loss of power, where its file system can."""
    with suppress(OSError):
        sync(folder)


def share_weights(folder: Path, like: Path) -> None:
    """Give the weights in a folder the mode of another file: safetensors lets their owner alone read them."""
    for file in folder.glob("*.safetensors"):
        file.chmod(like.stat().st_mode & 0o777)
