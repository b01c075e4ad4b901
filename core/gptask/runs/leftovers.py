"""What a run that was stopped leaves in its folder, and which of it the next start removes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gptask.errors import UserError, listing
from gptask.runs.config_file import read_config
from gptask.runs.manifest import FILES, MANIFEST, MODEL
from gptask.runs.run_lock import LOCK_FILE

CONFIG, LOG = "config.yaml", "train.log"
MODEL_FOLDER = MODEL.rstrip("/")
# what may be there before config.yaml is
BEFORE_CONFIG = (LOCK_FILE, LOG, f"{CONFIG}.part", "tensorboard", "wandb")
# files and folders that were being written; other programs' own are not touched
PARTIAL = (
    *(f"{name}.part" for name in (*FILES, MANIFEST, "README.md", MODEL_FOLDER)),
    f"{MODEL_FOLDER}.old",
    ".probe.*",
)
# what a run that begins anew would leave standing, or mix with its own; logs and trackers' curves stay
OF_EARLIER_START = (
    *PARTIAL, *(name for name in FILES if name != CONFIG), "README.md", MODEL_FOLDER, "metrics.csv",
    "metrics.before-resume-*.csv", "hparams.yaml", "teacher.jsonl",
)  # fmt: skip


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run, or at most what one leaves there before it writes config.yaml."""
    return (folder / CONFIG).is_file() or lacks_config(folder)


def lacks_config(folder: Path) -> bool:
    """Whether a folder is empty, or that of a run which was stopped before it wrote config.yaml."""
    return folder.is_dir() and not (folder / CONFIG).is_file() and not _foreign_names(folder)


def require_unfinished_training(folder: Path) -> None:
    """Raise `UserError` for a folder in which no training may begin anew: it holds something else than one's start.

    An empty folder is fine, and so is one that is not there.
    """
    if (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} is finished and has no checkpoint to go on from: start another run in another folder"
        )
    if (folder / CONFIG).is_file():
        values = read_config(folder)
        if values.get("task_name"):
            raise UserError(f"{folder} is one task of {folder.parent}, which can be resumed")
        refuse_evaluation(folder, values)
    elif names := _foreign_names(folder):
        raise UserError(
            f"{folder} is no run folder, it holds {listing(names, 4)} and no {CONFIG}. It stays as it is: choose "
            "another folder"
        )


def refuse_evaluation(folder: Path, values: dict[str, Any]) -> None:
    """Raise `UserError` for an evaluation, which has no training; ``values`` are the folder's config."""
    if "optimizer" not in values:
        raise UserError(f"{folder} is an evaluation: `gptask evaluate` makes it again, in another folder")


def remove_partial(folder: Path, tasks: Iterable[str]) -> None:
    """Remove what a stopped run was just writing into its folder and into those of its ``tasks``."""
    for path in _run_folders(folder, tasks):
        _remove(path, PARTIAL)


def remove_earlier_start(folder: Path) -> None:
    """Remove what a training without a sound checkpoint left; a checkpoint that can't be read is set aside.

    config.yaml goes last: it is what tells the folder from other people's.
    """
    tasks = read_config(folder).get("tasks", {}) if (folder / CONFIG).is_file() else {}
    for path in _run_folders(folder, tasks):
        _remove(path, OF_EARLIER_START if path == folder else (*OF_EARLIER_START, CONFIG))
    checkpoints = folder / "checkpoints"
    for file in [] if checkpoints.is_symlink() else sorted(checkpoints.glob("*.ckpt*")):
        if file.suffix == ".ckpt":
            file.rename(file.with_name(f"{file.name}.damaged"))
        elif file.suffix != ".damaged":
            _delete(file)
    (folder / CONFIG).unlink(missing_ok=True)


def _foreign_names(folder: Path) -> list[str]:
    """The names in a folder that no run leaves there before it writes config.yaml."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    set_aside = {path.suffix for path in (folder / "checkpoints").glob("*")} <= {".damaged"}  # by an earlier start
    return [name for name in names if name not in BEFORE_CONFIG and not (name == "checkpoints" and set_aside)]


def _run_folders(folder: Path, tasks: Iterable[str]) -> Iterator[Path]:
    """The folders of a run's tasks, and its own; a name in a stranger's config can't lead out of the run folder."""
    names = {*tasks}
    yield from (path for path in folder.iterdir() if path.name in names and path.is_dir() and not path.is_symlink())
    yield folder


def _remove(folder: Path, patterns: tuple[str, ...]) -> None:
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        _delete(path)


def _delete(path: Path) -> None:
    """Delete a file, a folder or a link, whose target stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
