"""Tables with a word a row, whose rows are joined to sentences, and spans of characters, which are no tags."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from gptask.data.cells import is_blank_cell, plain_cell
from gptask.data.rows import Row
from gptask.errors import DataError, listing

SENTENCE_NAME = re.compile(r"sent(ence)?(id|idx|index|no|nr|num|number)?")  # "Sentence #", sentence_id, sent_idx
SPANS_HINT = (
    "Tags are one for each token; spans of characters are converted by spacy.training.offsets_to_biluo_tags(doc, "
    "[(start, end, label), ...])"
)


def sentence_column(rows: Sequence[Row], known_names: Collection[str] = ()) -> str | None:
    """The column of the first row that is known to part sentences, or whose name says so; None if there is none."""
    names = rows[0].value if rows and isinstance(rows[0].value, dict) else {}
    telling_names = [name for name in names if SENTENCE_NAME.fullmatch(re.sub("[^a-z]", "", str(name).lower()))]
    return next((name for name in (*known_names, *telling_names) if name in names), None)


def has_a_word_a_row(rows: Iterable[Row], column: str, word_columns: Collection[str]) -> bool:
    """Whether the first rows of a table show that each has one word of a sentence.

    The cells of ``word_columns`` are one word each, and ``column`` is blank, or the same, in some rows behind another.
    """
    cells = [row.value for row in rows if isinstance(row.value, dict)]
    words = [row[name] for row in cells for name in word_columns if name in row]
    sentences = [row.get(column) for row in cells]
    continues = any(_is_blank(after) or before == after for before, after in pairwise(sentences))
    return continues and bool(words) and all(isinstance(word, str) and len(word.split()) <= 1 for word in words)


def sentences(rows: Iterable[Row], column: str, word_columns: Collection[str]) -> Iterator[Row]:
    """Join rows to sentences: the cells of ``word_columns`` become lists, of others the first row's are taken.

    A sentence begins where the cell of ``column`` is neither blank nor that of the row before. A bad row makes its
    sentence a bad one; between two sentences it may belong to either, and makes both bad.
    """
    words: list[Row] = []
    current: Any = None
    for row in rows:
        name = _named_cells(row).get(column)
        if words and not _is_blank(name) and name != current:
            yield _joined(words, column, word_columns)
            words = [words[-1]] if isinstance(words[-1].value, DataError) else []
        words.append(row)
        current = current if _is_blank(name) else name
    if words:
        yield _joined(words, column, word_columns)


def _joined(words: Sequence[Row], column: str, word_columns: Collection[str]) -> Row:
    number, first, unit = words[0]
    bad_word = next((word for word in words if isinstance(word.value, DataError)), None)
    if bad_word is not None:
        return bad_word
    cells = [_named_cells(word) for word in words]
    if column not in cells[0]:
        there = f"; there are: {listing(cells[0])}" if cells[0] else ""
        return Row(number, DataError(f"no column '{column}' that parts sentences (data.columns.sentence){there}"), unit)
    joined = {
        name: [word.get(name) for word in cells] if name in word_columns else cell for name, cell in cells[0].items()
    }
    return Row(number, list(joined.values()) if isinstance(first, list) else joined, unit)


def _named_cells(row: Row) -> dict[str, Any]:
    """The cells by name, or by position as a text."""
    if isinstance(row.value, list):
        return {str(position): cell for position, cell in enumerate(row.value)}
    return row.value if isinstance(row.value, dict) else {}


def _is_blank(cell: Any) -> bool:
    cell = plain_cell(cell)
    return cell is None or is_blank_cell(cell)


def has_character_spans(row: Any) -> bool:
    """Whether a row has spans of characters: ``{"start", "end", "label"}``, or ``[start, end, label]``, in a list."""
    return isinstance(row, dict) and any(_is_span(cell[0]) for cell in row.values() if isinstance(cell, list) and cell)


def _is_span(part: Any) -> bool:
    if isinstance(part, dict):
        return part.keys() >= {"start", "end"}
    return isinstance(part, list | tuple) and [type(value) for value in part] == [int, int, str]
