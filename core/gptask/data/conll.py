"""Files of the CoNLL shared tasks: a word a line with its tags in columns, an empty line between sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import dropwhile
from typing import Any

from gptask.errors import DataError

CONLLU_COLUMNS = ("number", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
Word = tuple[int, list[str]]  # the number of its line, and its cells


def read_sentences(lines: Iterable[tuple[int, str]], universal: bool = False) -> Iterator[tuple[int, Any]]:
    """The number of the first line and the columns of every sentence: a list of lists with a cell for each word.

    Cells are separated by tabs, or by spaces in a line without any. ``universal`` is CoNLL-U: ten named columns; lines
    for tokens of several words and for empty nodes are left out. A sentence whose words differ in their number of cells
    is a `DataError`, with the number of the first line that differs.
    """
    width = len(CONLLU_COLUMNS) if universal else None
    for block in _blocks(lines):
        words, width = _without_comments(block, width)
        if universal:
            words = [(number, cells) for number, cells in words if not set("-.") & set(cells[0])]
        if not words:
            continue
        first_line, first_cells = words[0]
        n_columns = len(CONLLU_COLUMNS) if universal else len(first_cells)
        bad_word = next((word for word in words if len(word[1]) != n_columns), None)
        if bad_word is not None:
            number, cells = bad_word
            reference = "CoNLL-U" if universal else f"the sentence's first word, on line {first_line},"
            yield number, DataError(f"{len(cells)} columns, but {reference} has {n_columns}")
            continue
        columns = [list(column) for column in zip(*(cells for _, cells in words), strict=True)]
        yield first_line, dict(zip(CONLLU_COLUMNS, columns, strict=True)) if universal else columns


def _blocks(lines: Iterable[tuple[int, str]]) -> Iterator[list[Word]]:
    """The lines between empty ones; the line ``-DOCSTART-`` before a document counts as empty."""
    block: list[Word] = []
    for number, text in lines:
        text = text.strip(" \t\r\n")  # no other white space, because a word may contain it
        if text and not text.startswith("-DOCSTART-"):
            block.append((number, text.split("\t") if "\t" in text else [cell for cell in text.split(" ") if cell]))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _without_comments(block: list[Word], previous_width: int | None) -> tuple[list[Word], int | None]:
    """A sentence without the comments above it, and how many columns it has.

    A comment begins with # and has another number of columns than the words (a word may begin with # too). Where every
    line begins with #, the words have as many columns as in the sentence before, ``previous_width``.
    """
    width = next((len(cells) for _, cells in reversed(block) if not cells[0].startswith("#")), previous_width)

    def is_comment(word: Word) -> bool:
        cells = word[1]
        return width is not None and cells[0].startswith("#") and len(cells) != width

    return list(dropwhile(is_comment, block)), width
