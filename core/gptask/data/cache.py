"""The cache: entries that are written completely or not at all, checked when they are read, and listed by kind.

An entry of ``examples``, ``encoded`` or ``scores`` is a table with a JSON file beside it, of ``backbones`` and
``openvino`` a folder with a JSON file in it: this file seals the entry, and its time of change tells when the entry
was last used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptask.errors import UserError, writing

log = logging.getLogger("gptask")
SUFFIXES = {  # of the files of an entry, by its kind
    "backbones": ("",),
    "examples": (".arrow", ".json"),
    "encoded": (".arrow", ".json"),
    "states": (".bin", ".crc"),
    "scores": (".arrow", ".json"),
    "texts": (".jsonl",),
    "hashes": ("",),
    "verdicts": (".json",),
    "int4": (".json",),
    "openvino": ("",),
}
SEAL = "gptask.json"  # the file that seals a folder
HOST = platform.node().replace(".", "-")
MAX_PART_AGE = 24 * 3600.0  # seconds after which what another machine has not finished is taken for abandoned


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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` for a file or a folder, which takes its place unless the block raises.

    What processes that were killed have left unfinished beside it is removed first. Raises `WriteError` for a disk that
    is full or refuses to be written.
    """
    part = path.with_name(path.name + part_suffix())
    with writing(f"the cache {path.parent}", lambda: "Make room there, or set GPTASK_CACHE to another folder."):
        path.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in _abandoned_parts(path.parent):
            remove(abandoned)
        try:
            yield part
            if not (part.is_dir() and path.exists()):  # another process that wrote the same folder was faster
                part.replace(path)
        finally:
            remove(part)


def part_suffix() -> str:
    """What ends the name of an unfinished file, and tells whose it is: another process removes it if this one dies."""
    return f".{HOST}.{os.getpid()}.part"


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def seal(file: Path) -> dict[str, Any]:
    """What `is_sealed` compares a file with: its size in bytes, its time of change and its SHA-256."""
    stat = file.stat()
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}


def is_sealed(file: Path, expected: dict[str, Any]) -> bool:
    """Whether a file is as it was written. Its content is read only where its time of change is another."""
    stat = file.stat()
    if stat.st_size != expected["bytes"]:
        return False
    if stat.st_mtime_ns == expected["mtime_ns"]:
        return True
    if seal(file)["sha256"] != expected["sha256"]:
        return False
    with suppress(OSError):  # a copied cache is hashed once
        os.utime(file, ns=(stat.st_atime_ns, expected["mtime_ns"]))
    return True


def seal_folder(folder: Path, source: str) -> None:
    """Seal a folder: `SEAL` holds what it was made from and each of its files."""
    files = {path.name: seal(path) for path in sorted(folder.iterdir()) if path.is_file()}
    (folder / SEAL).write_text(json.dumps({"source": source, "files": files}, indent=2), encoding="utf-8")


def usable(*paths: Path) -> bool:
    """Whether an entry, given by all its files or its folder, is there and sound; marks it as used.

    A damaged entry is deleted with a warning, so that it is made anew.
    """
    if not paths[0].exists():
        return False
    kind = paths[0].parent.name
    if problem := _problem(kind, paths):
        log.warning("the cache entry %s is damaged (%s): it is deleted and made anew", paths[0], problem)
        for path in paths:
            remove(path)
        return False
    with suppress(OSError):  # a cache that can only be read
        os.utime(_mark(paths))
    return True


def _mark(paths: Sequence[Path]) -> Path:
    """The file of an entry whose time of change tells when the entry was last used."""
    return paths[0] / SEAL if paths[0].is_dir() else paths[-1]


def _problem(kind: str, paths: Sequence[Path]) -> str | None:
    """What is wrong with an entry, None if it is sound."""
    try:
        if kind in ("backbones", "openvino"):
            for name, expected in json.loads(_mark(paths).read_text(encoding="utf-8"))["files"].items():
                if not is_sealed(paths[0] / name, expected):
                    return f"{name} is not as it was written"
        elif kind in ("examples", "encoded", "scores"):
            table, meta = paths
            if not is_sealed(table, json.loads(meta.read_text(encoding="utf-8"))["seal"]):
                return f"{table.name} is not as it was written"
        elif kind == "hashes":
            if not re.fullmatch("[0-9a-f]{16}", paths[0].read_text()):
                return "it holds no hash"
        elif kind in ("verdicts", "int4"):
            json.loads(paths[0].read_text(encoding="utf-8"))
        elif kind in ("states", "texts"):
            for path in paths:
                path.stat()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@dataclass(frozen=True)
class CacheEntry:
    """An entry as it lies on disk; ``used`` is when it was last used, in seconds since the epoch."""

    kind: str
    paths: tuple[Path, ...]
    size: int  # bytes on disk
    used: float
    problem: str | None


def entries() -> list[CacheEntry]:
    """All entries of the cache, and what was left unfinished in it by processes that are gone."""
    folder, listed = cache_folder(), list[CacheEntry]()
    for kind, suffixes in SUFFIXES.items():
        files_by_name: dict[str, list[Path]] = {}
        for path in sorted((folder / kind).glob("*")):
            if ".part" not in path.suffixes:
                files_by_name.setdefault(path.name.partition(".")[0], []).append(path)
        for name, paths in files_by_name.items():
            expected = [folder / kind / f"{name}{suffix}" for suffix in suffixes]
            mark = _mark(expected)
            used = mark.stat().st_mtime if mark.exists() else 0.0
            listed.append(CacheEntry(kind, tuple(paths), _size(paths), used, _problem(kind, expected)))
    for place in (folder, *(folder / kind for kind in SUFFIXES)):
        for part in _abandoned_parts(place):
            listed.append(CacheEntry("unfinished", (part,), _size([part]), 0.0, "the process that wrote it is gone"))
    return listed


def _size(paths: Sequence[Path]) -> int:
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)  # a table of states may have holes


def _abandoned_parts(folder: Path) -> Iterator[Path]:
    """Unfinished files and folders of processes that are gone."""
    for path in folder.glob("*.part*"):  # a `PartFile` has its journal beside it, .part.json
        *_, host, pid, _ = (".", ".", *path.name.split("."))
        with suppress(FileNotFoundError):  # another process removes it, too
            if host == HOST and pid.isdecimal():
                if not _is_alive(int(pid)):
                    yield path
            elif time.time() - path.stat().st_mtime > MAX_PART_AGE:
                yield path


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
