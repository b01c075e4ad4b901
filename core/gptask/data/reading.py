"""Files to rows: CSV, TSV, JSON, JSONL, Parquet, CoNLL and plain lines, compressed or not, read as a stream."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from gptask.config.schemas import Files
from gptask.data import conll
from gptask.data.documents import documents
from gptask.data.encoding import (
    SNIFFED_BYTES,
    Undecodable,
    decoded_lines,
    first_bytes_encoding,
    known_codec,
    refuse_undecodable,
    resolve_encoding,
)
from gptask.data.header import is_named_header
from gptask.data.json_rows import json_lines, json_records
from gptask.data.line_pattern import LinePattern
from gptask.data.opening import COMPRESSED_SUFFIXES, limited_lines, opened, refuse_unreadable
from gptask.data.parquet import parquet_rows
from gptask.data.rows import EVERY_NAME, Lines, ReadingNotes, Row, Source, wanted_columns, wanted_positions
from gptask.data.tables import (
    SAMPLE_LINES,
    Layout,
    resolve_layout,
    table_rows,
    told_delimiter,
    told_quote,
)
from gptask.errors import DataError, UserError, listing

PACKED = ((b"\x1f\x8b", "compressed by gzip", "zcat"), (b"PK\x03\x04", "a zip archive", "unzip -p"))
log = logging.getLogger("gptask")
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "conll", "conllu", "lines")
TABLES = ("csv", "tsv")
MAX_LINE_CHARACTERS = 4096  # on average, where lines are taken to end with a carriage return
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


def read(
    source: Source, options: Files, header_names: Iterable[str], notes: ReadingNotes | None = None
) -> Iterator[Row]:
    """Read a file row by row; ``header_names`` are the names of the fields and columns that are wanted of it.

    A bad row is yielded with its `DataError` as the value. A file that can't be read any further raises the error.
    How the file is read is added to ``notes`` before the first row comes, or logged where there are none.
    """
    file_format = check_options(source, options)
    own_notes = notes or ReadingNotes()
    with opened(source.path) as stream:
        rows = _stream_rows(stream, source, file_format, options, set(header_names), own_notes)
        first = next(rows, None)
        if notes is None:
            log_notes(own_notes, str(source))
        if first:
            yield first
            yield from rows


def check_options(source: Source, options: Files) -> str:
    """The format of a file that is not opened yet; raises `UserError` for options by which it can't be read."""
    file_format = resolve_format(source.path, options)
    if source.part and file_format != "json":
        raise UserError(
            f"{source}: '#{source.part}' names a list inside a JSON file; this file is read as {file_format}"
        )
    told_delimiter(options)
    told_quote(options)
    if options.encoding:
        known_codec(options.encoding)
    if options.pattern:
        _line_pattern(options.pattern)
    return file_format


def log_notes(notes: ReadingNotes, name: str) -> None:
    """Log how a file is read, unless it is as usual."""
    if notes.warnings or notes.decisions or notes.options.get("encoding", "utf-8") != "utf-8":
        log.info("%s: %s", name, notes.summary())
    for sentence in notes.decisions:
        log.info("%s: %s", name, sentence)
    for sentence in notes.warnings:
        log.warning("%s: %s", name, sentence)


def _stream_rows(
    stream: io.BufferedIOBase,
    source: Source,
    file_format: str,
    options: Files,
    header_names: set[str],
    notes: ReadingNotes,
) -> Iterator[Row]:
    wanted = wanted_columns(header_names, options.columns)
    head = stream.read(512)
    stream.seek(0)
    if file_format == "parquet" or (options.format == "auto" and head.startswith(b"PAR1")):
        yield from parquet_rows(stream, source.path, wanted)
        return
    if file_format not in ("lines", "conll", "conllu") and re.match(rb"\s*<(!doctype )?html", head, re.IGNORECASE):
        raise DataError(f"{source.path} is a web page (HTML), not {file_format}; download the data itself")
    encoding = resolve_encoding(stream, options.encoding, source.path, notes)
    if file_format == "json":
        yield from json_records(stream, source, encoding, wanted)
        return
    _refuse_carriage_returns(stream, encoding, source.path)
    layout = None
    if file_format in TABLES:

        def all_lines() -> Lines:
            stream.seek(0)
            return decoded_lines(limited_lines(stream), encoding, Undecodable())

        sample = list(islice(all_lines(), SAMPLE_LINES))
        layout = resolve_layout(sample, all_lines, file_format, options, header_names - {EVERY_NAME}, notes)
        stream.seek(0)
    errors = Undecodable()
    lines = decoded_lines(limited_lines(stream), encoding, errors)
    yield from refuse_undecodable(_line_rows(file_format, lines, options, wanted, str(source), layout), errors)


def _refuse_carriage_returns(stream: io.BufferedIOBase, encoding: str, path: Path) -> None:
    """Raise `DataError` for lines that end with a carriage return alone; ``stream`` is read and rewound."""
    text = stream.read(SNIFFED_BYTES).decode(encoding, "ignore")
    stream.seek(0)
    if "\n" not in text and text.rstrip("\r").count("\r") > len(text) // MAX_LINE_CHARACTERS:
        raise DataError(
            f"{path}: its lines end with a carriage return alone, as in old Mac files, so the whole file is one line; "
            "convert it (tr '\\r' '\\n' < old > new), or save it as CSV (UTF-8)"
        )


