"""What has to be checked before a run goes on: that it is the same training, and that something is left to train.

Each checkpoint holds a record of the run's start. A resumed run takes its options from there, but for those that may
change, and nothing in the folder is touched before all is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import to_plain
from gptask.config.schemas import Train
from gptask.data.corpus import SPLITS, CachedCorpus
from gptask.errors import UserError, listing
from gptask.plugins.discovery import plugin_of
from gptask.runs.folder import KEY_IN_CHECKPOINT, checkpoint_files
from gptask.runs.manifest import MANIFEST
from gptask.runs.saved_model import locate_backbone
from gptask.runs.validation import wrong_entry
from gptask.training.builder import build_corpora, task_configs
from gptask.training.checkpoint_content import require_content
from gptask.training.resumed_config import resumed_config, shown, with_given_tasks

if TYPE_CHECKING:
    from gptask.model.backbone.locate import BackboneOrigin


@dataclass(frozen=True)
class Start:
    """How a training starts: its config, its data, its options as first given, and the checkpoint it goes on from."""

    config: Train
    corpora: dict[str, CachedCorpus]
    given: dict[str, Any]
    checkpoint: Path | None = None


def new_start(config: Train) -> Start:
    """The start of a new run."""
    return Start(config, build_corpora(config), to_plain(config))


def check_resume(config: Train) -> Start:
    """The start of a run that goes on in the folder ``config.resume``, in which nothing is changed.

    Raises `UserError` where it can't go on, where it would be another training, and where nothing is left to train.
    """
    from gptask.training.trainer import build_trainer

    folder = Path(str(config.resume))
    if config.folder and Path(config.folder).resolve() != folder.resolve():
        raise UserError(f"folder={config.folder}: resume={folder} goes on in the folder of the run; leave folder= out")
    path, checkpoint = latest_checkpoint(folder)
    record = checkpoint[KEY_IN_CHECKPOINT]["record"]
    _refuse_other_plugins(config, record)
    devices = build_trainer(folder, record["config"]["trainer"] | config.trainer, logger=False).world_size
    config = resumed_config(config, record, folder, devices)
    _refuse_without_training(folder, checkpoint, config)
    _require_best(folder, checkpoint)
    corpora = build_corpora(with_given_tasks(config, record["given"]))
    _refuse_other_data(folder, corpora, record)
    _refuse_other_weights(folder, locate_backbone(config.backbone), record)
    return Start(config, corpora, record["given"], path)


def start_record(
    given: Mapping[str, Any], config: Train, corpora: Mapping[str, CachedCorpus], weights_hash: str
) -> dict[str, Any]:
    """What a run started with, as plain values: options as ``given`` and as chosen, data, plugins, backbone.

    A precision that is left open on this processor is recorded, as another processor would choose one.
    """
    plain = to_plain(config)
    precision = plain["trainer"].get("precision") or "32-true"
    return {
        "config": plain | {"trainer": plain["trainer"] | {"precision": precision}},
        "given": dict(given),
        "data": {name: _data_hashes(corpus) for name, corpus in corpora.items()},
        "plugins": {name: plugin_of(one.task).origin for name, one in task_configs(config).items()},
        "weights": weights_hash,
    }


def _data_hashes(corpus: CachedCorpus) -> dict[str, Any]:
    """The hashes of each split's files, and the names of the labels."""
    splits, labels = corpus.fingerprint()
    return {name: hashes for name, *hashes in splits} | {"labels": labels}


