"""The values of a saved run as overrides between the defaults and what the user sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptask.cli.hydra.task_list import TaskChoice, group_overrides, set_for_every_task
from gptask.config import schemas
from gptask.config.conversion import escaped
from gptask.config.multitask import check_task_names
from gptask.config.overrides import quote_if_needed, values_of
from gptask.config.schemas import AUTO, LATEST, Train
from gptask.errors import UserError, listing, nearest
from gptask.runs.config_file import read_config
from gptask.runs.folder import checkpoint_files, latest_run
from gptask.runs.leftovers import lacks_config, require_unfinished_training

INHERITED = {  # what a verb takes from a run besides its task
    "train": (*schemas.GROUP_SCHEMAS, "mixing", "schedule", "early_stopping", "trainer", "seed", "probe", "compile"),
    "evaluate": ("backbone", "data", "seed"),
    "predict": (),
}
OF_A_SERVER = (
    "task",
    "engine",
    "dtype",
    "data.max_tokens",
)  # what a server has set already for a run that it predicts with


def locate_run(verb: str, overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The run folder whose values a verb takes, if the overrides name one, and the overrides.

    ``run=<run of several tasks> task=<one of them>`` becomes the folder of that task within the run's.
    """
    if verb == "predict" and any(values_of(overrides, "server")):
        return None, _overrides_for_server(overrides)
    if verb == "train":
        return _locate_resumed(overrides)
    runs = values_of(overrides, "run") if verb in INHERITED else []
    if len(runs) > 1:
        raise UserError(f"one run folder at a time; call gptask {verb} once for each of {', '.join(map(str, runs))}")
    run = str(runs[0]) if runs and runs[0] is not None else None
    if not run or not (task_names := list(read_config(run).get("tasks", {}))):
        return run, list(overrides)
    requested = [str(name) for name in values_of(overrides, "task")]
    if len(requested) != 1 or requested[0] not in task_names:
        problem = f"no task '{requested[0]}' in {run}" if requested else f"{run} is a run of several tasks"
        hint = nearest("".join(requested), task_names)
        raise UserError(f"{problem}: choose one by task=, of {listing(task_names)}.{hint}")
    task_folder = str(Path(run) / requested[0])
    others = [o for o in overrides if o.partition("=")[0].lstrip("+") not in ("run", "task")]
    return task_folder, [f"run={quote_if_needed(task_folder)}", *others]


