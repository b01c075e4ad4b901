"""What a class must be to be used as a task at all: the contract's version and form, looked at without torch."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from datetime import date
from importlib.metadata import version

from gptask.errors import UserError, listing
from gptask.plugins.deprecation import deprecated
from gptask.plugins.source_location import class_location
from gptask.plugins.task import CONTRACT_VERSION, Task
from gptask.plugins.types import Field

NO_NAMES = {"null", "true", "false", "nan", "inf"}  # other values in Hydra's grammar


class Incompatible(Exception):
    """A task was made for another version of the contract."""


def check_task_class(name: str, task: object) -> type[Task]:
    """Return what an entry point names if it is a task that this gptask can use; raises what is wrong with it."""
    from omegaconf import OmegaConf

    if not name.isidentifier() or name.lower() in NO_NAMES:
        raise ValueError(f"the entry-point name {name!r} is no identifier")
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"expected a subclass of gptask.Task, got {task!r}")
    if "__dataclass_fields__" not in vars(task) or not is_dataclass(task):
        raise TypeError(f"{task.__name__} is not decorated with @dataclass ({class_location(task)})")
    refuse_other_version(task)
    if missing := sorted(getattr(task, "__abstractmethods__", ())):
        raise TypeError(f"{task.__name__} lacks {listing(missing)} ({class_location(task)})")
    OmegaConf.structured(task)  # refuses types of options that it does not know
    _try_out(task)
    return task


def contract_version_of(task: type[Task]) -> str | None:
    """The contract version that the task's own package states, ``major.minor``; None if it states none.

    What is inherited from another package says what that package was made for.
    """
    home = task.__module__.partition(".")[0]
    own = (vars(cls) for cls in task.__mro__ if cls is not Task and cls.__module__.partition(".")[0] == home)
    stated = next((names["contract_version"] for names in own if "contract_version" in names), None)
    if type(stated) is int:
        stated = f"{stated}.0"
        deprecated(
            task, "a contract_version that is a whole number", since="1.0", until=date(2027, 6, 30),
            instead=f'write contract_version = "{stated}"',
        )  # fmt: skip
    if stated is not None and not (isinstance(stated, str) and re.fullmatch(r"\d+\.\d+", stated)):
        wrong = f"{task.__name__} ({class_location(task)}) states contract_version = {stated!r}"
        raise TypeError(f'{wrong}; expected "major.minor", such as "{CONTRACT_VERSION}"')
    return stated


def refuse_other_version(task: type[Task]) -> None:
    """Raise `Incompatible` for a task of another major version, or of a minor one that is yet to come."""
    stated = contract_version_of(task)
    if stated is None:
        return
    theirs, ours = (tuple(map(int, version.split("."))) for version in (stated, CONTRACT_VERSION))
    if theirs[0] != ours[0] or theirs > ours:
        way_out = "upgrade gptask" if theirs > ours else "upgrade the plugin, or install an older gptask"
        raise Incompatible(f"made for contract {stated}; gptask {version('gptask')} has {CONTRACT_VERSION}: {way_out}")


def _try_out(task: type[Task]) -> None:
    """Make one with the default options, unless some have none, and ask it what an example is."""
    if any(f.default is MISSING and f.default_factory is MISSING for f in fields(task)):
        return
    try:
        found = task().fields()
    except UserError:  # it wants options of the user's
        return
    if not all(isinstance(field, Field) for field in found):
        raise TypeError(f"{task.__name__}.fields() must list gptask.Field, got {found!r}")
