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
from gptask.runs.folder import KEY_IN_CHECKPOINT
from gptask.runs.manifest import MANIFEST
from gptask.runs.saved_model import locate_backbone
from gptask.training.builder import build_corpora, task_configs
from gptask.training.checkpoint_files import latest_checkpoint
from gptask.training.fingerprint import run_fingerprint, starting_digests
from gptask.training.resumed_config import config_as_given, resumed_config, shown, with_given_tasks

if TYPE_CHECKING:
    from gptask.model.backbone.locate import BackboneOrigin


@dataclass(frozen=True)
class Start:
    """How a training starts: its config, its data, its options as given, and the checkpoint it goes on from.

    The fingerprint is that of a run of these options from its beginning, before options left open are chosen.
    """

    config: Train
    corpora: dict[str, CachedCorpus]
    fingerprint: str
    given: dict[str, Any]
    checkpoint: Path | None = None


def new_start(config: Train) -> Start:
    """The start of a new run."""
    corpora = build_corpora(config)
    return Start(config, corpora, run_fingerprint(config, corpora), to_plain(config))


def check_resume(config: Train) -> Start:
    """The start of a run that goes on in the folder ``config.resume``, in which nothing is changed.

    Raises `NoCheckpoint` where there is none to go on from, and `UserError` where it can't go on, where it would be
    another training, and where nothing is left to train.
    """
    from gptask.training.trainer import process_count

    folder = Path(str(config.resume))
    path, checkpoint = latest_checkpoint(folder)
    record = checkpoint[KEY_IN_CHECKPOINT]["record"]
    _refuse_other_plugins(config, record)
    devices = process_count(record["config"]["trainer"] | config.trainer)
    config = resumed_config(config, record, folder, devices)
    _refuse_without_training(folder, checkpoint, config)
    corpora = build_corpora(with_given_tasks(config, record["given"]))
    _refuse_other_data(folder, corpora, record)
    _refuse_other_weights(folder, locate_backbone(config.backbone), record)
    before, now = record.get("start", {}), starting_digests(config)
    if changed := [name for name in now if now[name] != before.get(name)]:
        raise UserError(
            f"{folder} started from {listing(changed)}, whose content has changed since then: restore it, or start "
            "another run"
        )
    given = config_as_given(config, record)
    return Start(config, corpora, run_fingerprint(given, corpora), to_plain(given), path)


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
        "start": starting_digests(config),
    }


def _data_hashes(corpus: CachedCorpus) -> dict[str, Any]:
    """The hashes of each split's files, and the names of the labels."""
    splits, labels = corpus.fingerprint()
    return {name: hashes for name, *hashes in splits} | {"labels": labels}


# --- the checkpoint -------------------------------------------------------------------------------------------------


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
    if finished and (allowed := config.trainer.get("max_time")) is not None:
        _refuse_without_time(folder, checkpoint, allowed)
    patience = config.early_stopping.patience
    waited = [state["wait_count"] for name, state in checkpoint["callbacks"].items() if name.startswith("Patience")]
    if finished and patience is not None and waited and waited[0] >= max(patience, 1):
        raise UserError(
            f"{folder} is finished: validation did not improve {waited[0]} times, and early_stopping.patience="
            f"{patience} allows no more: set early_stopping.patience above {waited[0]}, or to null"
        )


def _refuse_without_time(folder: Path, checkpoint: dict[str, Any], allowed: Any) -> None:
    from pytorch_lightning.callbacks import Timer

    timer = Timer(allowed)
    timer.load_state_dict(checkpoint["callbacks"].get("Timer", {}))
    if (timer.time_remaining() or 0.0) <= 0:
        raise UserError(
            f"{folder} is finished after {timer.time_elapsed():.0f} seconds of training, and trainer.max_time="
            f"{allowed} allows no more: set trainer.max_time above that"
        )


def _trained_epochs(checkpoint: dict[str, Any]) -> int:
    """The epochs that are complete; one that the training ended within is not."""
    loops = checkpoint["loops"]["fit_loop"]
    epochs = loops["epoch_progress"]["current"]
    ended_within = epochs["processed"] == epochs["started"] and not loops["epoch_loop.batch_progress"]["is_last_batch"]
    return int(epochs["processed"]) - bool(ended_within and epochs["processed"])


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
