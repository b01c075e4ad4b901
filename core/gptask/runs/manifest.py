"""manifest.json: the files of a finished run with their hashes. Whoever reads a run checks what it reads against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from gptask.config.verb_schemas import verb_of_run
from gptask.config.yaml_text import read_yaml
from gptask.errors import UserError, damaged, listing, real_path
from gptask.runs.atomic_write import sync, write_json, written_whole

if TYPE_CHECKING:
    import numpy as np

RUN_FORMAT = 3  # of manifest.json and config.yaml
MANIFEST = "manifest.json"
SPLITS_FILE = "splits.safetensors"
MODEL = "model/"
# Listed beside model/. Not listed is what no reader relies on: README.md, which users edit, checkpoints/, logs, reports
FILES = ("config.yaml", "metrics.json", "predictions.jsonl", SPLITS_FILE)
CACHED_FROM = 2**20  # bytes of a file whose hash is remembered, about a millisecond's work


class FileEntry(NamedTuple):
    """A file as the run wrote it."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of the finished run in ``folder``; paths are relative to it and have forward slashes."""

    folder: Path
    fingerprint: str
    parent: dict[str, str] | None  # the run that was evaluated: its folder, and the SHA-256 of its manifest
    method: str  # the verb that made the run
    files: dict[str, FileEntry]
    splits: dict[str, dict[str, Any]]  # by name: examples (n), SHA-256 of their input digests, the file of these
    dtype: str | None = None  # the number format in which the run was scored; None where that is not known

    def problems(self, *names: str) -> list[str]:
        """How files differ from what the run wrote, a phrase each; ``model/`` stands for all files in it."""
        expanded = dict.fromkeys(path for name in names for path in (self._model_files() if name == MODEL else [name]))
        return [problem for name in expanded if (problem := self._problem(name))]

    def verify(self, *names: str) -> None:
        """Raise `UserError` if any of these files, of all files without names, differs from what the run wrote."""
        if problems := self.problems(*(names or self.files)):
            raise UserError(
                f"{self.folder} is damaged, by its {MANIFEST}: {listing(problems, 3)}. Restore what differs from a "
                f"copy, or {self.method} again"
            )

    def _model_files(self) -> list[str]:
        """The files listed of the model, and files added to it, which a loader might read."""
        return [*(name for name in self.files if name.startswith(MODEL)), *_model_files(self.folder)]

    def _problem(self, name: str) -> str:
        entry, path = self.files.get(name), self.folder / name
        if entry is None:
            return f"{name} is not listed"
        if not path.is_file():
            return f"{name} is missing"
        if not real_path(path).is_relative_to(real_path(self.folder)):
            return f"{name} is a link to a file outside of the run folder"
        if (size := path.stat().st_size) != entry.size:
            return f"{name} has {size:,} instead of {entry.size:,} bytes"
        return "" if _sha256(path) == entry.sha256 else f"{name} has other content (SHA-256)"


def write_manifest(
    folder: Path,
    fingerprint: str,
    method: str,
    splits: Mapping[str, np.ndarray],
    parent: str | None = None,
    dtype: str | None = None,
) -> None:
    """Write splits.safetensors and, last of a run's files, manifest.json: from then on the run is finished.

    ``splits`` are the 64-bit input digests (N,) of each split's N examples; ``parent`` is the evaluated run's folder,
    ``dtype`` the number format in which the run was scored.
    The files are on the disk before the manifest is, which the loss of power can't separate then.
    """
    from safetensors.numpy import save  # for start-up time, as numpy

    tensors = {name: digests.astype("int64") for name, digests in splits.items()}
    if tensors:
        with written_whole(folder / SPLITS_FILE) as partial:
            partial.write_bytes(save(tensors))
    names = [name for name in (*FILES, *_model_files(folder)) if (folder / name).is_file()]
    values = {
        "format": RUN_FORMAT,
        "fingerprint": fingerprint,
        "parent": parent and {"folder": parent, "manifest": manifest_digest(parent)},
        "method": method,
        "dtype": dtype,
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in names},
        "splits": {
            name: {"n": len(tensor), "sha256": hashlib.sha256(tensor.tobytes()).hexdigest(), "file": SPLITS_FILE}
            for name, tensor in tensors.items()
        },
    }
    below = {parent for name in names for parent in Path(name).parents}
    sync(*(folder / name for name in names), *(folder / parent for parent in below))
    write_json(folder / MANIFEST, values, durable=True)