def read_stream(stream: Iterable[bytes], options: Files, header_names: Iterable[str] = ()) -> Iterator[Row]:
    """Read standard input: JSON, JSON lines, a table or plain lines, told or by the first line.

    It is read as it comes, but for JSON, which ends with the input. A table is one with a header that holds a wanted
    name, or with enough cells for the positions that ``data.columns`` asks for.
    """
    names = {*header_names} - {EVERY_NAME}
    if options.format not in ("auto", *FORMATS) or options.format == "parquet":
        expected = listing(name for name in FORMATS if name != "parquet")
        raise UserError(f"standard input can't be read as '{options.format}'; expected {expected}")
    chunks = limited_lines(stream) if isinstance(stream, io.BufferedIOBase) else iter(stream)
    first_chunk = next(chunks, None)
    if first_chunk is None:
        return
    refuse_unreadable(first_chunk, "standard input")
    for magic, kind, tool in PACKED:
        if first_chunk.startswith(magic):
            raise DataError(f"standard input is {kind}; unpack it first ({tool} FILE | gptask ...)")
    encoding = _stream_encoding(first_chunk, options.encoding)
    errors = Undecodable()
    lines = decoded_lines(chain([first_chunk], chunks), encoding, errors)
    first_line = next(lines, None)
    if first_line is None:
        return
    wanted = wanted_columns(header_names, options.columns)
    file_format = _stream_format(first_line[1], options, names)
    if file_format == "json":
        text = "".join(text for _, text in chain([first_line], lines))
        content = io.BytesIO(text.encode("utf-8", "surrogateescape"))
        yield from json_records(content, Source(Path("<stdin>")), "utf-8", wanted)
        return
    layout = None
    if file_format in TABLES:
        notes = ReadingNotes()
        layout = resolve_layout([first_line], None, file_format, options, names, notes)
        log.info("standard input: %s: %s", file_format, notes.summary())
        log_notes(notes, "standard input")
    all_lines = chain([first_line], lines)
    yield from refuse_undecodable(_line_rows(file_format, all_lines, options, wanted, "<stdin>", layout), errors)


def _stream_encoding(head: bytes, told: str | None) -> str:
    with io.BytesIO(head) as stream:
        if told:
            return resolve_encoding(stream, told, "standard input", ReadingNotes())
    return first_bytes_encoding(head) or "utf-8"


def _stream_format(first_line: str, options: Files, names: set[str]) -> str:
    """The format of standard input, as told or by its first line."""
    if options.format != "auto" or options.pattern:
        return resolve_format(Path("<stdin>"), options)
    text = first_line.strip()
    if text.startswith("{"):
        return "json" if text == "{" else "jsonl"
    if re.fullmatch(r"\[\s*(\{.*|\]?)", text):
        return "json"
    if options.delimiter or options.header is not None:
        return "csv"
    positions = wanted_positions(options.columns)
    for delimiter, table in {",": "csv", "\t": "tsv", ";": "csv", "|": "csv"}.items():
        cells = text.split(delimiter)
        if positions and len(cells) > max(1, *positions):
            return table
        if (len(cells) > 1 or options.columns) and is_named_header([cell.strip('"') for cell in cells], names):
            return table
    return "lines"


def _line_rows(
    file_format: str, lines: Lines, options: Files, wanted: set[str], name: str, layout: Layout | None
) -> Iterator[Row]:
    """The rows of a format that is read line by line."""
    if layout:
        return table_rows(lines, layout, wanted, name)
    if file_format == "jsonl":
        return json_lines(lines, wanted)
    if file_format == "lines":
        return _pattern_rows(lines, options.pattern) if options.pattern else documents(lines, options)
    sentences = conll.read_sentences(lines, universal=file_format == "conllu")
    return (Row(number, value) for number, value in sentences)


def resolve_format(path: Path, options: Files) -> str:
    """The format that is told, else that of the file's ending, before the ending of a compressed file."""
    file_format = options.format
    if file_format not in ("auto", *FORMATS):
        raise UserError(f"data.format='{file_format}' is unknown; expected auto, {listing(FORMATS)}")
    if options.pattern and file_format not in ("auto", "lines"):
        raise UserError(f"data.pattern is for plain lines, not for data.format={file_format}")
    if file_format == "auto":
        default = "tsv" if options.columns or options.delimiter else "lines"
        file_format = "lines" if options.pattern else FORMAT_OF_SUFFIX.get(content_suffix(path), default)
    if options.delimiter and file_format not in TABLES:
        raise UserError(f"data.delimiter is for tables ({', '.join(TABLES)}), but {path} is read as {file_format}")
    return file_format


def content_suffix(path: Path) -> str:
    """The ending of a file's name, before that of its compression."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path).suffix.lower()


def _pattern_rows(lines: Lines, pattern: str) -> Iterator[Row]:
    """Lines as the named groups of ``data.pattern``; blank lines are left out."""
    expression = _line_pattern(pattern)
    for number, text in lines:
        text = text.rstrip("\r\n")
        if match := expression.fullmatch(text, number):
            yield Row(number, match.groupdict())
        elif text.strip():
            yield Row(number, DataError(f"the line does not match data.pattern {pattern!r}: {text[:60]!r}"))


def _line_pattern(pattern: str) -> LinePattern:
    line_pattern = LinePattern(pattern, "data.pattern")
    if not line_pattern.group_names:
        raise UserError(f"data.pattern {pattern!r} names no group; write (?P<text>...) for each field")
    return line_pattern
