"""Task plugins, found through the entry-point group ``gptask.tasks`` and isolated from one another.

Nothing of a plugin is imported before its task is asked for. ``GPTASK_PLUGINS=dist1,dist2`` limits discovery to the
plugins of these distributions, ``GPTASK_PLUGINS=-dist3`` leaves those of one out.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from importlib.resources import files

from gptask.errors import UserError, listing, nearest
from gptask.plugins.compatibility import Incompatible, check_task_class, contract_version_of
from gptask.plugins.isolation import isolated
from gptask.plugins.task import Task

ENTRY_POINT_GROUP = "gptask.tasks"
PLUGINS_VARIABLE = "GPTASK_PLUGINS"
PACKAGE_ROOT = str(files("gptask"))  # tells our frames of a traceback from a plugin's


class NameClash(Exception):
    """Several distributions claim one name."""


class PluginDisabled(Exception):
    """The user asked for this plugin to be left out."""


STATES: dict[type[BaseException], str] = {NameClash: "clash", PluginDisabled: "disabled", Incompatible: "incompatible"}


@dataclass
class Plugin:
    """One entry point: where it comes from, and its task class once loaded, or the cause why there is none."""

    name: str
    distribution: str
    version: str
    task: type[Task] | None = None
    cause: BaseException | None = None
    contract: str | None = None  # the version it says it was made for
    point: EntryPoint | None = field(default=None, repr=False)

    @property
    def state(self) -> str:
        """``ok``, ``broken``, ``clash``, ``disabled``, ``incompatible`` (another contract), ``unread`` (not loaded)."""
        if self.cause is None:
            return "ok" if self.task else "unread"
        return STATES.get(type(self.cause), "broken")

    @property
    def error(self) -> str:
        """The cause in one line."""
        if self.cause is None:
            return ""
        text = traceback.format_exception_only(self.cause)[-1] if self.state == "broken" else str(self.cause)
        return " ".join(text.split())

    def brings(self, task: type[Task]) -> bool:
        """Whether a class that is there already is what the entry point names; nothing is imported to find out."""
        if not self.point:
            return False
        with contextlib.suppress(ValueError, AttributeError):
            module, attributes = _target(self.point)
            return reduce(getattr, attributes, sys.modules.get(module)) is task
        return False

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}".strip()

    def load(self) -> Plugin:
        """Import the task's class unless that was done or can't be; whatever goes wrong is kept as the cause."""
        if self.task or self.cause or not self.point:
            return self
        with isolated() as pressed:
            try:
                found = _imported(self.point)
                if isinstance(found, type) and issubclass(found, Task):
                    self.contract = contract_version_of(found)
                self.task = check_task_class(self.name, found)
            except BaseException as error:  # sys.exit() and worse; of KeyboardInterrupt, only the user's own goes on
                if pressed:
                    raise
                self.cause = error
        return self


def installed_plugins() -> list[Plugin]:
    """Every plugin there is by name, those that are disabled included; what is loaded already stays loaded.

    The distributions are scanned once for each state of ``sys.path`` and ``GPTASK_PLUGINS``.
    """
    return list(_scan(tuple(sys.path), os.environ.get(PLUGINS_VARIABLE, "")))


@lru_cache(maxsize=1)
def _scan(path: tuple[str, ...], limit: str) -> tuple[Plugin, ...]:
    by_name: dict[str, list[Plugin]] = {}
    for plugin in _entries():
        by_name.setdefault(plugin.name, []).append(plugin)
    plugins: list[Plugin] = []
    for _, namesakes in sorted(by_name.items()):
        claims = [plugin for plugin in namesakes if plugin.state != "disabled"]
        plugins += claims if len(claims) < 2 else [_clash(claims)]
        plugins += [plugin for plugin in namesakes if plugin.state == "disabled"]
    return tuple(plugins)


def discover(only: Collection[str] | None = None) -> dict[str, Plugin]:
    """Find the plugins that are not disabled and load those named in ``only`` (all by default)."""
    plugins = {plugin.name: plugin for plugin in installed_plugins() if plugin.state != "disabled"}
    for name, plugin in plugins.items():
        if only is None or name in only:
            plugin.load()
    return plugins


def load_task_class(plugins: dict[str, Plugin], name: str) -> type[Task]:
    """Load a task's class and return it, or raise `UserError` with the full cause or the names there are."""
    if name not in plugins:
        off = next((plugin for plugin in installed_plugins() if plugin.name == name), None)
        if off:
            raise UserError(f"task '{name}' ({off.origin}) is {off.error}")
        raise UserError(
            f"unknown task '{name}'; installed: {listing(plugins)}.{nearest(name, plugins)}"
            " `gptask tasks` describes them."
        )
    plugin = plugins[name].load()
    if plugin.task is None:
        cause = f"\n{_full(plugin.cause)}" if plugin.cause and plugin.state == "broken" else f": {plugin.error}"
        raise UserError(f"task '{name}' ({plugin.origin}) can't be used{cause}") from plugin.cause
    return plugin.task


