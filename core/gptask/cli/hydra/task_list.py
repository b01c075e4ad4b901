"""``tasks=[qa,mine:classification,trec]`` in Hydra's terms: each task and its data are composed under its own name."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptask.cli.hydra.compose import loader, search_path
from gptask.cli.hydra.private import read_preset
from gptask.config.multitask import check_task_names
from gptask.config.overrides import values_of
from gptask.config.schemas import AUTO
from gptask.errors import UserError, listing, nearest
from gptask.plugins.discovery import Plugin, load_task_class
from gptask.runs.leftovers import lacks_config

log = logging.getLogger("gptask")
GROUP_OF_TASK = re.compile(r"\+?(?:(?:task|data)@)?tasks\.(?P<name>\w+)\.(?P<group>task|data)=(?P<value>[\w,-]+)")
OPTION_OF_TASK = re.compile(r"[~+]*(?:(?:task|data)@)?tasks\.(?P<name>[^.=@]+)")
SHARED_OPTION = re.compile(r"(?P<sign>[~+]*)(?P<key>(?:task|data)\..+)", re.DOTALL)
SYNTAX = "write tasks=[qa,trec], installed tasks or presets on real data (experiment), or a name with one: [mine:qa]"


@dataclass
class TaskChoice:
    """What one of several tasks is composed of: its task, its kind of data, and values that replace their defaults."""

    task: str
    data: str = "sample"
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskList:
    """The tasks of a command line by name, the overrides about them as ``typed``, and the ``other`` overrides."""

    choices: dict[str, TaskChoice]
    typed: list[str]
    other: list[str]

    def hydra_overrides(self) -> list[str]:
        """Overrides that make Hydra compose the tasks, followed by the other overrides."""
        from hydra.core.config_store import ConfigStore

        values = {"tasks": {name: choice.values for name, choice in self.choices.items()}}
        ConfigStore.instance().store(group="saved", name="tasks", node=values, package="_global_")
        return [*group_overrides(self.choices), "+saved@_global_=tasks", *self.other]


def group_overrides(choices: Mapping[str, TaskChoice]) -> list[str]:
    """Overrides that replace the default task by each task's groups under its name."""
    groups = [
        f"+{group}@tasks.{name}.{group}={value}"
        for name, choice in choices.items()
        for group, value in (("task", choice.task), ("data", choice.data))
    ]
    return ["~task", "~data", *groups]


def set_for_every_task(overrides: Iterable[str], names: Iterable[str]) -> list[str]:
    """Overrides with options of ``task`` and ``data`` set for every task, before those for a single task.

    Raises `UserError` for an option of a task that is not among ``names``.
    """
    names, for_every_task, others = list(names), list[str](), list[str]()
    for override in overrides:
        match = OPTION_OF_TASK.match(override.partition("=")[0])
        if match and match["name"] not in names:
            hint = nearest(match["name"], names)
            raise UserError(f"{override}: '{match['name']}' is none of the tasks: {listing(names)}.{hint}")
        if shared := SHARED_OPTION.fullmatch(override):
            for_every_task += [f"{shared['sign']}tasks.{name}.{shared['key']}" for name in names]
        else:
            others.append(override)
    return for_every_task + others


def read_task_list(overrides: Sequence[str], plugins: Mapping[str, Plugin]) -> TaskList | None:
    """The tasks that ``tasks=`` in normalized overrides names, None without it.

    Raises `UserError` for a name that is neither a task nor a preset.
    """
    if not (values := values_of(overrides, "tasks")):
        return None
    sources = _task_sources(values)
    _refuse_single_task_options(overrides)
    every_override = set_for_every_task(overrides, sources)
    typed = [
        o for o in every_override if GROUP_OF_TASK.fullmatch(o) or o.partition("=")[0].lstrip("+") in ("tasks", "data")
    ]
    groups = _chosen_groups(typed, sources)
    with loader() as configs:
        presets = _ExperimentPresets(configs, search_path(overrides))
        choices = {name: _task_choice(what, groups[name], plugins, presets) for name, what in sources.items()}
    return TaskList(choices, typed, [o for o in every_override if o not in typed])


