"""The options of a run that goes on: those it started with, but for the few that may change."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from gptask.config.conversion import from_plain, to_plain
from gptask.config.schemas import GROUP_SCHEMAS, TaskConfig, Train
from gptask.errors import UserError, listing
from gptask.training.builder import task_configs, with_task_configs

Option = tuple[str, ...]  # the parts of an option's dotted name
MAY_CHANGE = (
    "trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "early_stopping", "checkpoint", "logger", "probe",
    "baseline", "engine", "data.workers", "data.eval_batch_size",
)  # fmt: skip
SHOWN_ONLY = ("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler", "enable_autolog_hparams")
GLOBAL_BATCH = (("trainer", "devices"), ("trainer", "num_nodes"), ("trainer", "accumulate_grad_batches"))
WHERE = ("outputs", "folder", "resume")  # a run knows where it is; it may have been moved
MISSING = object()


def resumed_config(config: Train, record: Mapping[str, Any], folder: Path, world_size: int) -> Train:
    """The config of a run that goes on: what it started with, and the options of today that may change.

    An option that was left open at the start, and still is, keeps the value that was chosen. Raises `UserError` for any
    other difference, with both values.
    """
    started, given, now = record["config"], record["given"], to_plain(config)
    merged, differences, batch_differences = deepcopy(started), [], []
    for option in sorted({*_leaves(started), *_leaves(now)}, key=str):
        before, today, may_change = _value(started, option), _value(now, option), _may_change(option)
        unset = today is MISSING and option[0] == "trainer"
        as_given = today is not MISSING and today == _value(given, option) and (today is None or not may_change)
        if option[0] in WHERE or before == today or unset or as_given:
            continue
        if may_change:
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


def config_as_given(config: Train, record: Mapping[str, Any]) -> Train:
    """What a `resumed_config` would have been given as at the run's start: options left open then are open in it."""
    started, given, now = record["config"], deepcopy(record["given"]), to_plain(config)
    for option in {*_leaves(started), *_leaves(now)}:
        if option[0] not in WHERE and _value(started, option) != (today := _value(now, option)):
            _set(given, option, today)
    return _typed(config, given)


def differing_options(saved: Mapping[str, Any], now: Mapping[str, Any], ignored: Collection[str]) -> list[str]:
    """How options that a config sets differ from those in a run's config.yaml, a phrase each."""
    options = [option for option in _leaves(now) if option[0] not in ignored]
    values = {option: (_value(saved, option), _value(now, option)) for option in options}
    return [
        f"{_dotted(option)} is {shown(before)} in it and {shown(today)} now"
        for option, (before, today) in values.items()
        if before != today and today not in (None, [], {})
    ]


def _may_change(option: Option) -> bool:
    """Whether an option may differ from the run's start; those of several tasks' data are named without the task."""
    name = _joined(option[2:] if option[0] == "tasks" else option)
    shown_only = option[0] == "trainer" and option[1] in SHOWN_ONLY
    return shown_only or any(f"{name}.".startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def _refusal(folder: Path, differences: list[tuple[Option, Any, Any]]) -> str:
    values = (
        f"  {_dotted(option)}: {shown(before)} in the run, {shown(today)} now" for option, before, today in differences
    )
    may_change = listing([*MAY_CHANGE, "trainer.devices", "options that only show something"])
    return "\n".join(
        [
            f"{folder} goes on with the options it started with, and these differ:",
            *values,
            f"Leave them out, or start another run. A run that goes on may change {may_change}",
        ]
    )


def _dotted(option: Option) -> str:
    return _joined(option[:-1] if option[-1] == "kind" else option)


def _joined(option: Option) -> str:
    """The dotted name of an option; a key of a map, such as a label's id, may be a number."""
    return ".".join(map(str, option))


def shown(value: Any) -> str:
    """A value as JSON on one line."""
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
        elif isinstance(current, Enum):
            values[name] = type(current)[value]
        else:
            values[name] = value
    return replace(config, **values)


def with_given_tasks(config: Train, given: Mapping[str, Any]) -> Train:
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
