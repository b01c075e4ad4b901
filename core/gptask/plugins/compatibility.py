"""Checks that a class can be used as a task: its contract version and its form, without importing torch."""

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

HYDRA_VALUES = {"null", "true", "false", "nan", "inf"}  # identifiers that are values in Hydra's grammar


class Incompatible(Exception):
    """A task is made for another version of the contract."""


def check_task_class(name: str, task: object) -> type[Task]:
    """Return the object that an entry point names if this gptask can use it as a task; raises the reason if not."""
    from omegaconf import OmegaConf

    if not name.isidentifier() or name.lower() in HYDRA_VALUES:
        raise ValueError(f"the entry-point name {name!r} is not an identifier, or is a value in Hydra's grammar")
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"expected a subclass of gptask.Task, got {task!r}")
    if "__dataclass_fields__" not in vars(task) or not is_dataclass(task):
        raise TypeError(f"{task.__name__} is not decorated with @dataclass ({class_location(task)})")
    refuse_other_version(task)
    if missing := sorted(getattr(task, "__abstractmethods__", ())):
        raise TypeError(f"{task.__name__} lacks {listing(missing)} ({class_location(task)})")
    OmegaConf.structured(task)  # refuses options of unknown types
    _check_fields(task)
    return task


def contract_version_of(task: type[Task]) -> str | None:
    """Return the contract version that the task's own package states, ``major.minor``; None if it states none.

    A version inherited from another package is ignored: it states what that package was made for. Raises `TypeError`
    for a malformed version.
    """
    package = task.__module__.partition(".")[0]
    namespaces = (vars(cls) for cls in task.__mro__ if cls is not Task and cls.__module__.partition(".")[0] == package)
    stated = next((names["contract_version"] for names in namespaces if "contract_version" in names), None)
    if type(stated) is int:
        stated = f"{stated}.0"
        deprecated(
            task, "a contract_version that is a whole number", since="1.0", until=date(2027, 6, 30),
            instead=f'write contract_version = "{stated}"',
        )  # fmt: skip
    if stated is not None and not (isinstance(stated, str) and re.fullmatch(r"\d+\.\d+", stated)):
        statement = f"{task.__name__} ({class_location(task)}) states contract_version = {stated!r}"
        raise TypeError(f'{statement}; expected "major.minor", such as "{CONTRACT_VERSION}"')
    return stated


def refuse_other_version(task: type[Task]) -> None:
    """Raise `Incompatible` for a task made for another major version or for a later minor one."""
    stated = contract_version_of(task)
    if stated is None:
        return
    required, present = (tuple(map(int, text.split("."))) for text in (stated, CONTRACT_VERSION))
    if required[0] != present[0] or required > present:
        fix = "upgrade gptask" if required > present else "upgrade the plugin, or install an older gptask"
        raise Incompatible(f"made for contract {stated}; gptask {version('gptask')} has {CONTRACT_VERSION}: {fix}")


def _check_fields(task: type[Task]) -> None:
    """Check `Task.fields` of an instance with the default options, unless an option has no default."""
    if any(f.default is MISSING and f.default_factory is MISSING for f in fields(task)):
        return
    try:
        task_fields = task().fields()
    except UserError:  # the user must set some option
        return
    if not all(isinstance(field, Field) for field in task_fields):
        raise TypeError(f"{task.__name__}.fields() must list gptask.Field, got {task_fields!r}")
