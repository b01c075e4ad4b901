"""Where a training works by ``resume=``, and whether it begins there, goes on, or is finished already."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from gptask.config.conversion import to_plain
from gptask.config.schemas import AUTO, LATEST, Train
from gptask.errors import UserError, listing, real_path
from gptask.runs.config_file import read_config
from gptask.runs.folder import NoCheckpoint, checkpoint_files, is_main_process, latest_run, run_title
from gptask.runs.leftovers import LOG, remove_earlier_start, remove_partial, require_unfinished_training
from gptask.runs.manifest import MANIFEST, read_manifest, training_verb
from gptask.training.builder import build_corpora
from gptask.training.fingerprint import NOT_DECISIVE, run_fingerprint
from gptask.training.resume import Start, check_resume, new_start
from gptask.training.resumed_config import differing_options

log = logging.getLogger("gptask")


def folder_to_resume(config: Train) -> Path | None:
    """The folder in which a training goes on or, with ``resume=auto``, may begin; None for a new one.

    Raises `UserError` where the options name none, and where there is none.
    """
    if not config.resume:
        return None
    if config.resume == AUTO:
        if not config.folder:
            raise UserError(
                "resume=auto needs folder=<run folder>: the same command then begins the run, goes on with it where it "
                "was stopped, and has nothing to do once it is finished. resume=latest goes on with the newest run"
            )
        return Path(config.folder)
    title = run_title(config) if config.task or config.tasks else None
    folder = latest_run(config.outputs, title) if config.resume == LATEST else Path(config.resume)
    if config.folder and real_path(config.folder) != real_path(folder):
        raise UserError(f"folder={config.folder}: resume={folder} goes on in the folder of the run; leave folder= out")
    if not folder.is_dir():
        read_config(folder)  # raises, and names the run folders near it
    return folder


def start_in_folder(folder: Path, config: Train) -> Start | None:
    """How a training with ``resume`` starts in its folder, whose lock is held; None where ``auto`` finds it finished.

    It goes on from a sound checkpoint. Where there is no checkpoint it begins anew, with ``auto`` also where none is
    sound, and what was left of it is removed. Raises `UserError` where the folder holds something else, and the errors
    of `check_resume`; nothing is changed then.
    """
    if config.resume == AUTO and (folder / MANIFEST).is_file():
        _require_same_run(folder, config)
        log.info("resume=auto: the run in %s is finished, there is nothing to do", folder)
        return None
    if not checkpoint_files(folder):
        return _begin_anew(folder, config)
    try:
        start = check_resume(replace(config, resume=str(folder), folder=None))
    except NoCheckpoint as error:
        if config.resume != AUTO:
            raise
        log.warning("%s\nresume=auto: the run begins anew, and what can't be read is set aside", error)
        return _begin_anew(folder, config)
    if is_main_process():
        remove_partial(folder, config.tasks)
    return start


def _begin_anew(folder: Path, config: Train) -> Start:
    require_unfinished_training(folder)
    start = new_start(replace(config, resume=None, folder=str(folder)))
    if is_main_process() and (folder / LOG).is_file():
        log.info("the run in %s was stopped before its first checkpoint: it begins anew", folder)
        remove_earlier_start(folder)
    return start


def _require_same_run(folder: Path, config: Train) -> None:
    """Raise `UserError` where a finished run is damaged, or is not what this config would give."""
    manifest = read_manifest(folder)
    manifest.verify()
    for name in config.tasks:
        read_manifest(folder / name).verify()
    if manifest.fingerprint == run_fingerprint(config, build_corpora(config)):
        return
    options = differing_options(read_config(folder), to_plain(config), NOT_DECISIVE)
    cause = listing(options, 6) if options else "its data, its backbone or gptask's code were others"
    raise UserError(
        f"resume=auto: {folder} holds a finished run that is not this one: {cause}. Choose another folder= for "
        f"this one, or train that one longer: gptask {training_verb(folder)} resume={folder} trainer.max_epochs=<more>"
    )
