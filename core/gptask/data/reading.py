"""Files to rows: CSV, TSV, JSON, JSONL, Parquet, CoNLL and plain lines, each also as ``.gz``, read as a stream."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from gptask.config.schemas import Files
from gptask.data import conll
from gptask.data.documents import documents
from gptask.data.rows import Lines, Row, Source
from gptask.data.squad import flatten
from gptask.errors import DataError, UserError, listing

csv.field_size_limit(2**27)  # the default of 128 KiB is less than a long document
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "conll", "conllu", "lines")
FORMAT_OF_SUFFIX = {
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


def read(source: Source, options: Files, header_names: Iterable[str]) -> Iterator[Row]:
    """Read a file row by row; a first row that holds one of ``header_names`` is the header of a table.

    A bad row is yielded with its `DataError` as the value. A file that can't be read any further raises the error.
    """
    file_format = _resolve_format(source.path, options)
    if source.part and file_format != "json":
        raise UserError(
            f"{source}: '#{source.part}' names a list inside a JSON file; this file is read as {file_format}"
        )
    with _open(source.path) as stream:
        if file_format == "json":
            yield from _json_rows(stream, source, options.encoding)
        elif file_format == "parquet":
            yield from _parquet_rows(stream, source.path)
        else:
            yield from _line_rows(file_format, _decode(stream, source.path, options.encoding), options, header_names)


def read_stream(stream: Iterable[bytes], options: Files) -> Iterator[Row]:
    """Read standard input: JSON lines if the first line starts with ``{``, else plain lines."""
    file_format = options.format
    if file_format not in ("auto", *FORMATS) or file_format in ("json", "parquet"):
        raise UserError(
            f"standard input can't be read as '{file_format}'; expected jsonl, lines, csv, tsv, conll or conllu"
        )
    lines = _decode(stream, Path("<stdin>"), options.encoding)
    first_line = next(lines, None)
    if first_line is None:
        return
    if file_format == "auto":
        file_format = "jsonl" if first_line[1].lstrip().startswith("{") and not options.pattern else "lines"
    yield from _line_rows(file_format, chain([first_line], lines), options, ())


def _line_rows(file_format: str, lines: Lines, options: Files, header_names: Iterable[str]) -> Iterator[Row]:
    """The rows of a format that is read line by line."""
    if file_format == "jsonl":
        return _jsonl_rows(lines)
    if file_format == "lines":
        return _pattern_rows(lines, options.pattern) if options.pattern else documents(lines, options)
    if file_format in ("conll", "conllu"):
        sentences = conll.read_sentences(lines, universal=file_format == "conllu")
        return (Row(number, value) for number, value in sentences)
    return _table_rows(lines, file_format, options, set(header_names))


def _resolve_format(path: Path, options: Files) -> str:
    file_format = options.format
    if file_format not in ("auto", *FORMATS):
        raise UserError(f"data.format='{file_format}' is unknown; expected auto, {listing(FORMATS)}")
    if options.pattern and file_format not in ("auto", "lines"):
        raise UserError(f"data.pattern is for plain lines, not for data.format={file_format}")
    if file_format != "auto" or options.pattern:
        return "lines" if options.pattern else file_format
    suffix = (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
    return FORMAT_OF_SUFFIX.get(suffix, "tsv" if options.columns else "lines")


@contextmanager
def _open(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file, unzipped if it ends in ``.gz``; what reading it raises becomes a `DataError` or `UserError`."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a complete gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error


def _decode(stream: Iterable[bytes], path: Path, encoding: str) -> Lines:
    """Numbered lines of text, without a byte order mark."""
    try:
        newline_is_one_byte = len("\n".encode(encoding)) == 1
    except LookupError as error:
        raise UserError(f"data.encoding='{encoding}' is unknown: {error}") from error
    if not newline_is_one_byte:
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
        raise DataError(f"{path} ends early, after line {number}: {error}; is the gzip file complete?") from error


def _jsonl_rows(lines: Lines) -> Iterator[Row]:
    for number, text in lines:
        try:
            value = json.loads(text)
        except ValueError as error:
            cause = _json_problem(error) if isinstance(error, json.JSONDecodeError) else error
            if text.strip():
                yield Row(number, DataError(f"broken JSON: {cause}"))
            continue
        if not isinstance(value, dict | list):
            value = DataError(f"expected a JSON object, got {text.strip()[:40]!r}")
        yield Row(number, value)


def _pattern_rows(lines: Lines, pattern: str) -> Iterator[Row]:
    """Lines as the named groups of ``data.pattern``; blank lines are left out."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.pattern {pattern!r} is not a valid regular expression: {error}") from error
    if not expression.groupindex:
        raise UserError(f"data.pattern {pattern!r} names no group; write (?P<text>...) for each field")
    for number, text in lines:
        text = text.rstrip("\r\n")
        if match := expression.fullmatch(text):
            yield Row(number, match.groupdict())
        elif text.strip():
            yield Row(number, DataError(f"the line does not match data.pattern {pattern!r}: {text[:60]!r}"))


