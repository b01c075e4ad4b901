"""A row as a file has it, and the source it is read from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from gptask.errors import DataError, UserError, listing

Lines = Iterator[tuple[int, str]]


class Row(NamedTuple):
    """A record as the file has it: named cells, cells by position, a text line, or what is wrong with it.

    ``number`` counts from 1, in lines where the format has lines (``unit``).
    """

    number: int
    value: dict[str, Any] | list[Any] | str | DataError
    unit: str = "line"

    def at(self, file: object) -> str:
        """Where the row stands, for a message: ``file:line``, or ``file record 3``."""
        return f"{file}:{self.number}" if self.unit == "line" else f"{file} {self.unit} {self.number}"


@dataclass(frozen=True)
class Source:
    """A file to read; ``part`` picks a member of a JSON object of lists (``file.json#train``)."""

    path: Path
    part: str | None = None

    @classmethod
    def parse(cls, name: str, root: str | None = None) -> Source:
        """Resolve a file name against ``root``; a missing file is an error that names what lies beside it."""
        path = Path(root or ".").expanduser() / Path(name).expanduser()
        part = None
        if not path.exists() and "#" in path.name:
            stem, _, part = path.name.rpartition("#")
            path = path.with_name(stem)
        if not path.is_file():
            if path.is_dir():
                raise UserError(f"{path} is a folder; expected a file, such as {_beside(path)}")
            raise UserError(f"no such file: {path} (there: {_beside(path.parent)})")
        return cls(path, part)

    def __str__(self) -> str:
        return f"{self.path}#{self.part}" if self.part else str(self.path)


def _beside(folder: Path) -> str:
    if not folder.is_dir():
        return f"not even the folder {folder}"
    return listing(sorted(p.name for p in folder.iterdir() if p.is_file()))


def stdin() -> IO[bytes]:
    """Standard input as bytes."""
    return sys.stdin.buffer
