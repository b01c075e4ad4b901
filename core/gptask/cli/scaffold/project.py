"""The files of a new task's package, made from templates that lie as the files will."""

from __future__ import annotations

from enum import Enum
from importlib.metadata import version
from pathlib import Path

from gptask.cli.scaffold.names import check
from gptask.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"


class Kind(Enum):
    """What a new task starts as."""

    classification = "classification"
    generation = "generation"


def write(name: str, folder: Path, kind: Kind = Kind.classification) -> list[Path]:
    """Write the package into a folder that is new or empty; return its files.

    Raises `UserError` for a name that is taken (see `check`), and for a folder that holds something or can't be made.
    """
    check(name)
    files = _rendered(name, kind)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists and is not an empty folder; nothing was written: name a new one")
        for place, text in files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            with (folder / place).open("x", encoding="utf-8") as stream:  # never over another's file
                stream.write(text)
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where} can't be written: {error.strerror}; name another folder") from error
    return [folder / place for place in files]


def _rendered(name: str, kind: Kind) -> dict[str, str]:
    """Path in the package -> content. ``NAME`` stands for the task in paths; what ends in .j2 is a Jinja template."""
    from jinja2 import Environment, StrictUndefined

    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    words = name.replace("_", " ")
    values = {
        "name": name,
        "cls": "".join(part.capitalize() for part in name.split("_")) + "Task",
        "words": words,
        "title": words.capitalize(),
        "distribution": f"gptask-{name.replace('_', '-')}",
        "kind": kind.value,
        "version": version("gptask"),
    }
    files = {}
    for root in (TEMPLATES / "shared", TEMPLATES / kind.value):
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            place, text = path.relative_to(root).as_posix().replace("NAME", name), path.read_text(encoding="utf-8")
            files[place.removesuffix(".j2")] = jinja.from_string(text).render(values) if path.suffix == ".j2" else text
    return files
