"""The place of a class in its source file."""

import inspect
from pathlib import Path


def class_source(cls: type) -> tuple[str, int]:
    """Return file and line of a class; ``<module>`` and 1 if they are unknown."""
    try:
        return str(inspect.getsourcefile(cls)), inspect.getsourcelines(cls)[1]
    except (OSError, TypeError):
        return f"<{cls.__module__}>", 1


def class_location(cls: type) -> str:
    """Return ``file:line`` of a class, relative to the current folder if the file lies below it."""
    file, line = class_source(cls)
    path, current = Path(file), Path.cwd()
    return f"{path.relative_to(current) if path.is_relative_to(current) else path}:{line}"