def remove_manifest(folder: Path) -> None:
    """Make a finished run unfinished, on the disk too, before anything else of it changes."""
    try:
        (folder / MANIFEST).unlink()
    except FileNotFoundError:
        return
    sync(folder)


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a finished run.

    Raises `UserError` for an unfinished run, which has none, for a damaged manifest and for another run format.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise UserError(f"{folder} is unfinished, it has no {MANIFEST}: {way_to_finish(file.parent)}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if (found := values["format"]) != RUN_FORMAT:
            raise UserError(f"{folder} has run format {found}; gptask {version('gptask')} reads format {RUN_FORMAT}")
        files = {name: FileEntry(int(entry["bytes"]), entry["sha256"]) for name, entry in values["files"].items()}
        if outside := [name for name in files if not _is_inside(name)]:
            raise UserError(f"{file} lists files outside of the run folder: {listing(outside, 3)}")
        parent, splits = values["parent"] and dict(values["parent"]), dict(values["splits"])
        dtype = values.get("dtype")
        return Manifest(file.parent, values["fingerprint"], parent, values["method"], files, splits, dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error!r}): restore it from a copy, or start the run again") from error


def manifest_digest(folder: str | Path) -> str:
    """The SHA-256 of a finished run's manifest, which names all of its files."""
    return _sha256(read_manifest(folder).folder / MANIFEST)


def read_splits(folder: str | Path) -> dict[str, np.ndarray]:
    """The 64-bit input digests (N,) of each split of a finished run's N examples, by the split's name.

    A run of several tasks has them in its tasks' folders. Raises `UserError` for a run that is unfinished or damaged.
    """
    from safetensors.numpy import load_file  # for start-up time

    manifest = read_manifest(folder)
    if not manifest.splits:
        return {}
    manifest.verify(SPLITS_FILE)
    file = manifest.folder / SPLITS_FILE
    with damaged(file):
        splits = load_file(file)
    if wrong := [name for name, digests in splits.items() if digests.ndim != 1 or digests.dtype.name != "int64"]:
        raise UserError(f"{file} is damaged: {listing(wrong)} is no list of 64-bit digests")
    return dict(splits)


def way_to_finish(folder: Path) -> str:
    """How the user gets an unfinished run finished: from its checkpoints, which several tasks of a run share."""
    for path in (folder, folder.parent):
        if any((path / "checkpoints").glob("*.ckpt")):
            return f"finish it with: gptask {training_verb(path)} resume={path}"
    return "it has no checkpoint to go on from, so start it again"


def training_verb(folder: Path) -> str:
    """The verb that goes on with a run, by its config.yaml; train where that can't be read."""
    with suppress(Exception):  # of the parser, for a damaged file
        return verb_of_run(read_yaml(folder / "config.yaml"))
    return "train"


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file in the run folder, on every system: relative, with forward slashes alone."""
    path = PurePosixPath(name)
    if not path.parts or "\0" in name or "\\" in name:
        return False
    return not (path.is_absolute() or ".." in path.parts or ":" in path.parts[0])


def _model_files(folder: Path) -> Iterator[str]:
    """The paths of the files in ``model/``, without hidden ones: a file manager writes such, no loader reads them.

    Pipes and devices are among them, so that they are found not to be listed: reading one may never end.
    """
    for path in sorted((folder / MODEL).rglob("*")):
        name = path.relative_to(folder)
        if not path.is_dir() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _sha256(path: Path) -> str:
    """The SHA-256 of a file; a large one that has not changed since is not read again by this process."""
    state = path.stat()
    hasher = _remembered_sha256 if state.st_size >= CACHED_FROM else _remembered_sha256.__wrapped__
    return hasher(real_path(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)


@lru_cache(maxsize=1024)
def _remembered_sha256(path: Path, *state: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
