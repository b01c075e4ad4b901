"""Files to rows: CSV, TSV, JSON, JSONL, Parquet and plain lines, each also as ``.gz``, read as a stream."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gptask.config import Files
from gptask.errors import DataError, UserError, listing

csv.field_size_limit(2**31 - 1)
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "lines")
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Row:
    """A record as the file has it: named cells, cells by position, a text line, or what is wrong with it.

    ``line`` counts from 1.
    """

    line: int
    value: dict[str, Any] | list[Any] | str | DataError


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


def _beside(folder: Path) -> str:
    if not folder.is_dir():
        return f"not even the folder {folder}"
    return listing(sorted(p.name for p in folder.iterdir() if p.is_file()))


def read(source: Source, options: Files, wanted: Iterable[str]) -> Iterator[Row]:
    """Read a file row by row; ``wanted`` are the column names that would give a header away."""
    kind = _format(source.path, options)
    if kind == "parquet":
        yield from _parquet(source.path)
        return
    with _open(source.path) as stream:
        if kind == "json":
            yield from _json(stream, source, options.encoding)
            return
        lines = _decode(stream, source.path, options.encoding)
        if kind == "jsonl":
            yield from _jsonl(lines)
        elif kind == "lines":
            yield from _lines(lines, options.pattern)
        else:
            yield from _table(lines, kind, options, set(wanted))


def read_stream(stream: IO[bytes], options: Files) -> Iterator[Row]:
    """Read standard input: JSON lines if the first line starts with ``{``, else plain lines."""
    lines = _decode(stream, Path("<stdin>"), options.encoding)
    first = next(lines, None)
    if first is None:
        return
    rest = _chain(first, lines)
    if options.format in ("csv", "tsv"):
        yield from _table(rest, options.format, options, set())
    elif options.format == "jsonl" or (options.format == "auto" and first[1].lstrip().startswith("{")):
        yield from _jsonl(rest)
    elif options.format in ("auto", "lines"):
        yield from _lines(rest, options.pattern)
    else:
        raise UserError(f"standard input can't be read as '{options.format}'; expected jsonl, lines, csv or tsv")


def _chain(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest


def _format(path: Path, options: Files) -> str:
    if options.format != "auto":
        if options.format not in FORMATS:
            raise UserError(f"data.format='{options.format}' is unknown; expected auto, {listing(FORMATS)}")
        return options.format
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    return "tsv" if options.columns and not options.pattern else "lines"


def _open(path: Path) -> IO[bytes]:
    try:
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise UserError(f"{path} can't be opened: {error.strerror}") from error


def _decode(stream: IO[bytes], path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    try:
        for number, raw in enumerate(stream, 1):
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: byte {error.object[error.start]:#04x} at column {error.start + 1} is not valid "
                    f"{encoding}; convert the file or name its encoding (data.encoding=gb18030, latin-1, ...)"
                ) from error
            yield number, text.removeprefix("\ufeff") if number == 1 else text
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}") from error
    except LookupError as error:
        raise UserError(f"data.encoding='{encoding}' is unknown: {error}") from error


def _jsonl(lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    for number, text in lines:
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            yield Row(number, DataError(f"broken JSON: {error.msg} at column {error.colno}"))
            continue
        if not isinstance(value, dict | list):
            value = DataError(f"expected a JSON object, got {text.strip()[:40]!r}")
        yield Row(number, value)


def _lines(lines: Iterator[tuple[int, str]], pattern: str | None) -> Iterator[Row]:
    expression = _compile(pattern) if pattern else None
    for number, text in lines:
        text = text.rstrip("\r\n")
        if expression is None:
            yield Row(number, text)
        elif found := expression.fullmatch(text):
            yield Row(number, found.groupdict())
        elif text.strip():
            yield Row(number, DataError(f"the line does not match data.pattern {pattern!r}: {text[:60]!r}"))


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.pattern {pattern!r} is no regular expression: {error}") from error
    if not expression.groupindex:
        raise UserError(f"data.pattern {pattern!r} names no group; write (?P<text>...) for each field")
    return expression


def _table(lines: Iterator[tuple[int, str]], kind: str, options: Files, wanted: set[str]) -> Iterator[Row]:
    quote = options.quote or ('"' if kind == "csv" else None)
    text = (line for _, line in lines)
    rows = csv.reader(
        text,
        delimiter="\t" if kind == "tsv" else ",",
        quotechar=quote or '"',
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
    )
    names: list[str] | None = None
    by_position = bool(options.columns) and all(str(c).isdigit() for c in options.columns.values())
    header = options.header
    for cells in rows:
        if not cells or cells == [""]:
            continue
        if header is None:
            header = not by_position  # positions may still meet a header: data.header=true says so
        if header and names is None:
            names = cells
            continue
        if names is None:
            yield Row(rows.line_num, cells)
        elif len(cells) != len(names):
            message = f"{len(cells)} cells, but the header has {len(names)} ({listing(names)})"
            yield Row(rows.line_num, DataError(message))
        else:
            yield Row(rows.line_num, dict(zip(names, cells, strict=True)))


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(1024):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(number, value)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no Parquet file: {error}") from error


def _json(stream: IO[bytes], source: Source, encoding: str) -> Iterator[Row]:
    try:
        content = json.loads(stream.read().decode(encoding))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise DataError(f"{source.path}:{line}: byte {byte:#04x} is not valid {encoding}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{source.path}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}") from error
    if isinstance(content, dict) and isinstance(content.get("data"), list) and source.part is None:
        content = content["data"]
    elif isinstance(content, dict):
        lists = [name for name, value in content.items() if isinstance(value, list)]
        if source.part not in lists:
            raise DataError(
                f"{source.path} is a JSON object with the lists {listing(lists)}; name one as {source.path.name}#"
                f"{lists[0] if lists else 'name'}" + (f" (got '#{source.part}')" if source.part else "")
            )
        content = content[source.part]
    if not isinstance(content, list):
        raise DataError(f"{source.path}: expected a JSON list of objects, got {type(content).__name__}")
    if content and isinstance(content[0], dict) and "paragraphs" in content[0]:
        content = _squad(content)
    for number, value in enumerate(content, 1):
        if not isinstance(value, dict | list):
            value = DataError(f"expected an object, got {json.dumps(value)[:40]}")
        yield Row(number, value)


def _squad(articles: list[Any]) -> Iterator[dict[str, Any]]:
    """Flatten SQuAD JSON (v1.1 and v2.0, Rajpurkar et al. 2016, 2018): one row per question."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = [] if question.get("is_impossible") else question.get("answers", [])
                yield {
                    "id": str(question.get("id", "")),
                    "title": article.get("title", ""),
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers": [answer["text"] for answer in answers],
                    "answer_start": [answer.get("answer_start", -1) for answer in answers],
                }


def stdin() -> IO[bytes]:
    """Standard input as bytes."""
    return sys.stdin.buffer
