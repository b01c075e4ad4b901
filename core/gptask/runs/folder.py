"""A run folder: made, found, named."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from gptask.errors import UserError, listing
from gptask.plugins.discovery import plugin_of
from gptask.runs.config_file import read_config

log = logging.getLogger("gptask")


def run_title(config: Any) -> str:
    """What the runs of a config are called: by its task, or by all its tasks."""
    return "+".join(getattr(config, "tasks", {})) or plugin_of(config.task).name


def create_run_folder(outputs: str, task: str, folder: str | None) -> Path:
    """Make a new run folder, ``<outputs>/<task>/<date>_<time>`` by default; an existing one is never reused."""
    base = Path(folder) if folder else Path(outputs) / task / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for path in chain([base], numbered_alternatives(base)):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError as error:
            if folder:
                raise UserError(f"the run folder {path} exists; choose another (or resume={path})") from error
        except OSError as error:
            raise UserError(f"the run folder {path} can't be made: {error.strerror}; set outputs=<folder>") from error
    raise UserError(f"no free run folder beside {base}")


def numbered_alternatives(base: Path) -> Iterator[Path]:
    """``base_1``, ``base_2``, ...: where runs go that find ``base`` taken."""
    return (base.with_name(f"{base.name}_{number}") for number in range(1, 1000))


@contextmanager
def run_folder(outputs: str, task: str, folder: str | None, resume: str | None = None) -> Iterator[Path]:
    """A new run folder (or the one to go on in) with its log; one that nothing came of is taken back."""
    if not main_process():
        yield _main_folder(folder, resume)
        return
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


def main_process() -> bool:
    """Whether this process writes: the only one, or the first of several (ranks as Lightning reads them)."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def _main_folder(folder: str | None, resume: str | None) -> Path:
    """The folder the first process works in: from its environment, or given by the user."""
    known = os.environ.get("GPTASK_RUN_FOLDER") or resume or folder
    if not known:
        raise UserError("several processes started from outside need to agree on a run folder: set folder=<folder>")
    return Path(known)


def resume_hint(folder: Path) -> str:
    """Which checkpoints a stopped run left, and how to go on."""
    found = sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt"))
    if not found:
        return "No checkpoint had been written yet."
    return f"Kept in {folder / 'checkpoints'}: {', '.join(found)}. Go on with: gptask train resume={folder}"


def model_folder(folder: str | Path) -> Path:
    """Where a run's model lies: in it, or beside the folders of several tasks."""
    own = Path(folder) / "model"
    return own if own.is_dir() or not read_config(folder).get("member") else Path(folder).parent / "model"


def refuse_multitask(folder: str | Path, values: dict[str, Any]) -> None:
    """Raise `UserError` for the folder of several tasks where one is needed."""
    if names := list(values.get("tasks", {})):
        raise UserError(f"{folder} is a run of several tasks: {listing(names)}. Take {Path(folder) / names[0]}, say")
