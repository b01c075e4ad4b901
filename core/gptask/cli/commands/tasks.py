"""`gptask tasks`: the installed plugins, one plugin's data fields and options, and whether they keep the contract."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from gptask.cli.arguments import Parser
from gptask.errors import UserError, listing
from gptask.plugins.discovery import Plugin, discover, installed_plugins, load_task_class
from gptask.plugins.task import Task
from gptask.plugins.types import Field

PLUGIN_COLUMNS = ("task", "plugin", "contract", "state", "description")
FIELD_COLUMNS = ("field", "kind", "required", "target", "help")
OPTION_COLUMNS = ("option", "type", "default", "help")
ABOUT = """List the installed task plugins, describe one, or check that they keep the plugin contract.

States: ok, broken (it can't be loaded), clash (several claim the name), incompatible (made for another contract
version), disabled. GPTASK_PLUGINS=dist1,dist2 takes the plugins of these distributions only, GPTASK_PLUGINS=-dist all
but its.

--check runs gptask.testing.check_task on the tasks named, or on all: exit code 0 if they keep the contract, 1 if not.
"""


@dataclasses.dataclass
class Option:
    """An option of a task, as a row of the listing."""

    name: str
    type: str
    default: Any  # in plain values; ??? where the user must give one
    help: str


def parser() -> Parser:
    """The options of the verb."""
    made = Parser("tasks", usage="gptask tasks [name ...] [--check] [--format table|json]", description=ABOUT)
    made.add_argument("names", nargs="*", metavar="name", help="a task (several with --check)")
    made.add_argument("--check", action="store_true", help="run the plugin contract, half a minute for five tasks")
    made.add_argument("--format", choices=("table", "json"), default="table", help="json is for machines")
    made.add_argument("--json", action="store_const", dest="format", const="json", help="short for --format json")
    return made


def show(arguments: Sequence[str]) -> int:
    """Print the plugins, the one named, or what a check of them finds; return the exit code."""
    given = parser().parse_intermixed_args(list(arguments))
    as_json = given.format == "json"
    if given.check:
        from gptask.cli.check import check

        return check(installed_plugins(), given.names, as_json)
    if len(given.names) > 1:
        raise UserError(f"gptask tasks describes one task at a time, got {listing(given.names)}; --check takes several")
    if given.names:
        plugins = discover(given.names)
        load_task_class(plugins, given.names[0])
        _show_task(plugins[given.names[0]], as_json)
    else:
        _show_plugins([plugin.load() for plugin in installed_plugins()], as_json)
    return 0


def options(task: type, prefix: str = "") -> Iterator[Option]:
    """The options of a task's dataclass; those of nested dataclasses as ``generation.max_new_tokens``."""
    hints = get_type_hints(task)
    for field in dataclasses.fields(task):
        name, hint, default = f"{prefix}{field.name}", hints[field.name], _default(field)
        if dataclasses.is_dataclass(hint):
            inner = default if dataclasses.is_dataclass(default) else None
            for option in options(hint, f"{name}."):  # type: ignore[arg-type]
                if inner is not None:  # this task's defaults, not the nested class's own
                    value = inner
                    for part in option.name.removeprefix(f"{name}.").split("."):
                        value = getattr(value, part)
                    option.default = _plain(value)
                yield option
        else:
            yield Option(name, _type_name(hint), _plain(default), str(field.metadata.get("help", "")))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _type_name(hint: Any) -> str:
    if hint in (None, NoneType):
        return "null"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " | ".join(hint.__members__)
    if not (arguments := get_args(hint)):
        return getattr(hint, "__name__", str(hint))
    names = [_type_name(argument) for argument in arguments]
    if get_origin(hint) in (list, dict, tuple):
        return f"{get_origin(hint).__name__}[{', '.join(names)}]"
    return " | ".join(names)


def _plain(value: Any) -> Any:
    if value is dataclasses.MISSING:
        return "???"
    return value.name if isinstance(value, Enum) else value


def _shown(value: Any) -> str:
    """A value as one would write it on the command line."""
    if value == "???":
        return "(required)"
    if isinstance(value, str) and value.isprintable() and value.strip():
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _show_plugins(plugins: Sequence[Plugin], as_json: bool) -> None:
    if as_json:
        write_json([_described(plugin) for plugin in plugins])
        return
    rows = [[p.name, p.origin, p.contract or "-", p.state, _summary(p.task) if p.task else p.error] for p in plugins]
    _table(PLUGIN_COLUMNS, rows)
    sys.stdout.write("\ngptask tasks <name> describes one.\n" if rows else "no task plugins are installed\n")


def _show_task(plugin: Plugin, as_json: bool) -> None:
    assert plugin.task is not None
    if as_json:
        write_json(_described(plugin))
        return
    sys.stdout.write(f"{plugin.name} ({plugin.origin}): {_summary(plugin.task)}\n\n")
    rows = [
        [f.name, f.kind.value, "yes" if f.required else "no", "yes" if f.target else "no", f.help]
        for f in _fields(plugin.task)
    ]
    _table(FIELD_COLUMNS, rows)
    sys.stdout.write("\n")
    _table(OPTION_COLUMNS, [[f"task.{o.name}", o.type, _shown(o.default), o.help] for o in options(plugin.task)])


def _summary(task: type[Task]) -> str:
    return (task.__doc__ or "").strip().partition("\n")[0]


def _fields(task: type[Task]) -> list[Field]:
    """What an example consists of with the default options; `UserError` for a task that can't say so yet."""
    required = {f.name: None for f in dataclasses.fields(task) if _default(f) is dataclasses.MISSING}
    try:
        return list(task(**required).fields())
    except Exception as error:
        raise UserError(f"{task.__name__}().fields() fails: {type(error).__name__}: {error}") from error


def _described(plugin: Plugin) -> dict[str, Any]:
    """A plugin with everything the tables show."""
    found: dict[str, Any] = {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "contract": plugin.contract,
        "state": plugin.state,
        "cause": plugin.error or None,
    }
    if plugin.task:
        found["description"] = _summary(plugin.task)
        with contextlib.suppress(UserError):  # its fields depend on options that must be given
            found["fields"] = [dataclasses.asdict(f) | {"kind": f.kind.value} for f in _fields(plugin.task)]
        found["options"] = [dataclasses.asdict(option) for option in options(plugin.task)]
    return found


def write_json(value: Any) -> None:
    """Write to standard output what a machine is to read."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people on a terminal; elsewhere the same columns, aligned, never cut."""
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write(f"{line.rstrip()}\n")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns[:1], box=box.SIMPLE, pad_edge=False)
    table.columns[0].no_wrap = True
    for name in columns[1:]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