def _table_rows(lines: Lines, file_format: str, options: Files, header_names: set[str]) -> Iterator[Row]:
    """Rows of a table: cells by name under a header, else by position.

    Where ``data.header`` is open, the first row is the header if ``data.columns`` does not give every column by its
    position, or if the row holds one of ``header_names``.
    """
    columns = [column if isinstance(column, list) else [column] for column in options.columns.values()]
    by_position = bool(columns) and all(str(column).isdigit() for column in chain(*columns))
    has_header, names = options.header, None
    for number, cells in _table_cells(lines, "\t" if file_format == "tsv" else ",", _quote(file_format, options)):
        if isinstance(cells, DataError):
            yield Row(number, cells)
            continue
        if has_header is None:
            has_header = not by_position or not header_names.isdisjoint(cells)
        if not has_header:
            yield Row(number, cells)
        elif names is None:
            names = cells
        elif len(cells) != len(names):
            shown_names = listing(name[:40] for name in names)
            yield Row(number, DataError(f"{len(cells)} cells, but the header has {len(names)} ({shown_names})"))
        else:
            yield Row(number, dict(zip(names, cells, strict=True)))


def _quote(file_format: str, options: Files) -> str | None:
    quote = options.quote if options.quote is not None else ('"' if file_format == "csv" else "")
    if len(quote) > 1:
        raise UserError(f"data.quote={quote!r} must be one character, or '' for none")
    return quote or None


def _table_cells(lines: Lines, delimiter: str, quote: str | None) -> Iterator[tuple[int, list[str] | DataError]]:
    """Rows as lists of cells, each with the number of its first line (a quoted cell may span several)."""
    if quote is None:
        for number, text in lines:
            if text := text.rstrip("\r\n"):
                yield number, text.split(delimiter)
        return
    reader = csv.reader((text for _, text in lines), delimiter=delimiter, quotechar=quote, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            if cells := next(reader):
                yield number, cells
        except StopIteration:
            return
        except csv.Error as error:
            cause = "a quote is never closed" if "unexpected end" in str(error) else str(error)
            yield number, DataError(f"broken quoting: {cause} (data.quote='' if quotes mean nothing in this file)")


def _parquet_rows(stream: io.BufferedIOBase, path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as unzipped:
        zipped = isinstance(stream, gzip.GzipFile)
        if zipped:  # Parquet is read from its end
            shutil.copyfileobj(stream, unzipped)
        try:
            with pq.ParquetFile(unzipped if zipped else stream) as file:
                batches = file.iter_batches(1024)
                for number, value in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                    yield Row(number, value, "row")
        except pa.ArrowInvalid as error:
            raise DataError(f"{path} is not a Parquet file: {error}") from error


def _json_rows(stream: io.BufferedIOBase, source: Source, encoding: str) -> Iterator[Row]:
    records = _json_records(_parse_json(stream.read(), source.path, encoding), source)
    if records and isinstance(records[0], dict) and "paragraphs" in records[0]:
        try:
            records = list(flatten(records))
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{source} has 'paragraphs' like SQuAD, but not its shape: {error!r}") from error
    for number, value in enumerate(records, 1):
        if not isinstance(value, dict | list):
            value = DataError(f"expected an object, got {json.dumps(value)[:40]}")
        yield Row(number, value, "record")


def _json_problem(error: json.JSONDecodeError) -> str:
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"  # some of json's messages end in "at"


def _parse_json(raw: bytes, path: Path, encoding: str) -> Any:
    try:
        return json.loads(raw.decode(encoding).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: byte {raw[error.start]:#04x} is not valid {encoding}") from error
    except json.JSONDecodeError as error:
        hint = "; if each line is an object, set data.format=jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: broken JSON: {_json_problem(error)}{hint}") from error
    except LookupError as error:
        raise UserError(f"data.encoding='{encoding}' is unknown: {error}") from error


def _json_records(content: Any, source: Source) -> list[Any]:
    """The list of records in a JSON file: all of it, its ``data`` (SQuAD), or the part the user names."""
    if isinstance(content, dict):
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        part = source.part or ("data" if "data" in lists else None)
        if part in lists:
            return lists[part]
        if lists:
            got = f" (got '#{part}')" if part else ""
            raise DataError(
                f"{source.path} is an object of lists: name one as {source.path.name}#{next(iter(lists))}{got}; "
                f"there are {listing(lists)}"
            )
    elif isinstance(content, list) and not source.part:
        return content
    got = f"a list, which has no '#{source.part}'" if isinstance(content, list) else f"{json.dumps(content)[:40]}"
    raise DataError(f"{source.path}: expected a list of objects, an object of lists, or SQuAD JSON; got {got}")
