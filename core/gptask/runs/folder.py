"""The folder of a run: create it, log into it, find the model in it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from gptask.errors import UserError, listing
from gptask.plugins.discovery import plugin_of
from gptask.runs.config_file import read_config
from gptask.runs.manifest import MODEL, read_manifest

log = logging.getLogger("gptask")
KEY_IN_CHECKPOINT = "gptask"  # of what gptask adds to what Lightning saves


def run_title(config: Any) -> str:
    """The name that runs of a config share: the task's name, or the names of all tasks joined by ``+``."""
    return "+".join(getattr(config, "tasks", {})) or plugin_of(config.task).name


def create_run_folder(outputs: str, task: str, folder: str | None) -> Path:
    """Create a new run folder, ``<outputs>/<task>/<date>_<time>`` by default; an existing one is never reused.

    Raises `UserError` where the ``folder`` the user names exists, or where none can be created.
    """
    base = Path(folder) if folder else Path(outputs) / task / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for path in chain([base], numbered_alternatives(base)):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError as error:
            if folder:
                raise UserError(f"the run folder {path} exists; choose another (or resume={path})") from error
        except OSError as error:
            raise UserError(f"can't create the run folder {path}: {error.strerror}; set outputs=<folder>") from error
    raise UserError(f"{base} and its numbered alternatives all exist; set folder=<folder>")


def numbered_alternatives(base: Path) -> Iterator[Path]:
    """``base_1``, ``base_2``, ...: the folders for runs whose ``base`` is taken."""
    return (base.with_name(f"{base.name}_{number}") for number in range(1, 1000))


@contextmanager
def open_run_folder(outputs: str, task: str, folder: str | None, resume: str | None = None) -> Iterator[Path]:
    """A new run folder, or the one to resume, with train.log in it; removed again if nothing was written.

    Raises `UserError` where it can't be created, and where its disk is full or read-only later.
    """
    if not is_main_process():
        yield _folder_of_main_process(folder, resume)
        return
    target = Path(folder) if folder else Path(outputs, task, "run")
    new_parents = [parent for parent in target.parents if not parent.exists()]  # the innermost first
    path = Path(resume) if resume else create_run_folder(outputs, task, folder)
    os.environ["GPTASK_RUN_FOLDER"] = str(path)  # for the processes that Lightning starts
    handler = logging.FileHandler(path / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.info("run folder: %s", path)
    try:
        yield path
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise UserError(f"{error.strerror} while writing {path}. {resume_hint(path)}") from error
        raise
    finally:
        os.environ.pop("GPTASK_RUN_FOLDER")
        log.removeHandler(handler)
        handler.close()
        if {file.name for file in path.iterdir()} <= {"train.log"}:
            (path / "train.log").unlink(missing_ok=True)
            path.rmdir()
            for parent in new_parents:
                with suppress(OSError):  # another run has begun there
                    parent.rmdir()


def is_main_process() -> bool:
    """Whether this process writes: it is the only one, or has rank 0 by the variables that Lightning reads."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def _folder_of_main_process(folder: str | None, resume: str | None) -> Path:
    """The folder that rank 0 uses: it passes the name through the environment, or the user names it for all."""
    name = os.environ.get("GPTASK_RUN_FOLDER") or resume or folder
    if not name:
        raise UserError("processes that gptask did not start itself can't agree on a run folder; set folder=<folder>")
    return Path(name)


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run; a pipe or a device is none, as reading it may never end."""
    return sorted(path for path in (folder / "checkpoints").glob("*.ckpt") if path.is_file())


def resume_hint(folder: Path) -> str:
    """A sentence that names the checkpoints of a stopped run and the command that resumes it."""
    names = ", ".join(path.name for path in checkpoint_files(folder))
    if not names:
        return "No checkpoint has been written yet."
    return f"Checkpoints in {folder / 'checkpoints'}: {names}. Resume with: gptask train resume={folder}"


def model_folder(folder: str | Path) -> Path:
    """The folder of a run's model: in the run folder, or beside it for one of several tasks that share a model."""
    model = Path(folder) / "model"
    return model if model.is_dir() or not read_config(folder).get("task_name") else Path(folder).parent / "model"


def verified_model(folder: str | Path) -> Path:
    """The folder of a finished run's model, whose files are as the run wrote them.

    Raises `UserError` for an unfinished run, one without a model and a damaged one.
    """
    model, manifest = model_folder(folder), read_manifest(folder)
    if model.parent != manifest.folder:
        manifest = read_manifest(model.parent)
    if not any(name.startswith(MODEL) for name in manifest.files):
        parent = f" of {manifest.parent['folder']}, which holds one" if manifest.parent else ""
        raise UserError(f"{folder} holds no model: it is an evaluation{parent}")
    manifest.verify(MODEL)
    return model


def refuse_multitask(folder: str | Path, values: dict[str, Any]) -> None:
    """Raise `UserError` if ``values``, the folder's config, are of several tasks."""
    if names := list(values.get("tasks", {})):
        raise UserError(
            f"{folder} is a run of several tasks: {listing(names)}. Take the folder of one, "
            f"such as {Path(folder) / names[0]}"
        )