def _entries() -> Iterator[Plugin]:
    """The entry points of every distribution, of the first on the path where one is there several times."""
    seen = set[str]()
    for found in distributions():
        owner, version = _named(found)
        try:
            if ENTRY_POINT_GROUP not in (found.read_text("entry_points.txt") or ""):
                continue
            points = list(found.entry_points.select(group=ENTRY_POINT_GROUP))
        except Exception as error:
            yield Plugin(owner, owner, version, cause=error)
            continue
        key = repr(points) if owner == "unknown" else _normalized(owner)
        if key not in seen:
            yield from (Plugin(point.name, owner, version, cause=_disabled(owner), point=point) for point in points)
        seen.add(key)


def _named(found: Distribution) -> tuple[str, str]:
    """Name and version; installations with damaged metadata have neither.

    The standard library says so by None, the importlib_metadata backport (whose finder takes the place of the standard
    one as soon as anybody imports it) by a FileNotFoundError.
    """
    name, version = None, None
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        name, version = found.name, found.version
    return name or "unknown", version or "?"


def _normalized(distribution: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _disabled(owner: str) -> PluginDisabled | None:
    """Why a distribution's plugins are left out, if they are."""
    limit = os.environ.get(PLUGINS_VARIABLE, "")
    names = [name.strip() for name in limit.split(",") if name.strip()]
    without = {_normalized(name[1:]) for name in names if name.startswith("-")}
    only = {_normalized(name) for name in names if not name.startswith("-")}
    if _normalized(owner) in without or (only and _normalized(owner) not in only):
        return PluginDisabled(f"disabled by {PLUGINS_VARIABLE}={limit}")
    return None


def _clash(plugins: list[Plugin]) -> Plugin:
    owners = sorted({plugin.origin for plugin in plugins})
    what = f"by {' and '.join(owners)}: uninstall one, or leave one out with {PLUGINS_VARIABLE}=-<distribution>"
    if len(owners) == 1:
        what = f"twice by {owners[0]}; it is its author's to mend"
    return Plugin(plugins[0].name, " / ".join(owners), "", cause=NameClash(f"the name is claimed {what}"))


def _imported(point: EntryPoint) -> object:
    module, attributes = _target(point)
    return reduce(getattr, attributes, import_module(module))


def _target(point: EntryPoint) -> tuple[str, list[str]]:
    """Module and attributes that an entry point names; raises `ValueError`."""
    found = re.fullmatch(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)(?:\s*\[.*\])?", point.value)
    if not found:
        raise ValueError(f"the entry point's value {point.value!r} is not of the form module:Class")
    return found[1], found[2].split(".")


def _full(error: BaseException) -> str:
    """What a traceback says at its end, if that isn't ours: place, error, cause; four lines at most."""
    lines = [line for line in traceback.format_exception_only(error) if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, SyntaxError) and not frames[-1].filename.startswith(("<", PACKAGE_ROOT)):
        lines.insert(0, f'  File "{frames[-1].filename}", line {frames[-1].lineno}: {frames[-1].line}\n')
    if error.__cause__:
        lines.append(f"caused by {''.join(traceback.format_exception_only(error.__cause__)[-1:])}")
    return "\n".join("".join(lines).rstrip().splitlines()[-4:])


def plugin_of(task: Task) -> Plugin:
    """The plugin a task instance comes from; a class that no entry point names gets its own name."""
    plugins = discover(()).values()
    for plugin in [plugin for plugin in plugins if plugin.brings(type(task))] or plugins:
        if plugin.load().task is type(task):
            return plugin
    return Plugin(type(task).__name__.lower(), "unregistered", "", type(task))
