"""The folder of a run: create it, log into it, find the model in it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from gptask.errors import UserError, VisibleFormatter, listing, write_failure, writing
from gptask.model.backbone.locate import PICKLES
from gptask.plugins.discovery import plugin_of
from gptask.runs.config_file import read_config
from gptask.runs.leftovers import LOG, holds_run
from gptask.runs.manifest import MODEL, read_manifest, training_verb
from gptask.runs.run_lock import LOCK_FILE, run_lock

log = logging.getLogger("gptask")
KEY_IN_CHECKPOINT = "gptask"  # of what gptask adds to what Lightning saves


def run_title(config: Any) -> str:
    """The name that runs of a config share: the task's name, or the names of all tasks joined by ``+``."""
    return "+".join(getattr(config, "tasks", {})) or plugin_of(config.task).name


def saved_title(values: dict[str, Any]) -> str:
    """`run_title` of a run folder, whose config.yaml holds ``values``."""
    plugin = values.get("plugin")
    return "+".join(values.get("tasks", {})) or str(plugin.get("name") if isinstance(plugin, dict) else plugin)


class NoCheckpoint(UserError):
    """A run folder has no sound checkpoint."""


class RunFolderExists(UserError):
    """The folder that a new run shall have is there already."""


def create_run_folder(outputs: str, task: str, folder: str | None, may_resume: bool = False) -> Path:
    """Create a new run folder, ``<outputs>/<task>/<date>_<time>`` by default; an existing one is never reused.

    Raises `RunFolderExists` where the ``folder`` the user names exists, with the ways to go on in it if the run
    ``may_resume``, and `UserError` where none can be created.
    """
    base = Path(folder) if folder else Path(outputs) / task / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for path in chain([base], numbered_alternatives(base)):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError as error:
            if folder:
                ways = _ways_on(path) if may_resume and holds_run(path) else ""
                raise RunFolderExists(f"the run folder {path} exists: choose another folder={ways}") from error
        except OSError as error:
            raise _not_created(path, error) from error
    raise UserError(f"{base} and its numbered alternatives all exist; set folder=<folder>")


def _ways_on(path: Path) -> str:
    return (
        f", go on with its run by resume={path}, or let one command begin it, go on with it or find it finished by "
        f"folder={path} resume=auto"
    )


def _not_created(path: Path, error: OSError) -> UserError:
    return UserError(f"can't create the run folder {path}: {error.strerror}; set outputs=<folder>")


def numbered_alternatives(base: Path) -> Iterator[Path]:
    """``base_1``, ``base_2``, ...: the folders for runs whose ``base`` is taken."""
    return (base.with_name(f"{base.name}_{number}") for number in range(1, 1000))


@contextmanager
def open_run_folder(outputs: str, task: str, folder: str | None) -> Iterator[Path]:
    """A new run folder, locked, with train.log in it; removed again if nothing was written.

    Raises the errors of `claim_run_folder` and `logged_into`.
    """
    with claim_run_folder(outputs, task, folder) as path, logged_into(path):
        yield path


@contextmanager
def claim_run_folder(
    outputs: str, task: str, folder: str | None, existing: Path | None = None, may_resume: bool = False
) -> Iterator[Path]:
    """A run folder whose lock this process holds: a new one, or ``existing``, which is made if it is not there.

    A folder that was made is removed again if nothing but its log was written. Processes other than the main one get
    that one's folder. Raises `UserError` where another process works in it, and the errors of `create_run_folder`.
    """
    if not is_main_process():
        yield _folder_of_main_process(existing or folder)
        return
    target = existing or (Path(folder) if folder else Path(outputs, task, "run"))
    made = [parent for parent in target.parents if not parent.exists()]  # the innermost first
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        if existing is None:
            path = create_run_folder(outputs, task, folder, may_resume)
            made.insert(0, path)
            stack.enter_context(run_lock(path))
        else:
            path = existing
            made[:0] = [] if path.exists() else [path]
            _lock_existing(stack, path)
        os.environ["GPTASK_RUN_FOLDER"] = str(path)  # for the processes that Lightning starts
        try:
            yield path
        finally:
            os.environ.pop("GPTASK_RUN_FOLDER")
            if path in made and {file.name for file in path.glob("*")} <= {LOCK_FILE, LOG}:
                (path / LOG).unlink(missing_ok=True)


