"""A row as a file has it, the source it is read from, and how it was read."""

from __future__ import annotations

import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import IO, Any, NamedTuple

from gptask.errors import DataError, UserError, listing, user_path

Lines = Iterator[tuple[int, str]]  # the number of each line, from 1, and its text with the line break
WILDCARDS = "*?["
MAX_DIGITS = 9  # of a number that counts columns or labels
KINDS_OF_FILE = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
EVERY_NAME = "*"  # among the wanted names: a task that converts rows itself may look at any of them


class Row(NamedTuple):
    """A record as the file has it: named cells, cells by position, a line of text, or what is wrong with it.

    ``number`` counts from 1, in lines where the format has lines, else in ``unit``.
    """

    number: int
    value: dict[str, Any] | list[Any] | str | DataError
    unit: str = "line"

    def location(self, file: object) -> str:
        """The row's place, for a message or an id: ``file:line``, or ``file record 3``.

        Bytes of the file's name that are not UTF-8 are escaped.
        """
        place = f"{file}:{self.number}" if self.unit == "line" else f"{file} {self.unit} {self.number}"
        return place if place.isascii() else place.encode("utf-8", "backslashreplace").decode()


class RepeatedNames(dict[str, Any]):
    """A JSON object in which the names ``repeated`` occur twice or more; it holds the last value of each."""

    repeated: set[str] = set()


class TableCells(dict[str, Any]):
    """The cells of a table's row under the names of its header."""


@dataclass
class ReadingNotes:
    """How a file is read, for the log: the options used, and sentences on what evidence decided."""

    options: dict[str, str] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """``encoding utf-8, delimiter comma, header true``."""
        return ", ".join(f"{name} {value}" for name, value in self.options.items())


@dataclass(frozen=True)
class Source:
    """A file to read; ``part`` picks a member of a JSON object of lists (``file.json#train``)."""

    path: Path
    part: str | None = None

    @classmethod
    def parse(cls, name: str, root: str | None = None) -> Source:
        """Resolve a file name against ``root``; the `UserError` for a missing file lists the files of its folder."""
        with readable(name):
            path, part = _resolve(name, root)
            if path.is_dir():
                raise UserError(f"{path} is a folder; expected a file, such as {_files_in(path)}")
            if not path.is_file():
                raise UserError(_why_no_file(path, name))
            return cls(path, part)

    @classmethod
    def parse_all(cls, name: str, root: str | None = None) -> list[Source]:
        """The files that a name, a pattern (``parts/*.csv``) or a folder stands for, sorted; hidden files left out."""
        with readable(name):
            return cls._all_files(name, root)

    @classmethod
    def _all_files(cls, name: str, root: str | None) -> list[Source]:
        path, part = _resolve(name, root)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            if not files:
                folders = sorted(inner.name for inner in path.iterdir() if inner.is_dir())
                hint = f"; it has the folders {listing(folders)}: name one, or a pattern such as {path}/*/*.csv"
                raise UserError(f"{path} is a folder without files{hint if folders else ''}")
            return [cls(file, part) for file in files]
        if path.exists() or not any(character in str(path) for character in WILDCARDS):
            return [cls.parse(name, root)]
        matches = (Path(match) for match in glob(str(path), recursive=True))
        files = sorted(match for match in matches if match.is_file())
        if not files:
            folder = path.parent
            there = f" (files in its folder: {_files_in(folder)})" if folder.is_dir() else ""
            raise UserError(f"no file matches {path}{there}")
        return [cls(file, part) for file in files]

    def __str__(self) -> str:
        return f"{self.path}#{self.part}" if self.part else str(self.path)


def _resolve(name: str, root: str | None) -> tuple[Path, str | None]:
    """The path of a name, and the part behind its number sign unless the file's own name has one."""
    path = user_path(root or ".") / user_path(name)
    stem, _, part = path.name.rpartition("#")
    return (path, None) if not stem or path.exists() else (path.with_name(stem), part)


@contextmanager
def readable(path: object) -> Iterator[None]:
    """Raise `UserError` for what the system refuses: no permission, a name that is too long, a disk with errors."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{str(path)[:200]} can't be read: {error.strerror or error}") from error


def _why_no_file(path: Path, name: str) -> str:
    """The message for a path that is no file."""
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {path.readlink()}, which doesn't exist"
    if path.exists():
        kind = KINDS_OF_FILE.get(stat.S_IFMT(path.stat().st_mode), "something else")
        hint = "; save what it gives to a file first (predict reads standard input: input=-)" * (kind == "a pipe")
        return f"{path} is {kind}, not a file{hint}"
    if not path.parent.is_dir():
        return f"no such file: {path} (its folder does not exist)"
    one = "; one file is expected, not a pattern" if any(character in name for character in WILDCARDS) else ""
    return f"no such file: {path} (files in its folder: {_files_in(path.parent)}){one}"


def _files_in(folder: Path) -> str:
    return listing(sorted(path.name for path in folder.iterdir() if path.is_file()))


def column_list(column: Any) -> list[str]:
    """The columns of one field, of which ``data.columns`` may name several."""
    return [str(part) for part in column] if isinstance(column, list | tuple) else [str(column)]


def wanted_columns(header_names: Iterable[str], columns: Mapping[str, Any]) -> set[str]:
    """The columns (names or dotted paths) that are read of a row: those of the task's fields, and the id's."""
    names = {*header_names, "id"}
    return {part for name in names for part in column_list(columns.get(name, name))}


def wanted_positions(columns: Mapping[str, Any]) -> list[int]:
    """The positions that ``data.columns`` names; none unless all its entries are positions."""
    names = [name for column in columns.values() for name in column_list(column)]
    return [int(name) for name in names] if all(map(is_index, names)) else []


def is_index(text: str) -> bool:
    """Whether a text is a number that counts columns or labels: some digits of ASCII, since ``²`` is a digit, too."""
    return text.isdigit() and text.isascii() and len(text) <= MAX_DIGITS


def unique_names(names: list[str], wanted: set[str], place: str) -> list[str]:
    """The names of a table's columns; of those that occur twice, the later ones get a number (``text.1``).

    Raises `DataError` if a wanted one occurs twice; ``place`` is the file, and the line of its header.
    """
    unique = dict[str, None]()
    known, numbers = set(names), Counter[str]()
    for name in names:
        if name in unique and name and not wanted.isdisjoint({name, EVERY_NAME}):
            positions = [str(position) for position, other in enumerate(names) if other == name]
            raise DataError(
                f"{place}: {len(positions)} columns are called '{name}' (positions {', '.join(positions)}, from 0); "
                f"rename one, or name a position: data.columns.<field>={positions[0]}"
            )
        new = name
        while new in unique or (numbers[name] and new in known):
            numbers[name] += 1
            new = f"{name}.{numbers[name]}"
        unique[new] = None
    return [*unique]


def stdin() -> IO[bytes]:
    """Standard input as bytes."""
    return sys.stdin.buffer
