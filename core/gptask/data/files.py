"""Local data files as rows: one, several after another, or parallel ones joined line by line."""

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

    def __init__(self, options: Files, given: Any) -> None:
        self.options = options
        self.fields = list(given) if isinstance(given, Mapping) else []
        names = list(given.values()) if self.fields else [given] if isinstance(given, str) else given
        if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"data files must be a name, a list of names or field: name pairs, got {given!r}")
        self.sources = [Source.parse(name, options.root) for name in names]

    def fingerprint(self) -> dict[str, str]:
        """Each file with the SHA-256 of its content."""
        prints = {}
        for source in self.sources:
            with source.path.open("rb") as stream:
                prints[str(source)] = hashlib.file_digest(stream, "sha256").hexdigest()
        return prints

    def rows(self, wanted: list[str]) -> Iterator[tuple[str, Row]]:
        """Rows with the name of their file (of parallel files, the names of all)."""
        if self.fields:
            yield from self._parallel()
            return
        for source in self.sources:
            name = str(source)
            for row in read(source, self.options, wanted):
                yield name, row

    def _parallel(self) -> Iterator[tuple[str, Row]]:
        lines = replace(self.options, format="lines", pattern=None, documents=Documents.line, separator=None)
        name = "+".join(map(str, self.sources))
        streams = [read(source, lines, ()) for source in self.sources]
        for number, rows in enumerate(zip_longest(*streams), 1):
            if None in rows:
                counts = listing(f"{s.path.name} {sum(1 for _ in read(s, lines, ()))}" for s in self.sources)
                raise DataError(
                    f"{self.sources[rows.index(None)]} ends after line {number - 1}, but parallel files must be "
                    f"equally long: {counts}"
                )
            yield name, Row(number, dict(zip(self.fields, (row.value for row in rows), strict=True)))