def _lock_existing(stack: ExitStack, path: Path) -> None:
    """Lock a folder, which is made first if it is not there."""
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_created(path, error) from error
        with suppress(FileNotFoundError):  # the process that held the lock has just removed the folder
            stack.enter_context(run_lock(path))
            return


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders, from the innermost to the outermost, in which there is nothing."""
    for folder in folders:
        with suppress(OSError):  # there is something, or another run has begun there
            folder.rmdir()


@contextmanager
def logged_into(path: Path) -> Iterator[None]:
    """Let the log go to train.log of a run folder, too.

    Raises `WriteError` where the folder's disk is full or read-only.
    """
    if not is_main_process():
        yield
        return
    with writing(path):
        handler = RunLog(path / LOG, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.info("run folder: %s", path)
    try:
        with writing(path, lambda: resume_hint(path)):
            yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):  # what a full disk did not take
            handler.close()


class RunLog(logging.FileHandler):
    """train.log. Where it can't be written, the console says so once, and the run goes on without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Take the log out; Python's own handler prints a stack trace for every line."""
        error = sys.exc_info()[1]
        reason = write_failure(error) if error else None
        if reason is None or self not in log.handlers:
            return super().handleError(record)
        log.removeHandler(self)
        log.warning("%s while writing %s: the run goes on without its log", reason, self.baseFilename)


def is_main_process() -> bool:
    """Whether this process writes: it is the only one, or has rank 0 by the variables that Lightning reads."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def _folder_of_main_process(folder: str | Path | None) -> Path:
    """The folder that rank 0 uses: it passes the name through the environment, or the user names it for all."""
    name = os.environ.get("GPTASK_RUN_FOLDER") or folder
    if not name:
        raise UserError("processes that gptask did not start itself can't agree on a run folder; set folder=<folder>")
    return Path(name)


def latest_run(outputs: str, task: str | None = None) -> Path:
    """The newest run folder below ``outputs`` that has a checkpoint, by the time its config.yaml was written.

    A run writes that file when it begins and when it goes on. Raises `UserError` where there is none, and where the
    newest is of another ``task``, the name by which `run_title` calls it.
    """
    if not is_main_process() and (name := os.environ.get("GPTASK_RUN_FOLDER")):
        return Path(name)
    folders = sorted(_runs_with_checkpoints(Path(outputs)), key=_start_of_run, reverse=True)
    if not folders:
        raise UserError(f"resume=latest: no run folder below {outputs} has a checkpoint to go on from")
    newest, *others = folders
    if task in (None, title := saved_title(read_config(newest))):
        log.info("resume=latest: %s", newest)
        return newest
    of_task = next((folder for folder in others if _is_of_task(folder, task)), None)
    hint = f"the newest of {task} is {of_task}: resume={of_task}" if of_task else f"none there is of {task}"
    raise UserError(f"resume=latest: {newest}, the newest run below {outputs}, is of task {title}; {hint}")


def _is_of_task(folder: Path, task: str) -> bool:
    with suppress(UserError):  # a damaged run
        return saved_title(read_config(folder)) == task
    return False


def _runs_with_checkpoints(outputs: Path) -> Iterator[Path]:
    for path, below, files in os.walk(outputs):
        if "config.yaml" in files:
            below.clear()  # of the tasks of a run, and its model
            if checkpoint_files(Path(path)):
                yield Path(path)


def _start_of_run(folder: Path) -> tuple[float, str]:
    """When a run began or went on, and its name, by which runs are in order where a copy has changed the times."""
    return (folder / "config.yaml").stat().st_mtime, str(folder)


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run; a pipe or a device is none, as reading it may never end."""
    return sorted(path for path in (folder / "checkpoints").glob("*.ckpt") if path.is_file())


def resume_hint(folder: Path) -> str:
    """A sentence that names the checkpoints of a stopped run and the command that resumes it."""
    names = ", ".join(path.name for path in checkpoint_files(folder))
    command = f"gptask {training_verb(folder)} resume={folder}"
    if not names:
        begin_again = f"{command} begins again" if (folder / "config.yaml").is_file() else ""
        return f"No checkpoint has been written yet: {begin_again or 'the same command begins again'}."
    return f"Checkpoints in {folder / 'checkpoints'}: {names}. Resume with: {command}"


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
    if links := [path for path in (model, *model.rglob("*")) if path.is_symlink() and path.is_dir()]:
        raise UserError(f"{links[0]} is a link; a run's model is files in its folder: put a copy there")
    if pickles := sorted(file.name for file in model.glob("*") if file.suffix in PICKLES):
        raise UserError(
            f"{model} holds {listing(pickles, 3)}, which may run code when loaded; a run's model is safetensors and "
            "JSON. Don't use this run, or remove the file if you know where it comes from"
        )
    manifest.verify(MODEL)
    return model


def refuse_multitask(folder: str | Path, values: dict[str, Any]) -> None:
    """Raise `UserError` if ``values``, the folder's config, are of several tasks."""
    if names := list(values.get("tasks", {})):
        raise UserError(
            f"{folder} is a run of several tasks: {listing(names)}. Take the folder of one, "
            f"such as {Path(folder) / names[0]}"
        )
