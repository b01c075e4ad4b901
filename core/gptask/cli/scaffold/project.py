"""The files of a new task's package, rendered from templates in the same folder structure."""

from __future__ import annotations

from enum import Enum
from importlib.metadata import version
from pathlib import Path

from gptask.cli.scaffold.names import check_task_name
from gptask.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"


class ProjectKind(Enum):
    """What a new task starts as."""

    classification = "classification"
    generation = "generation"


def write_project(name: str, folder: Path, kind: ProjectKind = ProjectKind.classification) -> list[Path]:
    """Write the package into a new or empty folder; return its files.

    Raises `UserError` for a name that can't be used (see `check_task_name`) and a folder that isn't empty or writable.
    """
    check_task_name(name)
    files = _rendered_files(name, kind)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists and is not an empty folder; nothing was written: name a new one")
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / path).open("x", encoding="utf-8") as stream:  # "x" never overwrites a file
                stream.write(text)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} can't be written: {error.strerror}; name another folder"
        ) from error
    return [folder / path for path in files]


def _rendered_files(name: str, kind: ProjectKind) -> dict[str, str]:
    """Path in the package -> text. In paths, NAME stands for the task; files that end in .j2 are Jinja templates."""
    from jinja2 import Environment, StrictUndefined  # for start-up time

    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    values = {
        "name": name,
        "cls": "".join(part.capitalize() for part in name.split("_")) + "Task",
        "title": name.replace("_", " ").capitalize(),
        "distribution": f"gptask-{name.replace('_', '-')}",
        "kind": kind.value,
        "version": version("gptask"),
    }
    files = {}
    for root in (TEMPLATES / "shared", TEMPLATES / kind.value):
        for template in sorted(path for path in root.rglob("*") if path.is_file()):
            path, text = template.relative_to(root).as_posix().replace("NAME", name), template.read_text("utf-8")
            is_jinja = template.suffix == ".j2"
            files[path.removesuffix(".j2")] = jinja.from_string(text).render(values) if is_jinja else text
    return files
