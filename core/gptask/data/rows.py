"""A row as a file has it, and the source it is read from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from gptask.errors import DataError, UserError, listing

Lines = Iterator[tuple[int, str]]  # the number of each line, from 1, and its text with the line break


class Row(NamedTuple):
    """A record as the file has it: named cells, cells by position, a line of text, or what is wrong with it.

    ``number`` counts from 1, in lines where the format has lines, else in ``unit``.
    """

    number: int
    value: dict[str, Any] | list[Any] | str | DataError
    unit: str = "line"

    def location(self, file: object) -> str:
        """The row's place, for a message: ``file:line``, or ``file record 3``."""
        return f"{file}:{self.number}" if self.unit == "line" else f"{file} {self.unit} {self.number}"


@dataclass(frozen=True)
class Source:
    """A file to read; ``part`` picks a member of a JSON object of lists (``file.json#train``)."""

    path: Path
    part: str | None = None

    @classmethod
    def parse(cls, name: str, root: str | None = None) -> Source:
        """Resolve a file name against ``root``; the `UserError` for a missing file lists the files of its folder."""
        path = Path(root or ".").expanduser() / Path(name).expanduser()
        part = None
        if not path.exists() and "#" in path.name:
            stem, _, part = path.name.rpartition("#")
            path = path.with_name(stem)
        if path.is_dir():
            raise UserError(f"{path} is a folder; expected a file, such as {_files_in(path)}")
        if not path.parent.is_dir():
            raise UserError(f"no such file: {path} (its folder does not exist)")
        if not path.is_file():
            raise UserError(f"no such file: {path} (files in its folder: {_files_in(path.parent)})")
        return cls(path, part)

    def __str__(self) -> str:
        return f"{self.path}#{self.part}" if self.part else str(self.path)


def _files_in(folder: Path) -> str:
    return listing(sorted(path.name for path in folder.iterdir() if path.is_file()))


def stdin() -> IO[bytes]:
    """Standard input as bytes."""
    return sys.stdin.buffer
