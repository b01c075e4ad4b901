"""Discovery of task plugins through the entry-point group ``gptask.tasks``, each isolated from the others.

A plugin is imported only once its task is asked for. ``GPTASK_PLUGINS=dist1,dist2`` limits discovery to the
plugins of these distributions, ``GPTASK_PLUGINS=-dist3`` leaves out those of one.
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
from pathlib import Path

from gptask.errors import Terminated, UserError, listing, nearest
from gptask.plugins.compatibility import Incompatible, check_task_class, contract_version_of
from gptask.plugins.isolation import isolated
from gptask.plugins.task import Task

ENTRY_POINT_GROUP = "gptask.tasks"
PLUGINS_VARIABLE = "GPTASK_PLUGINS"
PACKAGE_ROOT = str(files("gptask"))  # distinguishes gptask's frames in a traceback from a plugin's


class NameClash(Exception):
    """Several entry points claim one name."""


class PluginDisabled(Exception):
    """The user excludes this plugin by ``GPTASK_PLUGINS``."""


STATES: dict[type[BaseException], str] = {NameClash: "clash", PluginDisabled: "disabled", Incompatible: "incompatible"}


@dataclass
class Plugin:
    """One entry point: its origin and, once loaded, its task class or the cause why it has none."""

    name: str
    distribution: str
    version: str
    task: type[Task] | None = None
    cause: BaseException | None = None
    contract: str | None = None  # the contract version it states
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

    def provides(self, task: type[Task]) -> bool:
        """Whether the entry point names this class, as far as that is known without an import."""
        if not self.point:
            return False
        with contextlib.suppress(ValueError, AttributeError):
            module, attributes = _module_and_attributes(self.point)
            target: object = reduce(getattr, attributes, sys.modules.get(module))
            return target is task
        return False

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}".strip()

    def load(self) -> Plugin:
        """Import the task's class, at most once; whatever goes wrong becomes the cause. Returns the plugin itself."""
        if self.task or self.cause or not self.point:
            return self
        with isolated() as pressed:
            try:
                module, attributes = _module_and_attributes(self.point)
                target: object = reduce(getattr, attributes, import_module(module))
                if isinstance(target, type) and issubclass(target, Task):
                    self.contract = contract_version_of(target)
                self.task = check_task_class(self.name, target)
            except BaseException as error:  # even SystemExit and a KeyboardInterrupt that the plugin raises itself
                if pressed or isinstance(error, Terminated):
                    raise
                self.cause = error
        return self


def installed_plugins() -> list[Plugin]:
    """Return every plugin sorted by name, disabled ones included; plugins loaded before stay loaded.

    The distributions are scanned once for each state of ``sys.path`` and ``GPTASK_PLUGINS``.
    """
    return list(_scan_distributions(tuple(sys.path), os.environ.get(PLUGINS_VARIABLE, "")))


@lru_cache(maxsize=1)
def _scan_distributions(path: tuple[str, ...], limit: str) -> tuple[Plugin, ...]:
    by_name: dict[str, list[Plugin]] = {}
    for plugin in _read_entry_points():
        by_name.setdefault(plugin.name, []).append(plugin)
    plugins: list[Plugin] = []
    for _, same_name in sorted(by_name.items()):
        enabled = [plugin for plugin in same_name if plugin.state != "disabled"]
        plugins += enabled if len(enabled) < 2 else [_clashing_plugin(enabled)]
        plugins += [plugin for plugin in same_name if plugin.state == "disabled"]
    return tuple(plugins)


def discover(only: Collection[str] | None = None) -> dict[str, Plugin]:
    """Return the plugins that are not disabled, by name, after loading those named in ``only`` (all by default)."""
    plugins = {plugin.name: plugin for plugin in installed_plugins() if plugin.state != "disabled"}
    for name, plugin in plugins.items():
        if only is None or name in only:
            plugin.load()
    return plugins


def load_task_class(plugins: dict[str, Plugin], name: str) -> type[Task]:
    """Load a task's class and return it; raises `UserError` with the full cause or the names that are installed."""
    if name not in plugins:
        disabled = next((plugin for plugin in installed_plugins() if plugin.name == name), None)
        if disabled:
            raise UserError(f"task '{name}' ({disabled.origin}) is {disabled.error}")
        raise UserError(
            f"unknown task '{name}'; installed: {listing(plugins)}.{nearest(name, plugins)}"
            " `gptask tasks` describes them."
        )
    plugin = plugins[name].load()
    if plugin.task is None:
        cause = f"\n{traceback_end(plugin.cause)}" if plugin.cause and plugin.state == "broken" else f": {plugin.error}"
        raise UserError(f"task '{name}' ({plugin.origin}) can't be used{cause}") from plugin.cause
    return plugin.task


