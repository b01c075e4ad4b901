"""Where a class is written."""

import inspect
from pathlib import Path


def class_source(cls: type) -> tuple[str, int]:
    """File and line of a class; of its module, or nowhere, if that can't be told."""
    try:
        return str(inspect.getsourcefile(cls)), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return f"<{cls.__module__}>", 1


def class_location(cls: type) -> str:
    """The same as ``file:line``, relative to here where it lies below."""
    file, line = class_source(cls)
    path, here = Path(file), Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"
