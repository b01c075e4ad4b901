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

from gptask.cli.arguments import VerbParser
from gptask.cli.output import print_json, write_out
from gptask.errors import UserError, aligned, listing
from gptask.plugins.discovery import Plugin, discover, installed_plugins, load_task_class
from gptask.plugins.task import Task
from gptask.plugins.types import Field

PLUGIN_COLUMNS = ("task", "plugin", "contract", "state", "description")
FIELD_COLUMNS = ("field", "kind", "required", "target", "help")
OPTION_COLUMNS = ("option", "type", "default", "help")
DESCRIPTION = """List the installed task plugins, describe one, or check that they keep the plugin contract.

States: ok, broken (it can't be loaded), clash (several claim the name), incompatible (made for another contract
version), disabled. GPTASK_PLUGINS=dist1,dist2 enables the plugins of these distributions only, GPTASK_PLUGINS=-dist
all but those of dist.

--check runs gptask.testing.check_task on the tasks named, or on all: exit code 0 if they keep the contract, 1 if not.
"""
REQUIRED = "???"  # OmegaConf's sign for a value that the user must set


@dataclasses.dataclass
class TaskOption:
    """An option of a task, as a row of the table."""

    name: str
    type: str
    default: Any  # a plain value, or REQUIRED
    help: str


def main(arguments: Sequence[str]) -> int:
    """List the plugins, describe one or check them; return the exit code."""
    parsed = _parser().parse_intermixed_args(list(arguments))
    as_json = parsed.format == "json"
    parsed.names, options = (
        [name for name in parsed.names if "=" not in name],
        [name for name in parsed.names if "=" in name],
    )
    if options and (parsed.check or len(parsed.names) != 1):
        raise UserError(f"{options[0]} is an option for the task that gptask tasks describes: name one task")
    if parsed.check:
        from gptask.cli.check import check_plugins  # for start-up time

        return check_plugins(installed_plugins(), parsed.names, as_json)
    if len(parsed.names) > 1:
        raise UserError(
            f"gptask tasks describes one task at a time, got {listing(parsed.names)}; --check takes several"
        )
    if parsed.names:
        (name,) = parsed.names
        plugins = discover([name])
        task = load_task_class(plugins, name)
        _show_task(plugins[name], task, as_json, options)
    else:
        _show_plugins([plugin.load() for plugin in installed_plugins()], as_json)
    return 0


def _parser() -> VerbParser:
    usage = "gptask tasks [name ...] [task.option=value ...] [--check] [--format table|json]"
    parser = VerbParser("tasks", usage=usage, description=DESCRIPTION)
    help = "a task (several with --check); task.option=value shows the fields that a task with this option has"
    parser.add_argument("names", nargs="*", metavar="name", help=help)
    parser.add_argument("--check", action="store_true", help="run the plugin contract, half a minute for five tasks")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json is for machines")
    parser.add_argument("--json", action="store_const", dest="format", const="json", help="short for --format json")
    return parser


def task_options(task: type, prefix: str = "") -> Iterator[TaskOption]:
    """The options of a task's dataclass; those of nested dataclasses as ``generation.max_new_tokens``."""
    hints = get_type_hints(task)
    for field in dataclasses.fields(task):
        name, hint, default = f"{prefix}{field.name}", hints[field.name], _default(field)
        if dataclasses.is_dataclass(hint):
            for option in task_options(hint, f"{name}."):  # type: ignore[arg-type]
                if dataclasses.is_dataclass(default):  # the task's defaults instead of the nested class's
                    value: Any = default
                    for part in option.name.removeprefix(f"{name}.").split("."):
                        value = getattr(value, part)
                    option.default = _plain(value)
                yield option
        else:
            yield TaskOption(name, _type_name(hint), _plain(default), str(field.metadata.get("help", "")))


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
        return REQUIRED
    return value.name if isinstance(value, Enum) else value


