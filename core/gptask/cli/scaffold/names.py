"""Names for new tasks: one word for the task, its package and its module."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

from gptask.errors import UserError
from gptask.plugins.compatibility import HYDRA_VALUES
from gptask.plugins.discovery import ENTRY_POINT_GROUP

NEW_TASK_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
PROJECT_FOLDERS = {"tests", "outputs"}  # lie beside the task's module


def check_task_name(name: str) -> None:
    """Raise `UserError` for a name that is no module name, or that is in use."""
    if not NEW_TASK_NAME.fullmatch(name):
        suggestion = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
        hint = f" Did you mean '{suggestion}'?" if NEW_TASK_NAME.fullmatch(suggestion) else ""
        raise UserError(
            f"{name!r} can't name a task: expected lower-case letters, digits and single underscores between them, "
            f"starting with a letter, as in hate_speech.{hint}"
        )
    if conflict := _conflict(name):
        raise UserError(f"'{name}' can't name a new task: {conflict}; choose another, such as {name}_task")


def _conflict(name: str) -> str:
    """What uses the name already, empty for a free name."""
    if keyword.iskeyword(name):
        return "it is a keyword of Python"
    if name in HYDRA_VALUES:
        return f"task={name} is no text on the command line"
    if owners := sorted({point.dist.name for point in entry_points(group=ENTRY_POINT_GROUP, name=name) if point.dist}):
        return f"a task of that name is installed ({', '.join(owners)})"
    if name in sys.stdlib_module_names:
        return "its module would hide Python's own of that name"
    if name in PROJECT_FOLDERS:
        return f"its package has a folder {name}/ for something else"
    if spec := find_spec(name):
        location = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
        return f"its module would hide the one in {location}"
    return ""
