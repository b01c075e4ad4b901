"""What has to be checked before a run goes on: that it is the same training, and that something is left to train.

Each checkpoint holds a record of the run's start. A resumed run takes its options from there, but for those that may
change, and nothing in the folder is touched before all is checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import from_plain, to_plain
from gptask.config.schemas import GROUP_SCHEMAS, TaskConfig, Train
from gptask.data.corpus import SPLITS, CachedCorpus
from gptask.errors import UserError, listing
from gptask.plugins.discovery import plugin_of
from gptask.runs.folder import checkpoint_files
from gptask.runs.manifest import MANIFEST
from gptask.runs.saved_model import locate_backbone
from gptask.training.builder import build_corpora, task_configs, with_task_configs

if TYPE_CHECKING:
    from gptask.model.backbone.locate import BackboneOrigin

Option = tuple[str, ...]  # the parts of an option's dotted name
MAY_CHANGE = (
    "trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "early_stopping", "logger", "probe", "engine",
    "data.workers", "data.eval_batch_size", "checkpoint",
)  # fmt: skip
SHOWN_ONLY = ("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler", "enable_autolog_hparams")
GLOBAL_BATCH = (("trainer", "devices"), ("trainer", "num_nodes"), ("trainer", "accumulate_grad_batches"))
KEY = "gptask"  # of what gptask adds to a checkpoint
WHERE = ("outputs", "folder", "resume")  # a run knows where it is; it may have been moved
MISSING = object()


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
    record = checkpoint[KEY]["record"]
    _refuse_other_plugins(config, record)
    devices = build_trainer(folder, record["config"]["trainer"] | config.trainer, logger=False).world_size
    config = resumed_config(config, record, folder, devices)
    _refuse_without_training(folder, checkpoint, config)
    _require_best(folder, checkpoint)
    corpora = build_corpora(_with_given_tasks(config, record["given"]))
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
    return {
        "config": plain | {"trainer": plain["trainer"] | {"precision": plain["trainer"].get("precision") or "32-true"}},
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
    latest = max(files, key=lambda path: (checkpoints[path]["global_step"], order.get(path.stem.split("-")[0], 0)))
    if KEY not in checkpoints[latest]:
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
            f"{folder} is finished: validation did not improve {waited[0]} times, and early_stopping.patience={patience} "
            f"allows no more: set early_stopping.patience above {waited[0]}, or to null"
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


# --- options --------------------------------------------------------------------------------------------------------


def resumed_config(config: Train, record: Mapping[str, Any], folder: Path, world_size: int) -> Train:
    """The config of a run that goes on: what it started with, and the options of today that may change.

    An option that was left open at the start, and still is, keeps the value that was chosen. Raises `UserError` for any
    other difference, with both values.
    """
    _refuse_other_plugins(config, record)
    started, given, now = record["config"], record["given"], to_plain(config)
    merged, differences, batch_differences = deepcopy(started), [], []
    for option in sorted({*_leaves(started), *_leaves(now)}, key=str):
        before, today = _value(started, option), _value(now, option)
        unset = today is MISSING and option[0] == "trainer"
        if option[0] in WHERE or before == today or unset or (today == _value(given, option) and today != MISSING):
            continue
        if _may_change(option):
            _set(merged, option, today)
        elif option in GLOBAL_BATCH:
            batch_differences.append((option, before, today))
        else:
            differences.append((option, before, today))
    batches_before = record["world_size"] * started["trainer"].get("accumulate_grad_batches", 1)
    accumulate = now["trainer"].get("accumulate_grad_batches") or started["trainer"].get("accumulate_grad_batches", 1)
    for option, _, today in batch_differences:
        _set(merged, option, today)
    if (batches := world_size * accumulate) != batches_before:
        differences += batch_differences
        differences.append((("devices times trainer.accumulate_grad_batches",), batches_before, batches))
    if differences:
        raise UserError(_refusal(folder, differences))
    merged |= {name: started[name] for name in ("outputs", "folder")} | {"resume": str(folder)}
    return _typed(config, merged)


def _may_change(option: Option) -> bool:
    """Whether an option may differ from the run's start; those of several tasks' data are named without the task."""
    name = ".".join(option[2:] if option[0] == "tasks" else option)
    shown_only = option[0] == "trainer" and option[1] in SHOWN_ONLY
    return shown_only or any(f"{name}.".startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def _refusal(folder: Path, differences: list[tuple[Option, Any, Any]]) -> str:
    values = (
        f"  {_dotted(option)}: {_shown(before)} in the run, {_shown(today)} now" for option, before, today in differences
    )
    may_change = listing([*MAY_CHANGE, "trainer.devices"])
    return "\n".join(
        [
            f"{folder} goes on with the options it started with, and these differ:",
            *values,
            f"Leave them out, or start another run. A run that goes on may change {may_change}",
        ]
    )


def _dotted(option: Option) -> str:
    return ".".join(option[:-1] if option[-1] == "kind" else option)


def _shown(value: Any) -> str:
    text = "not set" if value is MISSING else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:199]}…"


def _leaves(values: Mapping[str, Any], start: Option = ()) -> Iterator[Option]:
    """The options of nested plain values."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*start, name))
        else:
            yield (*start, name)


def _value(values: Any, option: Option) -> Any:
    for name in option:
        if not isinstance(values, dict) or name not in values:
            return MISSING
        values = values[name]
    return values


def _set(values: dict[str, Any], option: Option, value: Any) -> None:
    *groups, name = option
    for group in groups:
        values = values.setdefault(group, {})
    if value is MISSING:
        values.pop(name, None)
    else:
        values[name] = value


def _typed(config: Train, plain: dict[str, Any]) -> Train:
    """The config with the plain values, each in the type that the config's own has."""
    values: dict[str, Any] = {}
    for name, value in plain.items():
        current = getattr(config, name)
        if name == "tasks":
            values[name] = {key: _typed_task(config.tasks[key], one) for key, one in value.items()}
        elif name in GROUP_SCHEMAS:
            values[name] = from_plain(name, value)
        elif isinstance(value, dict) and name != "trainer":
            values[name] = from_plain(name, value, type(current))
        else:
            values[name] = value
    return replace(config, **values)


def _with_given_tasks(config: Train, given: Mapping[str, Any]) -> Train:
    """The config with its tasks as first given: then the data is read as it was, from the cache if it is there."""
    given_tasks = [one["task"] for one in given["tasks"].values()] if config.tasks else [given["task"]]
    tasks = {
        name: replace(one, task=from_plain("task", plain, type(one.task)))
        for (name, one), plain in zip(task_configs(config).items(), given_tasks, strict=True)
    }
    return with_task_configs(config, tasks)


def _typed_task(config: TaskConfig, plain: dict[str, Any]) -> TaskConfig:
    return TaskConfig(
        from_plain("task", plain["task"], type(config.task)), from_plain("data", plain["data"]), plain["weight"]
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
                was, is_now = (_shown([str(value)[:12] for value in hashes.get(part, [])]) for hashes in (before, now))
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