def command_line_value(value: Any) -> str:
    """A value as it is written on the command line."""
    if value == REQUIRED:
        return "(required)"
    if isinstance(value, str) and value.isprintable() and value.strip():
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _show_plugins(plugins: Sequence[Plugin], as_json: bool) -> None:
    if as_json:
        print_json([_description(plugin) for plugin in plugins])
        return
    rows = [[p.name, p.origin, p.contract or "-", p.state, _summary(p.task) if p.task else p.error] for p in plugins]
    _show_table(PLUGIN_COLUMNS, rows)
    write_out("\ngptask tasks <name> describes one.\n" if rows else "no task plugins are installed\n")


def _show_task(plugin: Plugin, task: type[Task], as_json: bool, options: Sequence[str]) -> None:
    fields = configured_fields(plugin.name, options) if options else None
    if as_json:
        print_json(_description(plugin, fields))
        return
    write_out(f"{plugin.name} ({plugin.origin}): {_summary(task)}\n\n")
    field_rows = [
        [f.name, f.kind.value, "yes" if f.required else "no", "yes" if f.target else "no", f.help]
        for f in fields or example_fields(task)
    ]
    _show_table(FIELD_COLUMNS, field_rows)
    write_out("\n")
    option_rows = [[f"task.{o.name}", o.type, command_line_value(o.default), o.help] for o in task_options(task)]
    _show_table(OPTION_COLUMNS, option_rows)


def _summary(task: type[Task]) -> str:
    return (task.__doc__ or "").strip().partition("\n")[0]


def example_fields(task: type[Task]) -> list[Field]:
    """The fields of an example with the default options; raises `UserError` where they depend on required options."""
    required = {f.name: None for f in dataclasses.fields(task) if _default(f) is dataclasses.MISSING}
    try:
        return list(task(**required).fields())
    except Exception as error:
        raise UserError(f"{task.__name__}().fields() fails: {type(error).__name__}: {error}") from error


def configured_fields(name: str, options: Sequence[str]) -> list[Field]:
    """The fields of an example of a task with these options; raises `UserError` for a wrong option."""
    from gptask.cli.hydra.error_messages import with_user_errors  # for start-up time
    from gptask.cli.hydra.launch import composed, read_command_line
    from gptask.cli.hydra.validate import validated_config

    if foreign := [option for option in options if not option.startswith("task.")]:
        raise UserError(f"gptask tasks takes options of the task alone, task.<option>=<value>, got {foreign[0]}")
    command_line, _ = read_command_line("train", [f"task={name}", *options])
    task = with_user_errors(command_line, lambda: validated_config(composed(command_line), command_line)).task
    task.validate()
    return [*task.inputs(), *task.targets()]


def _description(plugin: Plugin, fields: list[Field] | None = None) -> dict[str, Any]:
    """Everything that the tables show of a plugin, for JSON; ``fields`` replace those of its default options."""
    description: dict[str, Any] = {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "contract": plugin.contract,
        "state": plugin.state,
        "cause": plugin.error or None,
    }
    if plugin.task:
        description["description"] = _summary(plugin.task)
        with contextlib.suppress(UserError):  # its fields depend on required options
            fields = fields or example_fields(plugin.task)
            description["fields"] = [dataclasses.asdict(field) | {"kind": field.kind.value} for field in fields]
        description["options"] = [dataclasses.asdict(option) for option in task_options(plugin.task)]
    return description


def _show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: of the terminal's width on a terminal, elsewhere aligned columns that are never cut."""
    if not sys.stdout.isatty():
        write_out("\n".join([*aligned([columns, *rows], left=len(columns)), ""]))
        return
    from rich import box  # for start-up time
    from rich.table import Table
    from rich.text import Text

    from gptask.analysis.console import VisibleConsole

    table = Table(*columns[:1], box=box.SIMPLE, pad_edge=False)
    table.columns[0].no_wrap = True
    for name in columns[1:]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    VisibleConsole().print(table)
