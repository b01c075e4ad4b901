"""Checkpoints as files: written completely or not at all, verified before they are used, tried newest step first.

Checkpoints are zip archives with a CRC-32 of each member, which torch writes but does not check: it loads a file with
zeros in it, as a loss of power leaves them, without an error.
"""

from __future__ import annotations

import logging
import os
import stat
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptask.errors import UserError, damaged
from gptask.runs.atomic_write import sync_folder, written_whole
from gptask.runs.folder import KEY_IN_CHECKPOINT, NoCheckpoint, checkpoint_files
from gptask.training.checkpoint_content import wrong_content

log = logging.getLogger("gptask")
PART = ".part"  # behind the name of a file that is being written
LAST, INTERRUPTED = "last.ckpt", "interrupted.ckpt"
TIMED = "timed-step=[0-9]*.ckpt"  # within an epoch
BEST = "best-*.ckpt"
WRITTEN_LATER = ("timed", "best", "last", "interrupted")  # of equally many steps: the later, the further


# --- write ------------------------------------------------------------------------------------------------------------


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place, then move it there: whenever the process ends, one of the two is whole.

    What an earlier process left half written is removed. Raises `OSError` for a full disk, with ``path`` as it was.
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partial_files(path.parent)
    try:
        with written_whole(path) as partial, open(partial, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's archive writer fails at its end where writing has failed
        if isinstance(cause := error.__context__, OSError | KeyboardInterrupt):
            raise cause from None
        raise
    sync_folder(path.parent)


def remove_partial_files(checkpoints: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for path in checkpoints.glob(f"*.ckpt{PART}"):
        path.unlink(missing_ok=True)


def remove_outdated_best(checkpoints: Path, best: str) -> None:
    """Remove each best file but ``best``, once ``last.ckpt`` names no other.

    Until then ``last.ckpt`` names an earlier one, which a process that goes on from it needs.
    """
    for path in checkpoints.glob(BEST):
        if path.name != best:
            path.unlink(missing_ok=True)


def remove_unneeded(checkpoints: Path, best: str) -> None:
    """Remove what only a training in progress goes on from, and what one that was killed did not come to remove."""
    for path in (checkpoints / INTERRUPTED, *checkpoints.glob(TIMED)):
        path.unlink(missing_ok=True)
    remove_partial_files(checkpoints)
    remove_outdated_best(checkpoints, best)


# --- read -------------------------------------------------------------------------------------------------------------


def damage(path: Path) -> str:
    """What is wrong with the file of a checkpoint, all of which is read; empty if it is sound."""
    try:
        state = path.stat()
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"can't be read: {error.strerror}"
    if not stat.S_ISREG(state.st_mode):  # reading a pipe or a device may never end
        return "is no plain file"
    return _damage(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=16)
def _damage(path: Path, *state: int) -> str:
    """`damage` of a file that has not changed since."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except Exception as error:  # zipfile raises several classes for a file that is cut off
        return f"is damaged: {' '.join(str(error).split()) or type(error).__name__}"
    return f"is damaged: {member} has another checksum than was written" if member else ""


def load_checkpoint(path: Path, device: Any) -> dict[str, Any]:
    """The content of a sound checkpoint, its tensors on a device. Raises `UserError` for another."""
    import torch

    if problem := damage(path):
        raise UserError(f"{path} {problem}")
    with damaged(path):
        return dict(torch.load(path, map_location=device, weights_only=True))


def best_name(checkpoint: Mapping[str, Any]) -> str:
    """The file name of the best checkpoint so far that a checkpoint names; empty if there is none yet."""
    states = (state for name, state in checkpoint["callbacks"].items() if name.startswith("BestCheckpoint"))
    return next((Path(state["best_model_path"]).name for state in states if state["best_model_path"]), "")


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The sound checkpoint of the most optimizer steps, from which a training goes on, with its content.

    Times of files are not asked, since a copy of the folder has others. One whose best checkpoint so far is gone comes
    behind all others. What is passed over is logged. Raises `NoCheckpoint` where none is sound, with each one's cause.
    """
    files = checkpoint_files(folder)
    if not files:
        raise NoCheckpoint(f"{folder} has no checkpoint to go on from")
    problems: dict[str, str] = {}
    contents: dict[Path, dict[str, Any]] = {}
    for path in files:
        try:
            contents[path] = _content(path)
        except UserError as error:
            problems[path.name] = str(error)
    without_best = []
    for path in sorted(contents, key=lambda path: _position(path, contents[path]), reverse=True):
        best = best_name(contents[path])
        if problem := damage(path):
            problems[path.name] = problem
        elif best and (problem := damage(path.with_name(best))):
            without_best.append(path)
            problems[path.name] = f"names {best}, the best so far, which {problem}"
        else:
            _log_passed_over(problems)
            return path, contents[path]
    if not without_best:
        causes = "".join(f"\n  {name} {problem}" for name, problem in problems.items())
        raise NoCheckpoint(
            f"{folder} has no checkpoint that can be gone on from:{causes}\nRestore one from a copy, or start again"
        )
    path = without_best[0]
    _log_passed_over({name: problem for name, problem in problems.items() if name != path.name})
    log.warning(
        "%s %s: it is lost, and the best of the validations from here on is kept. To keep it, stop now and restore it "
        "from a copy, or start another run", path.name, problems[path.name],
    )  # fmt: skip
    return path, contents[path]


def _content(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, whose tensors are read once they are used.

    Raises `UserError` where that is not a checkpoint of this version of gptask.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        step, callbacks = content["global_step"], content["callbacks"]
    except Exception as error:  # torch raises several classes for a file that is cut off
        raise UserError(damage(path) or f"is no checkpoint ({type(error).__name__})") from error
    if not isinstance(step, int) or not isinstance(callbacks, dict):
        raise UserError("is no checkpoint")
    if KEY_IN_CHECKPOINT not in content:
        raise UserError("is of a version of gptask whose runs can't be resumed by this one")
    if wrong := wrong_content(content):
        raise UserError(f"is damaged, it is not the checkpoint of a gptask training: {wrong}")
    return dict(content)


def _position(path: Path, checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """How far a training has come in a checkpoint."""
    kind = path.stem.split("-")[0]
    return checkpoint["global_step"], WRITTEN_LATER.index(kind) if kind in WRITTEN_LATER else -1


def _log_passed_over(problems: Mapping[str, str]) -> None:
    for name, problem in problems.items():
        log.warning("passed over: %s %s", name, problem)
