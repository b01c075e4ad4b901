"""The values of a saved run as overrides between the defaults and what the user sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptask.cli.hydra.task_list import TaskChoice, group_overrides, set_for_every_task
from gptask.config import schemas
from gptask.config.compression import CHOSEN_BY_BACKBONE, OWN_OPTIONS, named_run, untuned, values_to_compress
from gptask.config.conversion import escaped
from gptask.config.multitask import check_task_names
from gptask.config.overrides import quote_if_needed, values_of
from gptask.config.schemas import AUTO, LATEST, Train
from gptask.config.verb_schemas import TRAINING_VERBS, verb_of_run
from gptask.errors import UserError, listing, nearest
from gptask.runs.config_file import read_config
from gptask.runs.folder import checkpoint_files, latest_run, refuse_multitask
from gptask.runs.leftovers import lacks_config, refuse_evaluation, require_unfinished_training

OF_TRAINING = (*schemas.GROUP_SCHEMAS, "mixing", "schedule", "early_stopping", "trainer", "seed", "probe", "compile")
INHERITED = {  # what a verb takes from a run besides its task
    "train": OF_TRAINING,
    "compress": (*OF_TRAINING, *OWN_OPTIONS),
    "evaluate": ("backbone", "data", "seed"),
    "predict": (),
    "explain": (),
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
    if verb in TRAINING_VERBS:
        resumed, overrides = _locate_resumed(verb, overrides)
        if resumed or verb == "train":
            return resumed, list(overrides)
    runs = values_of(overrides, "run") if verb in INHERITED else []
    if verb == "compress" and runs:  # of several teachers, the first one's values
        first, *_ = runs[0] if isinstance(runs[0], list) and runs[0] else runs[:1]
        runs = [named_run(str(first))[1] if first is not None else None, *runs[1:]]
    if len(runs) > 1:
        raise UserError(f"one run folder at a time; call gptask {verb} once for each of {', '.join(map(str, runs))}")
    run = str(runs[0]) if runs and runs[0] is not None else None
    if not run or verb == "compress" or not (task_names := list(read_config(run).get("tasks", {}))):
        return run, list(overrides)
    requested = [str(name) for name in values_of(overrides, "task")]
    if len(requested) != 1 or requested[0] not in task_names:
        problem = f"no task '{requested[0]}' in {run}" if requested else f"{run} is a run of several tasks"
        hint = nearest("".join(requested), task_names)
        raise UserError(f"{problem}: choose one by task=, of {listing(task_names)}.{hint}")
    task_folder = str(Path(run) / requested[0])
    others = [o for o in overrides if o.partition("=")[0].lstrip("+") not in ("run", "task")]
    return task_folder, [f"run={quote_if_needed(task_folder)}", *others]


def _locate_resumed(verb: str, overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The run folder whose values a training takes, if it goes on in one that has values, and the overrides.

    With ``resume=auto`` the command line has all values, and so has it for a run that was stopped before it wrote its
    config.yaml. ``resume=latest`` becomes the folder it stands for.
    """
    folders = values_of(overrides, "resume")
    if len(folders) > 1:
        raise UserError(f"one run folder at a time; call gptask {verb} once for each of {', '.join(map(str, folders))}")
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
    has_options = tasks or "~task" in overrides or values_of(overrides, "experiment")  # one task, several, a preset
    if not (values_of(overrides, "run") if verb == "compress" else has_options):
        first = "run=<folder>" if verb == "compress" else "task=<name>"
        raise UserError(
            f"the run in {folder} was stopped before it wrote its options into config.yaml: give those that it was "
            f"started with, gptask {verb} resume={folder} {first} ..."
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
    if is_resumed(folder, overrides):
        if (made_by := verb_of_run(config)) in TRAINING_VERBS and made_by != verb:
            raise UserError(f"{folder} was begun by gptask {made_by}: gptask {made_by} resume={folder} goes on with it")
        if not checkpoint_files(Path(folder)):
            require_unfinished_training(Path(folder))
            config = _as_given(config)
    elif verb == "compress":
        refuse_evaluation(Path(folder), config)
        teachers, student = values_of(overrides, "run")[0], bool(values_of(overrides, "student"))
        config = values_to_compress(folder, config, student)
        if isinstance(teachers, list) and len(teachers) > 1:
            config = _of_several_teachers(config, [named_run(str(teacher)) for teacher in teachers])
        config = {name: value for name, value in config.items() if name not in OWN_OPTIONS}
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
    if verb in ("predict", "explain"):
        values["data"] = {"max_tokens": config["data"]["max_tokens"], "labels": None}
    ConfigStore.instance().store(group="saved", name="run", node=escaped(values), package="_global_")
    choices = [f"{group}={choice}" for group, choice in groups.items() if not values_of(overrides, group)]
    if tasks:
        return [*choices, *group_overrides(tasks), "+saved@_global_=run", *overrides]
    return [*choices, "saved=run", *overrides]


def _of_several_teachers(config: dict[str, Any], teachers: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The config of the first of several teachers, each given by name and folder, with the tasks of all of them."""
    tasks: dict[str, Any] = {}
    for name, folder in teachers:
        values = untuned(read_config(folder))
        refuse_evaluation(Path(folder), values)
        refuse_multitask(folder, values)
        name = name or values.get("task_name") or _plugin_name(f"{folder}/config.yaml", values)
        if name in tasks:
            raise UserError(
                f"run= names two teachers of '{name}': give one another name, as in run=[{name},other:{folder}]"
            )
        tasks[name] = {entry: values[entry] for entry in ("plugin", "task", "data")}
    trainer = {name: value for name, value in config["trainer"].items() if name not in CHOSEN_BY_BACKBONE}
    single = ("plugin", "task", "data", "task_name")
    return {name: value for name, value in config.items() if name not in single} | {"tasks": tasks, "trainer": trainer}


def with_student(verb: str, overrides: Sequence[str]) -> list[str]:
    """The overrides with the backbone that ``student`` chooses for `gptask compress` as ``backbone``."""
    if verb != "compress":
        return list(overrides)
    changed, chosen = [], False
    for override in overrides:
        key, equals, value = override.partition("=")
        part = key.lstrip("+~")
        if part == "student" and value in ("null", ""):
            continue
        is_student = part.partition(".")[0] == "student"
        chosen = chosen or is_student
        changed.append(key.replace("student", "backbone", 1) + equals + value if is_student else override)
    return [*changed, *(["student=backbone"] if chosen else [])]


def is_resumed(folder: str | None, overrides: Sequence[str]) -> bool:
    """Whether the run folder whose values a verb takes is the one in which it goes on."""
    return folder is not None and folder in map(str, values_of(overrides, "resume"))


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
    kind = str(values.pop("kind", None))
    if kind not in schemas.GROUP_SCHEMAS[group]:
        raise UserError(f"{where} is damaged: {group}.kind is {kind[:40]!r}")
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
