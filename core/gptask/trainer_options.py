"""The options of the installed Lightning Trainer, read from its source without importing it (or torch)."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from gptask.errors import UserError, listing, nearest

OURS = ("logger", "callbacks", "default_root_dir", "use_distributed_sampler")


@cache
def names() -> tuple[str, ...]:
    """Parameter names of ``pytorch_lightning.Trainer.__init__`` that a user may set."""
    file = Path(str(distribution("pytorch-lightning").locate_file("pytorch_lightning/trainer/trainer.py")))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            init = next(f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
            found = [argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)]
            return tuple(name for name in found if name != "self")
    raise RuntimeError(f"no class Trainer in {file}")


def check(options: Mapping[str, Any]) -> None:
    """Refuse an option that the Trainer doesn't have or that gptask sets itself."""
    for name in options:
        if name not in names():
            raise UserError(
                f"trainer.{name}: the Lightning Trainer has no such option.{nearest(name, names())} "
                f"There are: {listing(names(), 60)}"
            )
        if name in OURS:
            raise UserError(
                f"trainer.{name} is set by gptask itself (see logger=, outputs= and early_stopping.patience=)"
            )
