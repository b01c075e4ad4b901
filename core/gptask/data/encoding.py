"""Bytes to lines of text: the encoding, told or found by evidence, and the lines that it can't decode.

What `sniff_encoding` finds is certain for UTF-8 and UTF-16. Any other encoding is a guess from the letters that the
languages written in it use often; it is made only where one reading of the file is clearly better than all others.
"""

from __future__ import annotations

import codecs
import io
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from gptask.data.languages import guess_encoding
from gptask.data.opening import MAX_LINE_BYTES, limited_lines
from gptask.data.rows import Lines, ReadingNotes, Row
from gptask.errors import DataError, UserError

NOT_OF_FILES = {"undefined", "idna", "punycode", "unicode-escape", "raw-unicode-escape"}  # Python's codecs for others
LONG_LINE_ADVICE = "is it a file of another kind, or without line breaks?"
MARK = "\udcff"  # stands for what can't be decoded; no decoder gives it for bytes that it can
SNIFFED_BYTES = 65536
BYTE_ORDER_MARKS = (  # those of UTF-32 before those of UTF-16, which they start with
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WITHOUT_BYTE_ORDER = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}
codecs.register_error("gptask.mark", lambda error: (MARK, error.end))  # type: ignore[attr-defined]


def resolve_encoding(stream: io.BufferedIOBase, told: str | None, name: object, notes: ReadingNotes) -> str:
    """The encoding of a file: as told, else by evidence; ``stream`` is read and rewound.

    Raises `UserError` for an unknown encoding and for one that the file's byte order mark contradicts, `DataError` for
    a file that is no text.
    """
    head = stream.read(SNIFFED_BYTES)
    stream.seek(0)
    marked = first_bytes_encoding(head)
    encoding = _told_encoding(told, marked, name) if told else marked or _sniff(stream, head, name, notes)
    notes.options["encoding"] = encoding
    return encoding


def first_bytes_encoding(head: bytes) -> str | None:
    """The encoding by a byte order mark, or by the zero bytes that UTF-16 has in Latin text; None without such."""
    marked = next((encoding for mark, encoding in BYTE_ORDER_MARKS if head.startswith(mark)), None)
    if marked or b"\x00" not in head:
        return marked
    even_zeros, odd_zeros = head[0::2].count(0), head[1::2].count(0)
    if odd_zeros > 0.3 * len(head) / 2 and not even_zeros:
        return "utf-16-le"
    return "utf-16-be" if even_zeros > 0.3 * len(head) / 2 and not odd_zeros else None


def _told_encoding(told: str, marked: str | None, name: object) -> str:
    codec = known_codec(told)
    if marked and codec in WITHOUT_BYTE_ORDER and marked.startswith(codec):
        return marked
    if marked and codec not in (marked, f"{marked}-sig"):
        raise UserError(f"{name} starts like a file in {marked}, but data.encoding={told}; leave it out (null)")
    return WITHOUT_BYTE_ORDER.get(codec, told)


def known_codec(told: str) -> str:
    """Python's name of an encoding; raises `UserError` for an unknown one, and for one that no text file has."""
    try:
        "".encode(told)
        if (name := codecs.lookup(told).name) not in NOT_OF_FILES:
            return name
        cause: object = "it is no encoding of text files"
    except (LookupError, ValueError) as error:  # a ValueError: of a name with a null character
        cause = error
    raise UserError(f"data.encoding='{told[:40]}' is unknown: {str(cause)[:80]}")


def _sniff(stream: io.BufferedIOBase, head: bytes, name: object, notes: ReadingNotes) -> str:
    if head.count(0) > 0.01 * len(head):
        raise DataError(f"{name} is not a text file: it holds zero bytes (if it is one, name its data.encoding)")
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()
        while chunk := stream.read(SNIFFED_BYTES):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
        return "utf-8"
    except UnicodeDecodeError:
        stream.seek(0)
        return _sniff_legacy(stream, notes)
    finally:
        stream.seek(0)


