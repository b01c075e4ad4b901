"""The options of the installed Lightning Trainer, read from its source without importing it (or torch)."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from gptask.errors import UserError, listing, nearest

SET_BY_GPTASK = ("logger", "callbacks", "default_root_dir", "use_distributed_sampler")
PLAIN = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "list": "a list"}


@cache
def parameters() -> dict[str, str]:
    """Parameters of ``pytorch_lightning.Trainer.__init__`` and their annotations, in source form."""
    file = Path(str(distribution("pytorch-lightning").locate_file("pytorch_lightning/trainer/trainer.py")))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            init = next(f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
            return {
                argument.arg: ast.unparse(argument.annotation) if argument.annotation else "Any"
                for argument in (*init.args.args, *init.args.kwonlyargs)
                if argument.arg != "self"
            }
    raise RuntimeError(f"no class Trainer in {file}")


def option_names() -> tuple[str, ...]:
    """The parameters that a user may set."""
    return tuple(name for name in parameters() if name not in SET_BY_GPTASK)


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Refuse an option that the Trainer doesn't have or that gptask sets itself, and a value of the wrong type."""
    for name, value in options.items():
        if name in SET_BY_GPTASK:
            raise UserError(
                f"trainer.{name} is set by gptask itself (see logger=, outputs= and early_stopping.patience=)"
            )
        if name not in parameters():
            raise UserError(
                f"trainer.{name}: the Lightning Trainer has no such option.{nearest(name, option_names())} "
                f"There are: {listing(option_names(), 60)}"
            )
        _check_type(name, value)


def _check_type(name: str, value: Any) -> None:
    """Compare with annotations made of plain types; the Trainer itself checks the others."""
    tree = ast.parse(parameters()[name], mode="eval")
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    optional = "Optional" in used
    kinds = used - {"Optional", "Union"}
    if not kinds <= PLAIN.keys() or (value is None and optional):
        return
    if type(value).__name__ not in kinds and not (type(value) is int and "float" in kinds):
        expected = [text for kind, text in PLAIN.items() if kind in kinds] + ["null"] * optional
        raise UserError(f"trainer.{name}={value!r}: expected {' or '.join(expected)}, got {type(value).__name__}")