# --- the checkpoint -------------------------------------------------------------------------------------------------


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of the most optimizer steps, from which a training goes on, with its content.

    Times of files are not asked, since a copy of the folder has others. Raises `UserError` where there is none, where
    one is damaged, and where it was written by a version of gptask that recorded less.
    """
    import torch

    files = checkpoint_files(folder)
    if not files:
        raise UserError(f"{folder} has no checkpoint to go on from; start again without resume")
    checkpoints = {}
    for path in files:
        try:
            checkpoints[path] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises several classes for a file that is cut off
            raise UserError(f"{path} is damaged: delete it to go on from another checkpoint") from error
    order = {"best": 1, "last": 2, "interrupted": 3}  # of equally many steps, the one that is written last
    for path, checkpoint in checkpoints.items():
        if isinstance(checkpoint, dict) and KEY_IN_CHECKPOINT in checkpoint:
            require_content(path, checkpoint)
        elif wrong := wrong_entry(checkpoint, {"global_step": int}):
            raise UserError(f"{path} is damaged: {wrong}")
    latest = max(files, key=lambda path: (checkpoints[path]["global_step"], order.get(path.stem.split("-")[0], 0)))
    if KEY_IN_CHECKPOINT not in checkpoints[latest]:
        raise UserError(f"{latest} is of a version of gptask whose runs can't be resumed by this one; start again")
    return latest, checkpoints[latest]


def _refuse_without_training(folder: Path, checkpoint: dict[str, Any], config: Train) -> None:
    """Raise `UserError` for a run that has trained longer than the options allow, or is finished and may not go on.

    A run that only lacks its test goes on with that.
    """
    finished = (folder / MANIFEST).is_file()
    for option, trained in (("max_epochs", _trained_epochs(checkpoint)), ("max_steps", checkpoint["global_step"])):
        limit = config.trainer.get(option)
        if limit is None or limit < 0 or trained < limit or (trained == limit and not finished):
            continue
        state = "is finished" if finished else "was stopped"
        raise UserError(
            f"{folder} {state} after {trained} {option.removeprefix('max_')}, and trainer.{option}={limit} allows no "
            f"more: set trainer.{option} above {trained}"
        )
    patience = config.early_stopping.patience
    waited = [state["wait_count"] for name, state in checkpoint["callbacks"].items() if name.startswith("Patience")]
    if finished and patience is not None and waited and waited[0] >= max(patience, 1):
        raise UserError(
            f"{folder} is finished: validation did not improve {waited[0]} times, and early_stopping.patience="
            f"{patience} allows no more: set early_stopping.patience above {waited[0]}, or to null"
        )


def _trained_epochs(checkpoint: dict[str, Any]) -> int:
    """The epochs that are complete; one that the training ended within is not."""
    loops = checkpoint["loops"]["fit_loop"]
    epochs = loops["epoch_progress"]["current"]
    ended_within = epochs["processed"] == epochs["started"] and not loops["epoch_loop.batch_progress"]["is_last_batch"]
    return int(epochs["processed"]) - bool(ended_within and epochs["processed"])


def _require_best(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Raise `UserError` where the best checkpoint so far is not in the folder any more."""
    for name, state in checkpoint["callbacks"].items():
        file = folder / "checkpoints" / state["best_model_path"] if name.startswith("BestCheckpoint") else None
        if file and state["best_model_path"] and not file.is_file():
            raise UserError(
                f"{file}, the best checkpoint so far, is missing: restore it, or start again without resume"
            )


# --- data, plugins, backbone ----------------------------------------------------------------------------------------


def _refuse_other_plugins(config: Train, record: Mapping[str, Any]) -> None:
    today = {name: plugin_of(one.task).origin for name, one in task_configs(config).items()}
    if today != record["plugins"]:
        before, now = (listing(f"{name} of {origin}" for name, origin in p.items()) for p in (record["plugins"], today))
        raise UserError(
            f"the run started with the task {before}, and this would go on with {now}: install what it started with, "
            "or start another run"
        )


def _refuse_other_data(folder: Path, corpora: Mapping[str, CachedCorpus], record: Mapping[str, Any]) -> None:
    """Raise `UserError` where the content of a data file is not what the run started with."""
    for name, corpus in corpora.items():
        before, now = record["data"][name], _data_hashes(corpus)
        for part in (*SPLITS, "labels"):
            if before.get(part) != now.get(part):
                was, is_now = (shown([str(value)[:12] for value in hashes.get(part, [])]) for hashes in (before, now))
                raise UserError(
                    f"{folder} goes on with the data it started with, but {part} has changed: its content hashes were "
                    f"{was} and are {is_now}. Restore the data, or start another run"
                )


def _refuse_other_weights(folder: Path, origin: BackboneOrigin | None, record: Mapping[str, Any]) -> None:
    """Raise `UserError` where the backbone has other weights than at the run's start; checkpoints don't hold them."""
    now = origin.weights_hash if origin else ""
    if now != record["weights"]:
        raise UserError(
            f"{folder} started on a backbone with the weights hash {record['weights']}, and it is {now} now: restore "
            "the backbone, or start another run"
        )