def _read_entry_points() -> Iterator[Plugin]:
    """Read the entry points of every distribution; where one is installed several times, the first on the path."""
    seen = set[str]()
    for distribution in distributions():
        owner, version = _name_and_version(distribution)
        try:
            if ENTRY_POINT_GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            points = list(distribution.entry_points.select(group=ENTRY_POINT_GROUP))
        except Exception as error:
            yield Plugin(owner, owner, version, cause=error)
            continue
        key = repr(points) if owner == "unknown" else _normalized_name(owner)
        if key not in seen:
            cause = _disabled_cause(owner)
            yield from (Plugin(point.name, owner, version, cause=cause, point=point) for point in points)
        seen.add(key)


def _name_and_version(distribution: Distribution) -> tuple[str, str]:
    """Return ``unknown`` and ``?`` for an installation with damaged metadata.

    The standard library returns None for these, the importlib_metadata backport (whose finder replaces the standard
    one as soon as anybody imports it) raises a FileNotFoundError.
    """
    name, version = None, None
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        name, version = distribution.name, distribution.version
    return name or "unknown", version or "?"


def _normalized_name(distribution: str) -> str:
    """Normalize a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _disabled_cause(owner: str) -> PluginDisabled | None:
    """Return the reason why a distribution's plugins are disabled, None if they are not."""
    limit = os.environ.get(PLUGINS_VARIABLE, "")
    names = [name.strip() for name in limit.split(",") if name.strip()]
    excluded = {_normalized_name(name[1:]) for name in names if name.startswith("-")}
    included = {_normalized_name(name) for name in names if not name.startswith("-")}
    if _normalized_name(owner) in excluded or (included and _normalized_name(owner) not in included):
        return PluginDisabled(f"disabled by {PLUGINS_VARIABLE}={limit}")
    return None


def _clashing_plugin(plugins: list[Plugin]) -> Plugin:
    owners = sorted({plugin.origin for plugin in plugins})
    if len(owners) == 1:
        claim = f"twice by {owners[0]}; the plugin's author must fix this"
    else:
        claim = f"by {' and '.join(owners)}: uninstall one, or leave one out with {PLUGINS_VARIABLE}=-<distribution>"
    return Plugin(plugins[0].name, " / ".join(owners), "", cause=NameClash(f"the name is claimed {claim}"))


def _module_and_attributes(point: EntryPoint) -> tuple[str, list[str]]:
    """Split the value of an entry point into the module and the attributes it names; raises `ValueError`."""
    match = re.fullmatch(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)(?:\s*\[.*\])?", point.value)
    if not match:
        raise ValueError(f"the entry point's value {point.value!r} is not of the form module:Class")
    return match[1], match[2].split(".")


def traceback_end(error: BaseException) -> str:
    """Return the end of a traceback in at most four lines: place (unless it is in gptask), error and cause."""
    lines = [line for line in traceback.format_exception_only(error) if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, SyntaxError) and not frames[-1].filename.startswith(("<", PACKAGE_ROOT)):
        lines.insert(0, f'  File "{frames[-1].filename}", line {frames[-1].lineno}: {frames[-1].line}\n')
    if error.__cause__:
        lines.append(f"caused by {''.join(traceback.format_exception_only(error.__cause__)[-1:])}")
    return "\n".join("".join(lines).rstrip().splitlines()[-4:])


def failing_plugin(error: BaseException) -> tuple[Plugin, str, str] | None:
    """The plugin of another distribution whose code an exception comes out of, its hook, and file:line in that code."""
    frames = traceback.extract_tb(error.__traceback__)
    for plugin in installed_plugins():
        if plugin.task and plugin.distribution != "gptask":
            code = _code_of(plugin)
            if own_frames := [frame for frame in frames if Path(frame.filename).is_relative_to(code)]:
                return plugin, own_frames[0].name, f"{own_frames[-1].filename}:{own_frames[-1].lineno}"
    return None


def _code_of(plugin: Plugin) -> Path:
    """The folder of the package, or the file, that holds a loaded plugin's class."""
    module = str(getattr(plugin.task, "__module__", ""))
    files_of_modules = (getattr(sys.modules.get(name), "__file__", None) for name in (module.partition(".")[0], module))
    file = Path(next(filter(None, files_of_modules), "unknown"))
    return file.parent if file.name == "__init__.py" else file


def plugin_of(task: Task) -> Plugin:
    """Return the plugin that a task instance comes from; a class without an entry point gets its own name."""
    plugins = discover(()).values()
    for plugin in [plugin for plugin in plugins if plugin.provides(type(task))] or plugins:
        if plugin.load().task is type(task):
            return plugin
    return Plugin(type(task).__name__.lower(), "unregistered", "", type(task))
