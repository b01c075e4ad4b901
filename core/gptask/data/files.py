"""Local data files as rows: one, several one after another, or parallel ones joined line by line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from gptask.config.schemas import Documents, Files
from gptask.data.reading import read
from gptask.data.rows import Row, Source
from gptask.errors import DataError, UserError, listing


class FileReader:
    """The rows of one or several files, or of parallel files (``{field: file}``) joined by line."""

    def __init__(self, options: Files, files: Any) -> None:
        self.options = options
        self.fields = list(files) if isinstance(files, Mapping) else []  # of parallel files, the field of each
        names = list(files.values()) if self.fields else [files] if isinstance(files, str) else files
        if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"data files must be a name, a list of names or field: name pairs, got {files!r}")
        self.sources = [Source.parse(name, options.root) for name in names]

    def fingerprint(self) -> dict[str, str]:
        """The SHA-256 of each file's content, by its name."""
        hashes = {}
        for source in self.sources:
            with source.path.open("rb") as stream:
                hashes[str(source)] = hashlib.file_digest(stream, "sha256").hexdigest()
        return hashes

    def rows(self, header_names: list[str]) -> Iterator[tuple[str, Row]]:
        """Rows, each with the name of its file (of parallel files, the names of all)."""
        if self.fields:
            yield from self._parallel_rows()
            return
        for source in self.sources:
            name = str(source)
            for row in read(source, self.options, header_names):
                yield name, row

    def _parallel_rows(self) -> Iterator[tuple[str, Row]]:
        as_lines = replace(self.options, format="lines", pattern=None, documents=Documents.line, separator=None)
        name = "+".join(map(str, self.sources))
        streams = [read(source, as_lines, ()) for source in self.sources]
        for number, rows in enumerate(zip_longest(*streams), 1):
            if None in rows:
                counts = listing(
                    f"{source.path.name} {sum(1 for _ in read(source, as_lines, ()))}" for source in self.sources
                )
                raise DataError(
                    f"{self.sources[rows.index(None)]} ends after line {number - 1}, but parallel files must have the "
                    f"same number of lines: {counts}"
                )
            yield name, Row(number, dict(zip(self.fields, (row.value for row in rows), strict=True)))
