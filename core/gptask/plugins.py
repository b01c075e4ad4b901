"""Task plugins, found through the entry-point group ``gptask.tasks`` and isolated from one another.

``GPTASK_PLUGINS=dist1,dist2`` limits discovery to plugins of these distributions.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Collection
from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, entry_points

from gptask.errors import UserError, listing, nearest
from gptask.task import CONTRACT_VERSION, Task

GROUP = "gptask.tasks"


@dataclass
class Plugin:
    """One entry point: where it comes from, and the task class or the reason why there is none."""

    name: str
    distribution: str
    version: str
    task: type[Task] | None = None
    error: str = ""  # one line
    trace: str = ""  # the cause in full

    @property
    def state(self) -> str:
        """``ok``, or what is wrong in one line."""
        return self.error or "ok"

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"


def discover(only: Collection[str] | None = None) -> dict[str, Plugin]:
    """Find the plugins and load those named in ``only`` (all by default); a broken one never hides the others."""
    allowed = {name.strip() for name in os.environ.get("GPTASK_PLUGINS", "").split(",") if name.strip()}
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        twins = found.setdefault(point.name, [])
        if (not allowed or _distribution(point)[0] in allowed) and point not in twins:
            twins.append(point)
    return {
        name: _clash(points) if len(points) > 1 else _load(points[0], only is None or name in only)
        for name, points in sorted(found.items())
        if points
    }


def chosen(plugins: dict[str, Plugin], name: str) -> type[Task]:
    """Return a task's class, or raise `UserError` with the full cause or the names there are."""
    if name not in plugins:
        raise UserError(
            f"unknown task '{name}'; installed: {listing(plugins)}.{nearest(name, plugins)}"
            " `gptask tasks` describes them."
        )
    plugin = plugins[name]
    if plugin.task is None:
        cause = f"\n{plugin.trace.strip()}" if plugin.trace else ""
        raise UserError(f"task '{name}' ({plugin.origin}) can't be used: {plugin.error}{cause}")
    return plugin.task


def _distribution(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "?")


def _clash(points: list[EntryPoint]) -> Plugin:
    owners = sorted({f"{name} {version}" for name, version in map(_distribution, points)})
    error = f"the name is claimed by {' and '.join(owners)}: uninstall one"
    return Plugin(points[0].name, " / ".join(owners), "", error=error)


def _load(point: EntryPoint, load: bool) -> Plugin:
    plugin = Plugin(point.name, *_distribution(point))
    if not load:
        return plugin
    try:
        with contextlib.redirect_stdout(sys.stderr):
            task = point.load()
            _validate(point.name, task)
            _store(point.name, task)
        plugin.task = task
    except (Exception, SystemExit) as error:
        plugin.error = f"{type(error).__name__}: {error}".splitlines()[0]
        plugin.trace = "".join(traceback.format_exception(error)[-3:])
    return plugin


def _validate(name: str, task: object) -> None:
    if not name.isidentifier():
        raise TypeError(f"the entry-point name {name!r} is no identifier")
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"expected a subclass of gptask.Task, got {task!r}")
    if "__dataclass_fields__" not in vars(task) or not is_dataclass(task):
        raise TypeError(f"{task.__name__} is not decorated with @dataclass")
    if task.contract_version != CONTRACT_VERSION:
        raise TypeError(f"made for contract version {task.contract_version}; this gptask has {CONTRACT_VERSION}")
    if missing := sorted(getattr(task, "__abstractmethods__", ())):
        raise TypeError(f"{task.__name__} lacks {listing(missing)}")


def _store(name: str, task: type[Task]) -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="task", name=name, node=task, provider="gptask plugin")
