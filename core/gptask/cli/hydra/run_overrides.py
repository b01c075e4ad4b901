"""The values of a saved run, put between the defaults and what the user overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptask.cli.hydra.task_list import Choice, appended, spread
from gptask.config import schemas
from gptask.config.overrides import quote_if_needed, values_of
from gptask.errors import UserError, listing, nearest
from gptask.runs.config_file import read_config

SHARED = {  # what a verb takes over from a run, beside its task
    "train": (*schemas.GROUPS, "mixing", "schedule", "early_stopping", "trainer", "seed", "probe", "compile"),
    "evaluate": ("backbone", "data", "seed"),
    "predict": (),
}


def run_of(verb: str, overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The run folder whose values a verb takes over, if its overrides name one, and the overrides.

    ``run=<several tasks> task=<one of them>`` becomes that one's folder within the run's.
    """
    values = values_of(overrides, "resume" if verb == "train" else "run") if verb in SHARED else []
    if len(values) > 1:
        raise UserError(f"one run folder at a time; call gptask {verb} once for each of {', '.join(map(str, values))}")
    run = str(values[0]) if values and values[0] is not None else None
    if not run or verb == "train" or not (names := list(read_config(run).get("tasks", {}))):
        return run, list(overrides)
    asked = [str(name) for name in values_of(overrides, "task")]
    if len(asked) != 1 or asked[0] not in names:
        what = f"no task '{asked[0]}' in {run}" if asked else f"{run} is a run of several tasks"
        raise UserError(f"{what}: choose one by task=, of {listing(names)}.{nearest(''.join(asked), names)}")
    own = f"run={quote_if_needed(str(Path(run) / asked[0]))}"
    aside = {"run", "task"}
    return str(Path(run) / asked[0]), [own, *(o for o in overrides if o.partition("=")[0].lstrip("+") not in aside)]


def from_run(verb: str, folder: str, overrides: Sequence[str]) -> list[str]:
    """Overrides that choose the run's groups and its values, before the user's own, so that both are checked alike."""
    from hydra.core.config_store import ConfigStore

    values = read_config(folder)
    if verb == "train" and not any((Path(folder) / "checkpoints").glob("*.ckpt")):
        whole = f"; it is one task of {Path(folder).parent}, which can be resumed" if values.get("member") else ""
        raise UserError(f"{folder} has no checkpoint to go on from{whole or '; start again without resume'}")
    tasks = {name: _choice(f"{folder}/config.yaml: tasks.{name}", own) for name, own in values.get("tasks", {}).items()}
    groups, saved = dict[str, str](), dict[str, Any]()
    if tasks:
        overrides = spread(overrides, tasks)
        saved["tasks"] = {name: choice.values for name, choice in tasks.items()}
    else:
        groups["task"], saved["task"] = _task(folder, values), values["task"]
    _refuse(verb, folder, groups.get("task"), overrides)
    for key in (key for key in SHARED[verb] if key in values):
        value = values[key]
        if key in schemas.GROUPS:
            if values_of(overrides, key):  # the user asks for another: nothing of the run's is kept
                continue
            kind, value = _kind(folder, key, value)
            groups[key] = kind
        saved[key] = value
    if verb == "predict":
        saved["data"] = {"max_tokens": values["data"]["max_tokens"], "labels": None}
    ConfigStore.instance().store(group="saved", name="run", node=saved, package="_global_")
    choices = [f"{group}={kind}" for group, kind in groups.items() if not values_of(overrides, group)]
    if tasks:
        return [*choices, *appended(tasks), "+saved@_global_=run", *overrides]
    return [*choices, "saved=run", *overrides]


def _choice(where: str, values: dict[str, Any]) -> Choice:
    """One of the several tasks of a run."""
    kind, data = _kind(where, "data", values.get("data"))
    own = {"task": values.get("task"), "data": data, "weight": values.get("weight", 1.0)}
    return Choice(_task(where, values), kind, own)


def _task(folder: str, values: dict[str, Any]) -> str:
    plugin = values.get("plugin")
    if not (isinstance(plugin, dict) and isinstance(plugin.get("name"), str) and isinstance(values.get("task"), dict)):
        raise UserError(f"{folder}/config.yaml is damaged: it names no task plugin")
    return plugin["name"]


def _kind(folder: str, group: str, value: Any) -> tuple[str, dict[str, Any]]:
    rest = dict(value) if isinstance(value, dict) else {}
    kind = rest.pop("kind", None)
    if kind not in schemas.GROUPS[group]:
        raise UserError(f"{folder}/config.yaml is damaged: {group}.kind is {kind!r}")
    return kind, rest


def _refuse(verb: str, folder: str, task: str | None, overrides: Sequence[str]) -> None:
    """What a run brings itself can't be set beside it."""
    given = values_of(overrides, "task")
    if given and given != [task]:
        of = f"task '{task}', not '{given[0]}'" if task else "several tasks"
        raise UserError(f"{folder} is a run of {of}; leave task= out")
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if verb == "evaluate" and key.partition(".")[0] == "backbone":
            raise UserError(f"{override}: {folder} brings its own backbone; leave this out (run=null takes a bare one)")
