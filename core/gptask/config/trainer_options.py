"""The options of the installed Lightning Trainer, read from its source so that neither it nor torch is imported."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from gptask.errors import UserError, listing, nearest

SET_BY_GPTASK = ("logger", "callbacks", "default_root_dir", "use_distributed_sampler")
TRAINING_LIMITS = ("max_epochs", "max_steps", "limit_train_batches")  # options that at 0 train nothing
TYPE_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "list": "a list"}


@cache
def trainer_parameters() -> dict[str, str]:
    """Return the parameters of ``pytorch_lightning.Trainer.__init__`` with the source text of their annotations."""
    file = Path(str(distribution("pytorch-lightning").locate_file("pytorch_lightning/trainer/trainer.py")))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            init = next(f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
            return {
                argument.arg: ast.unparse(argument.annotation) if argument.annotation else "Any"
                for argument in (*init.args.args, *init.args.kwonlyargs)
                if argument.arg != "self"
            }
    raise RuntimeError(f"{file} defines no class Trainer")


def option_names() -> tuple[str, ...]:
    """Return the parameters that a user may set."""
    return tuple(name for name in trainer_parameters() if name not in SET_BY_GPTASK)


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Refuse an option that the Trainer doesn't have or that gptask sets itself, and a value of the wrong type."""
    for name, value in options.items():
        if name in SET_BY_GPTASK:
            raise UserError(
                f"trainer.{name} is set by gptask itself (see logger=, outputs= and early_stopping.patience=)"
            )
        if name not in trainer_parameters():
            raise UserError(
                f"trainer.{name}: the Lightning Trainer has no such option.{nearest(name, option_names())} "
                f"Available: {listing(option_names(), 60)}"
            )
        _check_type(name, value)


def _check_type(name: str, value: Any) -> None:
    """Refuse a value that contradicts an annotation of plain types; the Trainer itself checks all others."""
    tree = ast.parse(trainer_parameters()[name], mode="eval")
    annotation_names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    optional = "Optional" in annotation_names
    types = annotation_names - {"Optional", "Union"}
    if not types <= TYPE_WORDS.keys() or (value is None and optional):
        return
    if type(value).__name__ not in types and not (type(value) is int and "float" in types):
        expected = [words for name_of_type, words in TYPE_WORDS.items() if name_of_type in types] + ["null"] * optional
        raise UserError(f"trainer.{name}={value!r}: expected {' or '.join(expected)}, got {type(value).__name__}")
