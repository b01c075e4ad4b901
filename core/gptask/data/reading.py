"""Files to rows: CSV, TSV, JSON, JSONL, Parquet, CoNLL and plain lines, each also as ``.gz``, read as a stream."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from gptask.config.schemas import Files
from gptask.data import conll
from gptask.data.rows import Lines, Row, Source
from gptask.data.squad import flatten
from gptask.errors import DataError, UserError, listing

csv.field_size_limit(2**27)  # the default of 128 KiB is less than a long document
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "conll", "conllu", "lines")
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".conllu": "conllu",
}


def read(source: Source, options: Files, wanted: Iterable[str]) -> Iterator[Row]:
    """Read a file row by row; ``wanted`` are the column names that would give a header away.

    A bad row is yielded with its `DataError`; a file that can't be read on raises it.
    """
    kind = _format(source.path, options)
    if source.part and kind != "json":
        raise UserError(f"{source}: '#{source.part}' names a list inside a JSON file; this is read as {kind}")
    with _open(source.path) as stream:
        if kind == "json":
            yield from _json(stream, source, options.encoding)
        elif kind == "parquet":
            yield from _parquet(stream, source.path)
        else:
            yield from _text(kind, _decode(stream, source.path, options.encoding), options, wanted)


def read_stream(stream: IO[bytes], options: Files) -> Iterator[Row]:
    """Read standard input: JSON lines if the first line starts with ``{``, else plain lines."""
    kind = options.format
    if kind not in ("auto", *FORMATS) or kind in ("json", "parquet"):
        raise UserError(f"standard input can't be read as '{kind}'; expected jsonl, lines, csv, tsv, conll or conllu")
    lines = _decode(stream, Path("<stdin>"), options.encoding)
    first = next(lines, None)
    if first is None:
        return
    if kind == "auto":
        kind = "jsonl" if first[1].lstrip().startswith("{") and not options.pattern else "lines"
    yield from _text(kind, chain([first], lines), options, ())


def _text(kind: str, lines: Lines, options: Files, wanted: Iterable[str]) -> Iterator[Row]:
    if kind == "jsonl":
        return _jsonl(lines)
    if kind == "lines":
        from gptask.data.documents import documents

        return _matched(lines, options.pattern) if options.pattern else documents(lines, options)
    if kind in ("conll", "conllu"):
        return (Row(number, value) for number, value in conll.sentences(lines, universal=kind == "conllu"))
    return _table(lines, kind, options, set(wanted))


def _format(path: Path, options: Files) -> str:
    kind = options.format
    if kind not in ("auto", *FORMATS):
        raise UserError(f"data.format='{kind}' is unknown; expected auto, {listing(FORMATS)}")
    if options.pattern and kind not in ("auto", "lines"):
        raise UserError(f"data.pattern is for plain lines, not for data.format={kind}")
    if kind != "auto" or options.pattern:
        return "lines" if options.pattern else kind
    suffix = (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
    return SUFFIXES.get(suffix, "tsv" if options.columns else "lines")


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    zipped = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as stream:
            yield stream  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error


def _decode(stream: Iterable[bytes], path: Path, encoding: str) -> Lines:
    try:
        single = len("\n".encode(encoding)) == 1
    except LookupError as error:
        raise UserError(f"data.encoding='{encoding}' is unknown: {error}") from error
    if not single:
        raise UserError(f"data.encoding={encoding} can't be read by lines; convert {path} to UTF-8 (iconv) first")
    number = 0
    try:
        for number, raw in enumerate(stream, 1):
            text = raw.decode(encoding)
            yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte {error.object[error.start]:#04x} at column {error.start + 1} is not valid "
            f"{encoding}; convert the file or name its encoding (data.encoding=gb18030, latin-1, ...)"
        ) from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} breaks off after line {number}: {error}; is the gzip file whole?") from error


def _jsonl(lines: Lines) -> Iterator[Row]:
    for number, text in lines:
        try:
            value = json.loads(text)
        except ValueError as error:
            place = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            if text.strip():
                yield Row(number, DataError(f"broken JSON: {place}"))
            continue
        if not isinstance(value, dict | list):
            value = DataError(f"expected a JSON object, got {text.strip()[:40]!r}")
        yield Row(number, value)


def _matched(lines: Lines, pattern: str) -> Iterator[Row]:
    expression = _compile(pattern)
    for number, text in lines:
        text = text.rstrip("\r\n")
        if found := expression.fullmatch(text):
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


def _table(lines: Lines, kind: str, options: Files, wanted: set[str]) -> Iterator[Row]:
    positions = [str(column).isdigit() for column in options.columns.values()]
    header, names = options.header, None
    for row in _cells(lines, "\t" if kind == "tsv" else ",", _quote(kind, options)):
        if isinstance(row.value, DataError):
            yield row
            continue
        cells = list(row.value)
        if header is None:
            header = not positions or not all(positions) or bool(wanted & set(cells))
        if header and names is None:
            names = cells
        elif names is None:
            yield row
        elif len(cells) != len(names):
            message = f"{len(cells)} cells, but the header has {len(names)} ({listing(n[:40] for n in names)})"
            yield Row(row.number, DataError(message))
        else:
            yield Row(row.number, dict(zip(names, cells, strict=True)))


def _quote(kind: str, options: Files) -> str | None:
    quote = options.quote if options.quote is not None else ('"' if kind == "csv" else "")
    if len(quote) > 1:
        raise UserError(f"data.quote={quote!r} must be one character, or '' for none")
    return quote or None


def _cells(lines: Lines, delimiter: str, quote: str | None) -> Iterator[Row]:
    """Rows as lists; a quoted cell may span lines, and its row is known by the first."""
    if quote is None:
        for number, text in lines:
            if text := text.rstrip("\r\n"):
                yield Row(number, text.split(delimiter))
        return
    rows = csv.reader((text for _, text in lines), delimiter=delimiter, quotechar=quote, strict=True)
    while True:
        start = rows.line_num + 1
        try:
            if cells := next(rows):
                yield Row(start, cells)
        except StopIteration:
            return
        except csv.Error as error:
            hint = "a quote is never closed" if "unexpected end" in str(error) else str(error)
            yield Row(start, DataError(f"broken quoting: {hint} (data.quote='' if quotes mean nothing in this file)"))


def _parquet(stream: IO[bytes], path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as plain:
        if isinstance(stream, gzip.GzipFile):  # Parquet is read from its end
            shutil.copyfileobj(stream, plain)
            stream = plain
        try:
            with pq.ParquetFile(stream) as file:
                batches = file.iter_batches(1024)
                for number, value in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                    yield Row(number, value, "row")
        except pa.ArrowInvalid as error:
            raise DataError(f"{path} is no Parquet file: {error}") from error


def _json(stream: IO[bytes], source: Source, encoding: str) -> Iterator[Row]:
    content = _member(_parse(stream.read(), source.path, encoding), source)
    if content and isinstance(content[0], dict) and "paragraphs" in content[0]:
        try:
            content = list(flatten(content))
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{source} has 'paragraphs' as SQuAD has, but not its shape: {error!r}") from error
    for number, value in enumerate(content, 1):
        if not isinstance(value, dict | list):
            value = DataError(f"expected an object, got {json.dumps(value)[:40]}")
        yield Row(number, value, "record")


def _parse(raw: bytes, path: Path, encoding: str) -> Any:
    try:
        return json.loads(raw.decode(encoding).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: byte {raw[error.start]:#04x} is not valid {encoding}") from error
    except json.JSONDecodeError as error:
        hint = "; if each line is an object, set data.format=jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}{hint}") from error
    except LookupError as error:
        raise UserError(f"data.encoding='{encoding}' is unknown: {error}") from error


def _member(content: Any, source: Source) -> list[Any]:
    """The list of records in a JSON file: all of it, its ``data`` (SQuAD), or the part the user named."""
    if isinstance(content, dict):
        lists = [name for name, value in content.items() if isinstance(value, list)]
        part = source.part or ("data" if "data" in lists else None)
        if part in lists:
            return content[part]
        if lists:
            got = f" (got '#{part}')" if part else ""
            raise DataError(f"{source.path} is an object of lists: name one as {source.path.name}#{lists[0]}{got}; "
                            f"there are {listing(lists)}")  # fmt: skip
    elif isinstance(content, list) and not source.part:
        return content
    got = f"a list, which has no '#{source.part}'" if isinstance(content, list) else f"{json.dumps(content)[:40]}"
    raise DataError(f"{source.path}: expected a list of objects, an object of lists, or SQuAD JSON; got {got}")
