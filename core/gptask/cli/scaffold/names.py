"""Names for new tasks: one word for the task, its package and its module."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

from gptask.errors import UserError
from gptask.plugins.discovery import ENTRY_POINT_GROUP

FORM = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
VALUES = {"null", "true", "false", "inf", "nan"}  # task=null is no name to Hydra
FOLDERS = {"tests", "outputs"}  # lie beside the module


def check(name: str) -> None:
    """Raise `UserError` for a name that can't be written as a module, or that something here has taken."""
    if not FORM.fullmatch(name):
        mended = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
        hint = f" Did you mean '{mended}'?" if FORM.fullmatch(mended) else ""
        raise UserError(
            f"{name!r} can't name a task: it takes lower-case letters, digits and single underscores between them, "
            f"and starts with a letter, as in hate_speech.{hint}"
        )
    if taken := _taken(name):
        raise UserError(f"'{name}' can't name a new task: {taken}; choose another, such as {name}_task")


def _taken(name: str) -> str:
    """What has the name already, empty if nothing has."""
    if keyword.iskeyword(name):
        return "it is a keyword of Python"
    if name in VALUES:
        return f"task={name} is no text on the command line"
    if owners := sorted({point.dist.name for point in entry_points(group=ENTRY_POINT_GROUP, name=name) if point.dist}):
        return f"a task of that name is installed ({', '.join(owners)})"
    if name in sys.stdlib_module_names:
        return "its module would hide Python's own of that name"
    if name in FOLDERS:
        return f"its package has a folder {name}/ for something else"
    if spec := find_spec(name):
        place = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
        return f"its module would hide the one in {place}"
    return ""