def _sniff_legacy(stream: io.BufferedIOBase, notes: ReadingNotes) -> str:
    """The encoding of a file that is not all UTF-8: still UTF-8 if any of its lines is, else as its letters tell."""
    sample, first_line, size = list[bytes](), 0, 0
    for number, raw in enumerate(limited_lines(stream), 1):
        if raw.isascii():
            continue
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            if size < SNIFFED_BYTES:
                sample.append(raw[:SNIFFED_BYTES])
                first_line = first_line or number
                size += len(raw)
        else:
            return "utf-8"  # a line with letters beyond ASCII that is UTF-8 by chance is most improbable
    guess, readings = guess_encoding(sample)
    text = [f"{reading!r} ({encoding})" for encoding, reading in readings]
    if guess:
        notes.warnings.append(
            f"it is not UTF-8 and is read as {guess}, by its letters, such as {readings[0][1]!r} in line "
            f"{first_line}; data.encoding names another"
        )
        return guess
    if text:
        notes.warnings.append(
            f"it is not UTF-8, and its letters don't tell what it is; line {first_line} may read "
            f"{' or '.join(text)}: set data.encoding"
        )
    return "utf-8"


Undecodable = deque[tuple[int, DataError]]  # the number of each line that can't be decoded, and what is wrong with it


def decoded_lines(stream: Iterable[bytes], encoding: str, errors: Undecodable) -> Lines:
    """Numbered lines of text, without a byte order mark.

    What can't be decoded is a `MARK` in its line, and is added to ``errors``.
    """
    line_end = "\n".encode(encoding)
    raw_lines = stream if len(line_end) == 1 else _wide_lines(stream, line_end)
    for number, raw in enumerate(raw_lines, 1):
        if len(raw) >= MAX_LINE_BYTES:
            raise DataError(f"line {number} is longer than {MAX_LINE_BYTES:,} bytes; {LONG_LINE_ADVICE}")
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            errors.append((number, undecodable(error)))
            text = raw.decode(encoding, "gptask.mark")
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _wide_lines(stream: Iterable[bytes], line_end: bytes) -> Iterator[bytes]:
    """Lines of an encoding with two or four bytes a unit, from chunks of any size."""
    width, rest = len(line_end), b""
    for chunk in stream:
        rest, start, position = rest + chunk, 0, -1
        while (position := rest.find(line_end, position + 1)) >= 0:
            if position % width == 0:
                yield rest[start : position + width]
                start = position + width
        rest = rest[start:]
        if len(rest) >= MAX_LINE_BYTES:
            yield rest  # which is refused
    if rest:
        yield rest


def undecodable(error: UnicodeDecodeError) -> DataError:
    """What is wrong with a line that can't be decoded, with the byte and its column, from 1."""
    return DataError(
        f"byte {error.object[error.start]:#04x} at column {error.start + 1} is not valid {error.encoding}; "
        "convert the file or name its encoding (data.encoding=gb18030, latin-1, ...)"
    )


def refuse_undecodable(rows: Iterable[Row], errors: Undecodable) -> Iterator[Row]:
    """The rows, each with a `MARK` in it, or made of a line with one, replaced by what is wrong with its line."""
    for row in rows:
        if errors:
            while errors and errors[0][0] < row.number:
                errors.popleft()
            if errors and (has_mark(row.value) or errors[0][0] == row.number):
                number, error = errors[0]
                value = error if number == row.number else DataError(f"line {number}: {error}")
                yield Row(row.number, value, row.unit)
                continue
        yield row


def has_mark(value: Any) -> bool:
    """Whether a row's value, or anything in it, holds what could not be decoded."""
    if isinstance(value, str):
        return MARK in value
    if isinstance(value, dict):
        return any(has_mark(key) or has_mark(member) for key, member in value.items())
    return isinstance(value, list) and any(map(has_mark, value))
