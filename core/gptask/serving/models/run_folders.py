"""The run folders that a server is told of: their names, and what changes when one is replaced in place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptask.errors import UserError, real_path, user_path
from gptask.runs.manifest import MANIFEST

NAME = re.compile(r"\w[\w.~-]*", re.ASCII)  # of characters that a URL shows as they are
FolderState = tuple[tuple[str, int, int, int, int], ...]  # path, inode, bytes, times of change of content and of inode


@dataclass(frozen=True)
class RunFolder:
    """A run folder and the name under which it is served; ``named`` by the user, or found in ``runs_root``."""

    name: str
    folder: Path
    named: bool


def named_folders(runs: Any) -> list[RunFolder]:
    """The folders of the option ``runs``: one text or a list of them, each a folder or ``name:folder``."""
    if runs is None or isinstance(runs, str | Path):
        runs = [] if runs is None else [runs]
    if not isinstance(runs, list | tuple) or not all(isinstance(entry, str | int | Path) for entry in runs):
        raise UserError(
            f"runs={runs!r}: expected a run folder or a list of them, such as [outputs/qa/a, news:outputs/x]"
        )
    folders = [_named_folder(str(entry)) for entry in runs]
    for folder in folders:
        check_name(folder)
    return folders


def _named_folder(text: str) -> RunFolder:
    """A folder, whose name may have colons, goes before a name with a folder."""
    path = user_path(text)
    name, colon, rest = text.partition(":")
    if path.exists() or not colon:
        return RunFolder(last_part(path), path, True)
    return RunFolder(name, user_path(rest), True)


def last_part(path: Path) -> str:
    """The last part of a path, where it ends in dots that of what they stand for."""
    return real_path(path).name if path.name in ("", "..") else path.name


def url_name(text: str) -> str:
    """A text with hyphens in place of what can't stand in a name."""
    return re.sub(r"[^\w.~-]+", "-", text, flags=re.ASCII).lstrip(".~-") or "run"


def check_name(folder: RunFolder) -> None:
    """Raise `UserError` for a name that can't stand in a URL."""
    if not NAME.fullmatch(folder.name):
        raise UserError(
            f"'{folder.name}' can't be the name of {folder.folder}: a name stands in URLs, so it has letters, digits, "
            f"'_', '.', '~' and '-', the first one no punctuation. Put one before the folder: "
            f"runs='[{_suggested(folder)}]'"
        )


def _suggested(folder: RunFolder, prefix: str = "") -> str:
    return f"{prefix}{url_name(folder.name)}:{folder.folder}"


def refuse_equal_names(names: Iterable[tuple[str, RunFolder]]) -> None:
    """Raise `UserError` where two runs have one name."""
    seen: dict[str, RunFolder] = {}
    for name, folder in names:
        if (other := seen.setdefault(name, folder)) is not folder:
            parents = [url_name(last_part(run.folder.parent)) for run in (other, folder)]
            prefixes = parents if parents[0] != parents[1] else ["1", "2"]
            example = ", ".join(_suggested(run, f"{p}-") for run, p in zip((other, folder), prefixes, strict=True))
            raise UserError(
                f"the runs in {other.folder} and {folder.folder} are both called '{name}'. Put names before the "
                f"folders: runs='[{example}]'"
            )


def folders_below(root: Path) -> list[RunFolder]:
    """The run folders in a folder, and those in its folders that are none themselves (``<task>/<run>``), sorted.

    Unfinished ones are among them. Raises `UserError` where the folder can't be read.
    """
    try:
        return [RunFolder(path.name, path, False) for path in _runs_below(root)]
    except OSError as error:
        raise UserError(f"runs_root={root}: {error.strerror}") from error


def _runs_below(root: Path) -> Iterator[Path]:
    for child in _subfolders(root):
        if is_run_folder(child):
            yield child
        else:
            with suppress(OSError):  # it is not ours to read, such as lost+found, or gone
                yield from filter(is_run_folder, _subfolders(child))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    try:
        return (folder / MANIFEST).is_file() or (folder / "config.yaml").is_file()
    except PermissionError:
        return False


def manifest_state(folder: Path) -> FolderState:
    """What changes when the manifests of a run and its tasks do; empty for an unfinished run.

    The time of an inode's change can't be set, so that a file of the same size and time of change differs too.
    """
    manifest = folder / MANIFEST
    return _states([manifest, *sorted(folder.glob(f"*/{MANIFEST}"))]) if manifest.is_file() else ()


def files_state(folder: Path) -> FolderState:
    """The same for all files from which a run is loaded."""
    names = (MANIFEST, "config.yaml", "metrics.json")
    tasks = [path for name in names for path in (folder / name, *sorted(folder.glob(f"*/{name}")))]
    model = folder / "model" if (folder / "model").is_dir() else folder.parent / "model"  # of one of several tasks
    return _states([*tasks, model.parent / MANIFEST, *sorted(model.rglob("*"))])


def manifest_digest(folder: Path) -> str:
    """A digest of the manifests, and so of all files that they list."""
    total = hashlib.sha256()
    for path, *_ in manifest_state(folder):
        total.update(Path(path).read_bytes())
    return total.hexdigest()


def _states(paths: Iterable[Path]) -> FolderState:
    states = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:  # it may go at any time
            continue
        states.append((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(states)