def _task_sources(values: Sequence[Any]) -> dict[str, str]:
    """Name -> the task or preset that it stands for, from the values of ``tasks=``."""
    if len(values) > 1:
        raise UserError(f"tasks= takes one list, not several values; {SYNTAX}")
    if not isinstance(values[0], list) or not values[0]:
        raise UserError(f"tasks={values[0]}: expected a list; {SYNTAX}")
    sources: dict[str, str] = {}
    for item in map(str, values[0]):
        name, _, what = item.partition(":")
        if name in sources:
            raise UserError(f"tasks= names '{name}' twice; {SYNTAX}")
        sources[name] = what or name
    check_task_names(sources)
    return sources


def _refuse_single_task_options(overrides: Sequence[str]) -> None:
    for key in ("task", "experiment", "resume"):
        values = [value for value in values_of(overrides, key) if value is not None]
        has_tasks = key == "resume" and not any(value == AUTO or lacks_config(Path(str(value))) for value in values)
        if values and (has_tasks or key != "resume"):
            reason = "continues the run with its own tasks" if key == "resume" else "is for a run of one task"
            raise UserError(f"{key}= {reason}; leave it or tasks= out ({SYNTAX})")


def _chosen_groups(typed: Sequence[str], names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The groups chosen for each task: by ``data=files`` for all of them, by ``tasks.qa.data=squad`` for one."""
    shared = {"data": str(data[0])} if (data := values_of(typed, "data")) else {}
    groups = {name: dict(shared) for name in names}
    for override in typed:
        if match := GROUP_OF_TASK.fullmatch(override):
            if "," in match["value"]:
                raise UserError(f"{override}: one {match['group']} per task; call gptask once for each value")
            groups[match["name"]][match["group"]] = match["value"]
    return groups


def _task_choice(
    what: str, groups: Mapping[str, str], plugins: Mapping[str, Plugin], presets: _ExperimentPresets
) -> TaskChoice:
    """The choice for a task or preset, with the groups that the user chose for it."""
    choice = TaskChoice(what)
    if what not in plugins and what in presets.names:
        choice = presets.task_choice(what)
    elif what not in plugins and "task" not in groups:
        hint = nearest(what, [*plugins, *presets.names])
        raise UserError(
            f"tasks: '{what}' is neither a task ({listing(plugins)}) nor a preset ({listing(presets.names)}).{hint}"
        )
    for group, value in groups.items():
        if value != getattr(choice, group):  # the user's choice replaces the preset's with all its values
            setattr(choice, group, value)
            choice.values.pop(group, None)
    load_task_class(dict(plugins), choice.task)
    return choice


class _ExperimentPresets:
    """The presets of ``experiment=`` by name: the task and the data of each."""

    def __init__(self, configs: Any, search: list[str]) -> None:
        self.configs, self.search = configs, search
        self.names: list[str] = configs.get_group_options("experiment", overrides=search)

    def task_choice(self, name: str) -> TaskChoice:
        """The task and the data of a preset; its other values are for a run of one task and are logged."""
        from omegaconf import OmegaConf

        preset = read_preset(self.configs, f"experiment/{name}", self.search)
        groups = {str(default.group).lstrip("/"): default.value for default in preset.defaults_list}
        values: dict[str, Any] = OmegaConf.to_container(preset.config)  # type: ignore[assignment]
        if unused := sorted({*values, *groups} - {"task", "data"}):
            log.info("%s: the preset's options of %s are ignored: they hold for this task alone", name, listing(unused))
        values = {group: value for group, value in values.items() if group in ("task", "data")}
        return TaskChoice(groups.get("task", "sentiment"), groups.get("data", "sample"), values)
