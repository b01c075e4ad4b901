"""What code knows, as text for the pages: `make docs-tables` lets cogapp call these functions and write it into them.

Nothing depends on the terminal, the environment or the plugins of other packages that are installed.
"""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import Any
from unittest.mock import patch

from gptask.cli import main
from gptask.cli.commands.tasks import command_line_value, example_fields
from gptask.cli.commands.tasks import task_options as options_of
from gptask.cli.hydra.compose import groups as config_groups
from gptask.cli.hydra.compose import loader
from gptask.cli.hydra.help import commented_config
from gptask.cli.hydra.launch import read_command_line
from gptask.plugins.discovery import discover, load_task_class
from gptask.plugins.generation_options import GenerationOptions
from gptask_tasks.language_modeling.cleaning import Cleaning
from omegaconf import OmegaConf

WIDTH = 100
NESTED = {"task.generation": GenerationOptions, "task.cleaning": Cleaning}  # options that several tasks may share


def _generated(text_of: Callable[..., str]) -> Callable[..., None]:
    """Let a function write its text into the page."""

    @wraps(text_of)
    def write(*arguments: str) -> None:
        import cog  # only while cogapp runs

        with _fixed_environment():
            cog.outl(f"\n{text_of(*arguments)}\n")

    return write


@contextmanager
def _fixed_environment() -> Iterator[None]:
    """The environment of a fresh installation without other packages' plugins."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GPTASK_")}
    variables |= {"GPTASK_PLUGINS": "gptask", "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    with patch.dict(os.environ, variables, clear=True):
        yield


@_generated
def help_text(verb: str = "") -> str:
    """The text of ``gptask <verb> --help``, without a verb of ``gptask --help``."""
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            main([*verb.split(), "--help"])
    except SystemExit as end:
        if end.code:
            raise ValueError(f"gptask {verb} --help: exit code {end.code}") from end
    return f"```text\n{output.getvalue().strip()}\n```"


@_generated
def task_options(name: str) -> str:
    """The options of a task; of a group that tasks share only those whose default the task changes."""
    shared = {
        option.name: option.default for prefix, group in NESTED.items() for option in options_of(group, f"{prefix}.")
    }
    rows = []
    for option in options_of(load_task_class(discover([name]), name)):
        key = f"task.{option.name}"
        if key not in shared or shared[key] != option.default:
            rows.append((_code(key), _code(command_line_value(option.default)), _text(option.help)))
    return _table(("option", "default", "meaning"), rows)


@_generated
def task_fields(name: str) -> str:
    """The fields of a task's examples."""
    task = load_task_class(discover([name]), name)
    rows = [
        (_code(f.name), f.kind.value, "yes" if f.required else "no", "yes" if f.target else "no", _text(f.help))
        for f in example_fields(task)
    ]
    return _table(("field", "kind", "required", "target", "meaning"), rows)


@_generated
def options(what: str) -> str:
    """The options of a chosen member of a config group (``tuning=lora``) or of another part (``schedule``) of train."""
    key, _, choice = what.partition("=")
    if key in NESTED:
        rows = [(o.name, command_line_value(o.default), o.help) for o in options_of(NESTED[key], f"{key}.")]
    else:
        rows = list(_composed_options(key, [what] if choice else []))
    if not rows:
        raise ValueError(f"{what} has no options")
    return _table(
        ("option", "default", "meaning"), [(_code(name), _code(value), _text(help)) for name, value, help in rows]
    )


def _composed_options(key: str, overrides: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    read_command_line("train", overrides)  # registers the plugins and schemas with Hydra
    with loader() as configs:
        config, comments = commented_config(configs, "train", overrides)
    yield from _leaves(config[key], key, comments)


def _leaves(node: Any, prefix: str, comments: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Name, value and comment of the options below a node."""
    for name in node:
        key = f"{prefix}.{name}"
        value = "???" if OmegaConf.is_missing(node, name) else node[name]
        if OmegaConf.is_dict(value) and len(value):
            yield from _leaves(value, key, comments)
        else:
            value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            yield key, command_line_value(getattr(value, "name", value)), comments.get(key, "")


@_generated
def groups() -> str:
    """The config groups of train, the default of each, and its choices."""
    from hydra.types import RunMode

    read_command_line("train", [])
    with loader() as configs:
        choices = config_groups(configs, "train")
        defaults = configs.compute_defaults_list("train", [], RunMode.RUN).overrides.known_choices
    rows = [
        (_code(group), _code(defaults[group] or "null"), " ".join(map(_code, names)))
        for group, names in reversed(choices.items())  # as in the help: what is chosen most comes first
    ]
    return _table(("group", "default", "choices"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _code(text: str) -> str:
    """Text as code in a cell: in backticks a bar would end the cell."""
    if re.search(r"[|`]", text):
        return f"<code>{html.escape(text, quote=False).replace('|', '&#124;').replace('`', '&#96;')}</code>"
    return f"`{text}`"


def _text(text: str) -> str:
    """Text in a cell, its characters that mean something in Markdown escaped."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))
