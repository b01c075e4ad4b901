"""Local data files as rows: one, several one after another, or parallel ones joined line by line."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gptask.config.schemas import Documents, Files
from gptask.data.reading import FORMAT_OF_SUFFIX, check_options, content_suffix, read
from gptask.data.rows import WILDCARDS, ReadingNotes, Row, Source, readable
from gptask.errors import DataError, UserError, listing


class FileReader:
    """The rows of one or several files, or of parallel files (``{field: file}``) joined by line."""

    def __init__(self, options: Files, files: Any) -> None:
        self.fields = list(files) if isinstance(files, Mapping) else []  # of parallel files, the field of each
        self.options = options
        if self.fields:
            self.options = replace(
                options, format="lines", pattern=None, delimiter=None, documents=Documents.line, separator=None
            )
        names = list(files.values()) if self.fields else [files] if isinstance(files, str) else files
        if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"data files must be a name, a list of names or field: name pairs, got {files!r}")
        expanded = [Source.parse_all(name, options.root) for name in names]
        for name, sources in zip(names, expanded, strict=True):
            self._require_one_kind(name, sources)
        self.sources = [source for sources in expanded for source in sources]
        for source in self.sources:
            check_options(source, self.options)
        self._states: dict[Path, tuple[int, ...]] = {}  # of the files when their content was hashed
        self.notes = {str(source): ReadingNotes() for source in self.sources}  # complete when the rows were read

    def _require_one_kind(self, name: str, sources: list[Source]) -> None:
        """Raise `UserError` for a pattern or folder of files of several kinds, or of several parallel files."""
        if self.fields and len(sources) > 1:
            raise UserError(f"'{name}' stands for {len(sources)} files, but of parallel files each field has one")
        suffixes = {content_suffix(source.path) for source in sources}
        if len({FORMAT_OF_SUFFIX.get(suffix, suffix) for suffix in suffixes}) > 1:
            folder = Path(name).parent if any(character in name for character in WILDCARDS) else Path(name)
            raise UserError(
                f"'{name}' stands for files of several kinds: {listing(source.path.name for source in sources)}; "
                f"name those of one kind by a pattern, such as '{folder}/*{max(suffixes)}*'"
            )

    def fingerprint(self) -> dict[str, str]:
        """The SHA-256 of each file's content, by its name."""
        hashes = {}
        for source in self.sources:
            with readable(source.path), source.path.open("rb") as stream:
                self._states[source.path] = _state(source.path)
                hashes[str(source)] = hashlib.file_digest(stream, "sha256").hexdigest()
        return hashes

    def _refuse_changed(self) -> None:
        """Raise `DataError` for a file that is another one than was hashed, whose rows would be cached as its rows."""
        for path, state in self._states.items():
            if not path.exists() or _state(path) != state:
                raise DataError(f"{path} has changed while it was read: let what writes it finish, and start again")

    def rows(self, header_names: list[str]) -> Iterator[tuple[str, Row]]:
        """Rows, each with the name of its file (of parallel files, the names of all)."""
        if self.fields:
            yield from self._parallel_rows()
        for source in self.sources if not self.fields else ():
            name = str(source)
            for row in read(source, self.options, header_names, self.notes[name]):
                yield name, row
        self._refuse_changed()

    def _parallel_rows(self) -> Iterator[tuple[str, Row]]:
        name = "+".join(map(str, self.sources))
        streams = [read(source, self.options, (), self.notes[str(source)]) for source in self.sources]
        for number, rows in enumerate(zip_longest(*streams), 1):
            if None in rows:
                n_lines = [sum(1 for _ in read(source, self.options, (), ReadingNotes())) for source in self.sources]
                counts = listing(
                    f"{source.path.name} {count}" for source, count in zip(self.sources, n_lines, strict=True)
                )
                raise DataError(
                    f"{self.sources[rows.index(None)]} ends after line {number - 1}, but parallel files must have the "
                    f"same number of lines: {counts}"
                )
            values = {field: row.value for field, row in zip(self.fields, rows, strict=True)}
            bad = next((field for field, value in values.items() if isinstance(value, DataError)), None)
            yield name, Row(number, values if bad is None else DataError(f"the {bad}: {values[bad]}"))


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def shortest_paths(names: Iterable[str]) -> dict[str, str]:
    """The base name of each file, or the shortest end of its path that no other of these files has."""
    parts = {name: Path(name).parts for name in names}
    shortest: dict[str, str] = {}
    depth = 1
    while len(shortest) < len(parts):
        ends = Counter(path[-depth:] for path in parts.values())
        for name, path in parts.items():
            if ends[path[-depth:]] == 1 or depth >= len(path):
                shortest.setdefault(name, str(Path(*path[-depth:])))
        depth += 1
    return shortest
