"""``tasks=[qa,mine:classification,trec]`` in Hydra's terms: each task and its data are composed under its own name."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptask.config.multitask import check_names
from gptask.config.overrides import values_of
from gptask.errors import UserError, listing, nearest
from gptask.plugins.discovery import Plugin
from gptask.plugins.discovery import load_task_class as plugin_called

log = logging.getLogger("gptask")
CHOICE = re.compile(r"\+?(?:(?:task|data)@)?tasks\.(?P<name>\w+)\.(?P<group>task|data)=(?P<value>[\w,-]+)")
NAMED = re.compile(r"[~+]*(?:(?:task|data)@)?tasks\.(?P<name>[^.=@]+)")
SHARED = re.compile(r"(?P<sign>[~+]*)(?P<key>(?:task|data)\..+)", re.DOTALL)
HOW = "write tasks=[qa,trec], installed tasks or presets on real data (experiment), or a name with one: [mine:qa]"


@dataclass
class Choice:
    """What one of several tasks is composed of: its task, its kind of data, and values that go over theirs."""

    task: str
    data: str = "sample"
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Several:
    """Several tasks on a command line: ``choices`` by name, the overrides that are left, and what stood for them."""

    choices: dict[str, Choice]
    rest: list[str]
    typed: list[str]

    def composed(self) -> list[str]:
        """The overrides that make Hydra compose the tasks, before those that are left."""
        from hydra.core.config_store import ConfigStore

        values = {"tasks": {name: choice.values for name, choice in self.choices.items()}}
        ConfigStore.instance().store(group="saved", name="tasks", node=values, package="_global_")
        return [*appended(self.choices), "+saved@_global_=tasks", *self.rest]


def appended(choices: Mapping[str, Choice]) -> list[str]:
    """Each task's groups under its name, in place of the one task that a config has by default."""
    groups = [(name, g, getattr(choice, g)) for name, choice in choices.items() for g in ("task", "data")]
    return ["~task", "~data", *(f"+{group}@tasks.{name}.{group}={value}" for name, group, value in groups)]


def several(overrides: Sequence[str], plugins: Mapping[str, Plugin], folder: str | None) -> Several | None:
    """The tasks that normalized overrides ask for by ``tasks=``, None without it.

    ``folder`` is the user's own of configs. Raises `UserError` for what is neither a task nor a preset.
    """
    if not (asked := values_of(overrides, "tasks")):
        return None
    names = _names(asked)
    _refuse(overrides)
    every = spread(overrides, names)
    typed = [o for o in every if CHOICE.fullmatch(o) or o.partition("=")[0].lstrip("+") in ("tasks", "data")]
    given = _given(typed, names)
    with _presets(folder) as preset:
        choices = {name: _choice(what, given[name], plugins, preset) for name, what in names.items()}
    return Several(choices, [o for o in every if o not in typed], typed)


def _given(typed: Sequence[str], names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The groups that were chosen for each task: ``data=files`` for all, ``tasks.qa.data=squad`` for one."""
    alike = {"data": str(data[0])} if (data := values_of(typed, "data")) else {}
    given = {name: dict(alike) for name in names}
    for override in typed:
        if found := CHOICE.fullmatch(override):
            if "," in found["value"]:
                raise UserError(f"{override}: a task of several has one {found['group']}; call gptask once for each")
            given[found["name"]][found["group"]] = found["value"]
    return given


def spread(overrides: Iterable[str], names: Iterable[str]) -> list[str]:
    """Overrides in which an option of ``task`` or ``data`` is set for every task, before what is said of one.

    Raises `UserError` for a task that is not among ``names``.
    """
    names, shared, own = list(names), list[str](), list[str]()
    for override in overrides:
        key = override.partition("=")[0]
        if (found := NAMED.match(key)) and found["name"] not in names:
            raise UserError(
                f"{override}: '{found['name']}' is none of the tasks: {listing(names)}.{nearest(found['name'], names)}"
            )
        if found := SHARED.fullmatch(override):
            shared += [f"{found['sign']}tasks.{name}.{found['key']}" for name in names]
        else:
            own.append(override)
    return shared + own


def _names(asked: Sequence[Any]) -> dict[str, str]:
    """Each task's name, and the task or preset it stands for."""
    if len(asked) > 1:
        raise UserError(f"tasks= takes one list, not several values; {HOW}")
    if not isinstance(asked[0], list) or not asked[0]:
        raise UserError(f"tasks={asked[0]}: expected a list; {HOW}")
    found: dict[str, str] = {}
    for item in map(str, asked[0]):
        name, _, what = item.partition(":")
        if name in found:
            raise UserError(f"tasks= names '{name}' twice; {HOW}")
        found[name] = what or name
    check_names(found)
    return found


def _refuse(overrides: Sequence[str]) -> None:
    for key in ("task", "experiment", "resume"):
        if any(value is not None for value in values_of(overrides, key)):
            why = "goes on with the run's own tasks" if key == "resume" else "is for a run of one task"
            raise UserError(f"{key}= {why}; leave it or tasks= out ({HOW})")


def _choice(what: str, given: Mapping[str, str], plugins: Mapping[str, Plugin], preset: Any) -> Choice:
    """What a name stands for, with what the user chose for it."""
    found = Choice(what)
    if what not in plugins and (made := preset(what)):
        found = made
    elif what not in plugins and "task" not in given:
        known = [*plugins, *preset.names]
        raise UserError(
            f"tasks: '{what}' is neither a task ({listing(plugins)}) nor a preset ({listing(preset.names)})."
            f"{nearest(what, known)}"
        )
    for group, value in given.items():
        if value != getattr(found, group):  # the user asks for another: nothing of the preset's is kept
            setattr(found, group, value)
            found.values.pop(group, None)
    plugin_called(dict(plugins), found.task)
    return found


class _presets:
    """The presets on real data, ``experiment=``: the task and the data that each asks for, by name."""

    def __init__(self, folder: str | None) -> None:
        from gptask.cli.hydra.compose import hydra_on

        self._hydra = hydra_on(folder)

    def __enter__(self) -> _presets:
        self.configs = self._hydra.__enter__().config_loader
        self.names = self.configs.get_group_options("experiment")
        return self

    def __exit__(self, *error: Any) -> None:
        self._hydra.__exit__(*error)

    def __call__(self, name: str) -> Choice | None:
        from omegaconf import OmegaConf

        if name not in self.names:
            return None
        found = self.configs.repository.load_config(f"experiment/{name}")
        groups = {str(default.group).lstrip("/"): default.value for default in found.defaults_list}
        values: dict[str, Any] = OmegaConf.to_container(found.config)  # type: ignore[assignment]
        if others := sorted({*values, *groups} - {"task", "data"}):
            log.info("%s: its %s are for a run of this task alone, and not taken over", name, listing(others))
        own = {group: value for group, value in values.items() if group in ("task", "data")}
        return Choice(groups.get("task", "sentiment"), groups.get("data", "sample"), own)
