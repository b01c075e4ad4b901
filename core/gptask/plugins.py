"""Task plugins, found through the entry-point group ``gptask.tasks`` and isolated from one another.

``GPTASK_PLUGINS=dist1,dist2`` limits discovery to plugins of these distributions.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Collection
from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, entry_points

from gptask.errors import UserError, listing, nearest
from gptask.task import CONTRACT_VERSION, Task

GROUP = "gptask.tasks"
LIMIT = "GPTASK_PLUGINS"


@dataclass
class Plugin:
    """One entry point: where it comes from, and the task class or the reason why there is none."""

    name: str
    distribution: str
    version: str
    task: type[Task] | None = None
    error: str = ""  # one line
    cause: BaseException | None = None  # what loading it raised; None if the name is claimed twice

    @property
    def state(self) -> str:
        """``ok``, ``broken`` (it can't be loaded) or ``clash`` (two distributions claim the name)."""
        if not self.error:
            return "ok"
        return "broken" if self.cause else "clash"

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}".strip()


def discover(only: Collection[str] | None = None) -> dict[str, Plugin]:
    """Find the plugins and load those named in ``only`` (all by default); a broken one never hides the others."""
    limit = allowed()
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        owner, _ = _distribution(point)
        if not limit or _normalized(owner) in limit:
            found.setdefault(point.name, {})[owner, point.value] = point
    plugins = {}
    for name, owners in sorted(found.items()):
        points = list(owners.values())
        wanted = only is None or name in only
        plugins[name] = _load(points[0], wanted) if len(points) == 1 else _clash(points)
    return plugins


def allowed() -> set[str]:
    """The distributions that ``GPTASK_PLUGINS`` limits discovery to; empty means all."""
    return {_normalized(name.strip()) for name in os.environ.get(LIMIT, "").split(",") if name.strip()}


def chosen(plugins: dict[str, Plugin], name: str) -> type[Task]:
    """Return a task's class, or raise `UserError` with the full cause or the names there are."""
    if name not in plugins:
        limit = f" ({LIMIT}={os.environ[LIMIT]} hides others)" if allowed() else ""
        raise UserError(
            f"unknown task '{name}'; installed: {listing(plugins)}{limit}.{nearest(name, plugins)}"
            " `gptask tasks` describes them."
        )
    plugin = plugins[name]
    if plugin.task is None:
        cause = f"\n{_full(plugin.cause)}" if plugin.cause else f": {plugin.error}"
        raise UserError(f"task '{name}' ({plugin.origin}) can't be used{cause}") from plugin.cause
    return plugin.task


def _normalized(distribution: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Name and version; installations with damaged metadata have neither.

    The standard library says so by None, the importlib_metadata backport (whose finder takes the place of the standard
    one as soon as anybody imports it) by a FileNotFoundError.
    """
    found, name, version = point.dist, None, None
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        name, version = (found.name, found.version) if found else (None, None)
    return name or "unknown", version or "?"


def _clash(points: list[EntryPoint]) -> Plugin:
    owners = sorted({" ".join(_distribution(point)) for point in points})
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
        plugin.error = " ".join(traceback.format_exception_only(error)[-1].split())
        plugin.cause = error
    return plugin


def _full(error: BaseException) -> str:
    """What a traceback says at its end: place, error, cause; four lines at most."""
    lines = [line for line in traceback.format_exception_only(error) if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, SyntaxError) and not frames[-1].filename.startswith("<"):
        lines.insert(0, f'  File "{frames[-1].filename}", line {frames[-1].lineno}: {frames[-1].line}\n')
    if error.__cause__:
        lines.append(f"caused by {''.join(traceback.format_exception_only(error.__cause__)[-1:])}")
    return "\n".join("".join(lines).rstrip().splitlines()[-4:])


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
