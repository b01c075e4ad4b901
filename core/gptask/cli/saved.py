"""The values of a saved run, put between the defaults and what the user overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptask import config as schemas
from gptask.cli.overrides import chosen
from gptask.errors import UserError
from gptask.run import read_config

SHARED = {  # what a verb takes over from a run, beside its task
    "train": (*schemas.GROUPS, "schedule", "early_stopping", "trainer", "seed", "probe", "compile"),
    "evaluate": ("backbone", "data", "seed"),
    "predict": (),
}


def run_of(verb: str, overrides: Sequence[str]) -> str | None:
    """The run folder whose values a verb takes over, if its overrides name one."""
    values = chosen(overrides, "resume" if verb == "train" else "run") if verb in SHARED else []
    if len(values) > 1:
        raise UserError(f"one run folder at a time; call gptask {verb} once for each of {', '.join(map(str, values))}")
    return str(values[0]) if values and values[0] is not None else None


def from_run(verb: str, folder: str, overrides: Sequence[str]) -> list[str]:
    """Overrides that choose the run's groups and its values, before the user's own, so that both are checked alike."""
    from hydra.core.config_store import ConfigStore

    values = read_config(folder)
    name = _task(folder, values)
    if verb == "train" and not any((Path(folder) / "checkpoints").glob("*.ckpt")):
        raise UserError(f"{folder} has no checkpoint to go on from; start again without resume")
    _refuse(verb, folder, name, overrides)
    groups, saved = {"task": name}, {"task": values["task"]}
    for key in (key for key in SHARED[verb] if key in values):
        value = values[key]
        if key in schemas.GROUPS:
            if chosen(overrides, key):  # the user asks for another: nothing of the run's is kept
                continue
            kind, value = _kind(folder, key, value)
            groups[key] = kind
        saved[key] = value
    if verb == "predict":
        saved["data"] = {"max_tokens": values["data"]["max_tokens"], "labels": None}
    ConfigStore.instance().store(group="saved", name="run", node=saved, package="_global_")
    choices = [f"{group}={kind}" for group, kind in groups.items() if not chosen(overrides, group)]
    return [*choices, "saved=run", *overrides]


def _task(folder: str, values: dict[str, Any]) -> str:
    plugin = values["plugin"]
    if not (isinstance(plugin, dict) and isinstance(plugin.get("name"), str) and isinstance(values["task"], dict)):
        raise UserError(f"{folder}/config.yaml is damaged: it names no task plugin")
    return plugin["name"]


def _kind(folder: str, group: str, value: Any) -> tuple[str, dict[str, Any]]:
    rest = dict(value) if isinstance(value, dict) else {}
    kind = rest.pop("kind", None)
    if kind not in schemas.GROUPS[group]:
        raise UserError(f"{folder}/config.yaml is damaged: {group}.kind is {kind!r}")
    return kind, rest


def _refuse(verb: str, folder: str, task: str, overrides: Sequence[str]) -> None:
    """What a run brings itself can't be set beside it."""
    given = chosen(overrides, "task")
    if given and given != [task]:
        raise UserError(f"{folder} is a run of task '{task}', not '{given[0]}'; leave task= out")
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if verb == "evaluate" and key.partition(".")[0] == "backbone":
            raise UserError(f"{override}: {folder} brings its own backbone; leave this out (run=null takes a bare one)")
