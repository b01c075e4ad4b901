"""Rows of CSV and TSV: cells by name under a header, else by position."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gptask.config.schemas import Files
from gptask.data.header import decide_header, is_number
from gptask.data.rows import Lines, ReadingNotes, Row, TableCells, unique_names, wanted_positions
from gptask.errors import DataError, UserError, listing

csv.field_size_limit(2**27)  # the default of 128 KiB is less than a long document
SAMPLE_LINES = 200  # to find out how to read a table
MAX_ROW_CHARACTERS = 2**24  # of a row over several lines: an unclosed quote must not read the file into memory
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')  # Excel takes the delimiter from such a first line


@dataclass
class Layout:
    """How the cells of a table are parted and quoted (None: not at all), and if its first row is a header."""

    delimiter: str
    quote: str | None
    has_header: bool
    skip_lines: int = 0  # before the table


def resolve_layout(
    sample: list[tuple[int, str]],
    all_lines: Callable[[], Lines] | None,
    file_format: str,
    options: Files,
    header_names: set[str],
    notes: ReadingNotes,
) -> Layout:
    """How to read a table, as told or by evidence: that of its first lines, and for quotes that of ``all_lines``."""
    texts = [text for _, text in sample]
    separator = SEPARATOR_LINE.fullmatch(texts[0]) if texts else None
    texts = texts[1:] if separator else texts
    told = told_delimiter(options) or (separator and separator[1])
    delimiter = told or _sniff_delimiter(texts, file_format, options, header_names, notes)
    quote = told_quote(options)
    if quote is None:
        quote = '"'
        if file_format == "tsv" and delimiter not in ",;":
            quote = '"' if all_lines and is_quoted((text for _, text in all_lines()), delimiter) else ""
            if quote:
                notes.options["quote"] = quote
    rows = _sample_rows(texts, delimiter, quote)
    has_header = decide_header(rows, options, header_names, notes)
    notes.options["delimiter"] = next((name for name, value in DELIMITERS.items() if value == delimiter), delimiter)
    notes.options["header"] = str(has_header).lower()
    return Layout(delimiter, quote or None, has_header, 1 if separator else 0)


def table_rows(lines: Lines, layout: Layout, wanted: set[str], name: str) -> Iterator[Row]:
    """The rows of a table. Raises `DataError` if a wanted column occurs twice in its header."""
    for _ in range(layout.skip_lines):
        next(lines, None)
    header: list[str] | None = None
    names: list[str] = []
    parse = _split_cells(lines, layout.delimiter) if layout.quote is None else _quoted_cells(lines, layout)
    for number, cells in parse:
        if isinstance(cells, DataError) or not layout.has_header:
            yield Row(number, cells)
        elif header is None:
            header = [cell.strip() for cell in cells]
            names = unique_names(header, wanted, f"{name}:{number}")
        elif len(cells) == len(header) and all(map(_is_name, cells, header)):
            yield Row(number, DataError("the row repeats the header; remove it (files put together?)"))
        elif len(cells) != len(names):
            shown_names = listing(name[:40] for name in names)
            yield Row(number, DataError(f"{len(cells)} cells, but the header has {len(names)} ({shown_names})"))
        else:
            yield Row(number, TableCells(zip(names, cells, strict=True)))


def _is_name(cell: str, name: str) -> bool:
    """Whether a cell is a name of the header; a file that is put behind another may begin with a byte order mark."""
    return cell.strip() == name or cell in (f"\ufeff{name}", f'\ufeff"{name}"')


def told_delimiter(options: Files) -> str | None:
    """``data.delimiter`` as a character, None where it is not set; raises `UserError` for another text."""
    if options.delimiter is None:
        return None
    delimiter = DELIMITERS.get(options.delimiter, options.delimiter.replace("\\t", "\t"))
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(
            f"data.delimiter={options.delimiter!r} must be {', '.join(DELIMITERS)}, or another single character"
        )
    return delimiter


def told_quote(options: Files) -> str | None:
    """``data.quote``; raises `UserError` for more than a character."""
    if options.quote is not None and len(options.quote) > 1:
        raise UserError(f"data.quote={options.quote!r} must be one character, or '' for none")
    return options.quote


def _sniff_delimiter(
    texts: list[str], file_format: str, options: Files, header_names: set[str], notes: ReadingNotes
) -> str:
    """The format's own delimiter, unless the first lines fit another one better.

    A delimiter fits by the wanted names in the header, where columns are named; else by all rows having the same
    number of cells, enough for the positions asked for. A separator of labels that is told parts no cells.
    """
    default = "\t" if file_format == "tsv" else ","
    positions = wanted_positions(options.columns)
    width = 1 + max(positions, default=0)

    def fit(delimiter: str) -> tuple[int, bool]:
        quote = '"' if file_format == "csv" or delimiter != "\t" else ""
        rows = _sample_rows(texts, delimiter, quote)
        n_named = len(header_names.intersection(cell.strip() for cell in rows[0])) if rows else 0
        widths = {len(row) for row in (rows[:-1] if len(texts) >= SAMPLE_LINES else rows)}  # the last may be cut
        needed = width if positions and delimiter == default else max(2, width)  # a single cell needs no delimiter
        return n_named, len(widths) == 1 and min(widths) >= needed

    others = [mark for mark in DELIMITERS.values() if mark != options.label_separator or mark == ","]
    fits = {delimiter: fit(delimiter) for delimiter in (default, *others)}
    best = max(fits, key=lambda delimiter: fits[delimiter])  # of equal ones the first, which is the default
    if positions and fits[best][1] and best == default:
        rivals = [name for name, value in DELIMITERS.items() if value != default and fits.get(value) == fits[default]]
        if rivals:
            notes.warnings.append(
                f"the rows have as many cells each if parted by {listing(rivals)}: set data.delimiter if they are"
            )
    return best


def _sample_rows(texts: list[str], delimiter: str, quote: str) -> list[list[str]]:
    """Some lines as rows of cells, as far as they can be parsed."""
    if not quote:
        return [text.rstrip("\r\n").split(delimiter) for text in texts if text.strip("\r\n")]
    reader, rows = csv.reader(texts, delimiter=delimiter, quotechar=quote), []
    try:
        for cells in reader:
            rows += [cells] if cells else []
    except csv.Error:  # the rows before it are evidence enough
        pass
    return rows


def is_quoted(texts: Iterator[str], delimiter: str, quote: str = '"') -> bool:
    """Whether a table without told quoting was written by a CSV writer, as pandas writes TSV.

    It was if quotes stand around cells alone, doubled inside, and either around no cell that does not need them (for a
    quote, a delimiter or a line break in it), or around all cells that are not numbers.
    """
    inside, is_needed, any_needed, only_needed, all_quoted = False, False, False, True, True
    for text in texts:
        if not (inside or all_quoted or quote in text):
            continue
        for part in text.rstrip("\r\n").split(delimiter):
            if inside:
                is_needed = True  # for the delimiter or line break before this part
            elif part.startswith(quote):
                inside, is_needed, part = True, False, part[1:]
            elif quote in part:
                return False
            else:
                all_quoted = all_quoted and (not part or is_number(part))
                continue
            rest = part.replace(quote * 2, "")
            is_needed = is_needed or quote * 2 in part
            if quote not in rest:
                continue
            if not rest.endswith(quote) or rest.count(quote) > 1:
                return False
            inside = False
            any_needed, only_needed = any_needed or is_needed, only_needed and is_needed
    return not inside and ((any_needed and only_needed) or (all_quoted and not only_needed))


def _split_cells(lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, text in lines:
        if text := text.rstrip("\r\n"):
            yield number, text.split(delimiter)


class _ReturnableLines:
    """Lines of which those of the present row can be read again."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.returned: deque[tuple[int, str]] = deque()
        self.row: list[tuple[int, str]] = []

    def texts(self) -> Iterator[str]:
        size = 0
        while line := self.returned.popleft() if self.returned else next(self.lines, None):
            size = size + len(line[1]) if self.row else len(line[1])
            self.row.append(line)
            if size > MAX_ROW_CHARACTERS and len(self.row) > 1:
                raise csv.Error(f"a quote is not closed within {MAX_ROW_CHARACTERS:,} characters")
            yield line[1]

    def return_all_but_first(self) -> None:
        self.returned.extendleft(reversed(self.row[1:]))