def _locate_resumed(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The run folder whose values a training takes, if it goes on in one that has values, and the overrides.

    With ``resume=auto`` the command line has all values, and so has it for a run that was stopped before it wrote its
    config.yaml. ``resume=latest`` becomes the folder it stands for.
    """
    folders = values_of(overrides, "resume")
    if len(folders) > 1:
        raise UserError(f"one run folder at a time; call gptask train once for each of {', '.join(map(str, folders))}")
    if not folders or folders[0] in (None, AUTO):
        return None, list(overrides)
    folder, others = str(folders[0]), [o for o in overrides if o.partition("=")[0].lstrip("+") != "resume"]
    tasks = [str(name) for name in values_of(overrides, "task")]
    if folder == LATEST:
        outputs = [str(path) for path in values_of(overrides, "outputs")] or [Train.outputs]
        folder = str(latest_run(outputs[0], tasks[0] if len(tasks) == 1 else None))
    resumed = [f"resume={quote_if_needed(folder)}", *others]
    if not lacks_config(Path(folder)):
        return folder, resumed
    if not (tasks or "~task" in overrides or values_of(overrides, "experiment")):  # one task, several, a preset
        raise UserError(
            f"the run in {folder} was stopped before it wrote its options into config.yaml: give those that it was "
            f"started with, gptask train resume={folder} task=<name> ..."
        )
    return None, resumed


def _overrides_for_server(overrides: Sequence[str]) -> list[str]:
    """The overrides where a server predicts, which has the task; raises `UserError` for what only it decides."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key.startswith(tuple(f"{name}." for name in OF_A_SERVER)) or key in OF_A_SERVER:
            hint = "; a task of a run of several is served as run=<name>.<task>" if key == "task" else ""
            raise UserError(f"{override}: with server= the server decides this{hint}. Leave it out")
    return ["~task", *overrides]


def with_run_overrides(verb: str, folder: str, overrides: Sequence[str], environment: Sequence[str]) -> list[str]:
    """The user's overrides behind those for the run's groups and values, so that Hydra checks both alike.

    The user's choice of a group, or the ``environment``'s, replaces the run's with all its values.
    """
    from hydra.core.config_store import ConfigStore

    config = read_config(folder)
    if verb == "train" and not checkpoint_files(Path(folder)):
        require_unfinished_training(Path(folder))
        config = _as_given(config)
    tasks = {name: _saved_task(f"{folder}/config.yaml: tasks.{name}", c) for name, c in config.get("tasks", {}).items()}
    groups, values = dict[str, str](), dict[str, Any]()
    if tasks:
        check_task_names(tasks)
        overrides = set_for_every_task(overrides, tasks)
        values["tasks"] = {name: task.values for name, task in tasks.items()}
    else:
        groups["task"], values["task"] = _plugin_name(f"{folder}/config.yaml", config), config["task"]
    _refuse_conflicts(verb, folder, groups.get("task"), overrides)
    for key in (key for key in INHERITED[verb] if key in config):
        if key not in schemas.GROUP_SCHEMAS:
            values[key] = config[key]
        elif not values_of([*environment, *overrides], key):
            groups[key], values[key] = _group_choice(f"{folder}/config.yaml", key, config[key])
    if verb == "predict":
        values["data"] = {"max_tokens": config["data"]["max_tokens"], "labels": None}
    ConfigStore.instance().store(group="saved", name="run", node=escaped(values), package="_global_")
    choices = [f"{group}={choice}" for group, choice in groups.items() if not values_of(overrides, group)]
    if tasks:
        return [*choices, *group_overrides(tasks), "+saved@_global_=run", *overrides]
    return [*choices, "saved=run", *overrides]


def _as_given(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a run that begins anew: as it was given, before the run chose what was left open."""
    given = config.get("given")
    if not isinstance(given, dict):
        return config
    tasks = {
        name: {**values, **given.get("tasks", {}).get(name, {})} for name, values in config.get("tasks", {}).items()
    }
    return config | given | ({"tasks": tasks} if tasks else {})


def _saved_task(where: str, config: dict[str, Any]) -> TaskChoice:
    """One task of a run of several."""
    data_kind, data = _group_choice(where, "data", config.get("data"))
    values = {"task": config.get("task"), "data": data, "weight": config.get("weight", 1.0)}
    return TaskChoice(_plugin_name(where, config), data_kind, values)


def _plugin_name(where: str, config: dict[str, Any]) -> str:
    plugin = config.get("plugin")
    name = plugin.get("name") if isinstance(plugin, dict) else None
    if not (isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) and isinstance(config.get("task"), dict)):
        raise UserError(f"{where} is damaged: it names no task plugin")
    return name


def _group_choice(where: str, group: str, value: Any) -> tuple[str, dict[str, Any]]:
    """The choice of a group in a saved config, and its values."""
    values = dict(value) if isinstance(value, dict) else {}
    kind = values.pop("kind", None)
    if kind not in schemas.GROUP_SCHEMAS[group]:
        raise UserError(f"{where} is damaged: {group}.kind is {kind!r}")
    if group == "data":
        values.setdefault("stratify", False)  # a run of a version without this option was cut like that
    return kind, values


def _refuse_conflicts(verb: str, folder: str, task: str | None, overrides: Sequence[str]) -> None:
    """Raise `UserError` for overrides that contradict what the run fixes."""
    requested = values_of(overrides, "task")
    if requested and requested != [task]:
        actual = f"task '{task}', not '{requested[0]}'" if task else "several tasks"
        raise UserError(f"{folder} is a run of {actual}; leave task= out")
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if verb == "evaluate" and key.partition(".")[0] == "backbone":
            raise UserError(f"{override}: {folder} has its own backbone; leave this out (run=null takes a bare one)")