def _quoted_cells(lines: Lines, layout: Layout) -> Iterator[tuple[int, list[str] | DataError]]:
    """Rows as lists of cells, each with the number of its first line (a quoted cell may span several).

    Behind a row with broken quotes, reading goes on at the row's second line. There, a row with an odd number of quotes
    may be the end of a broken one, and is refused.
    """
    source, doubtful_until, quote = _ReturnableLines(lines), 0, layout.quote or ""
    reader: Iterator[list[str]] | None = None
    while True:
        reader = reader or csv.reader(source.texts(), delimiter=layout.delimiter, quotechar=quote, strict=True)
        source.row.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            first, last = source.row[0][0], source.row[-1][0]
            yield first, DataError(_broken_quoting(str(error), first, last))
            source.return_all_but_first()
            doubtful_until, reader = max(doubtful_until, last), None
            continue
        number = source.row[0][0]
        if number <= doubtful_until and sum(text.count(quote) for _, text in source.row) % 2:
            yield number, DataError("a quote without its partner, behind a row with broken quotes")
        elif cells:
            yield number, cells


def _broken_quoting(problem: str, first: int, last: int) -> str:
    cause = "a quote is never closed" if "unexpected end" in problem else problem
    lines = f"; the row would take {last - first + 1} lines, {first} to {last}" if last > first else ""
    return f"broken quoting: {cause}{lines} (data.quote='' if quotes mean nothing in this file)"
