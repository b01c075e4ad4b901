"""Files of the CoNLL shared tasks: a word a line with its tags in columns, an empty line between sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import dropwhile
from typing import Any

from gptask.errors import DataError

UNIVERSAL = ("number", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
Words = list[tuple[int, list[str]]]  # the line of each word, and its cells


def sentences(lines: Iterable[tuple[int, str]], universal: bool = False) -> Iterator[tuple[int, Any]]:
    """The first line's number and the columns of every sentence: a list of lists, a cell for each word.

    Cells are divided by tabs, or by spaces in a line without any. ``universal`` is CoNLL-U: ten named columns, whose
    lines for tokens of several words and for empty nodes are left out. A sentence that is no table is a `DataError`
    with the number of the line that spoils it.
    """
    width = len(UNIVERSAL) if universal else None
    for block in _blocks(lines):
        words, width = _without_comments(block, width)
        if universal:
            words = [(number, cells) for number, cells in words if not set("-.") & set(cells[0])]
        if not words:
            continue
        columns = len(UNIVERSAL) if universal else len(words[0][1])
        if bad := next((word for word in words if len(word[1]) != columns), None):
            expected = "CoNLL-U" if universal else f"the sentence's first word, on line {words[0][0]},"
            yield bad[0], DataError(f"{len(bad[1])} columns, but {expected} has {columns}")
            continue
        table = [list(column) for column in zip(*(cells for _, cells in words), strict=True)]
        yield words[0][0], dict(zip(UNIVERSAL, table, strict=True)) if universal else table


def _blocks(lines: Iterable[tuple[int, str]]) -> Iterator[Words]:
    """Lines between empty ones; a document's ``-DOCSTART-`` counts as empty."""
    block: Words = []
    for number, text in lines:
        text = text.strip(" \t\r\n")  # and no other white space: a word may hold that
        if text and not text.startswith("-DOCSTART-"):
            block.append((number, text.split("\t") if "\t" in text else [c for c in text.split(" ") if c]))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _without_comments(block: Words, before: int | None) -> tuple[Words, int | None]:
    """A sentence without the comments above it, and how many columns it has.

    A comment begins with # and has not as many columns as the words have (a word may begin with # too); where every
    line begins so, they are ``before``, as many as in the sentence before.
    """
    width = next((len(cells) for _, cells in reversed(block) if not cells[0].startswith("#")), before)

    def is_comment(word: tuple[int, list[str]]) -> bool:
        return width is not None and word[1][0].startswith("#") and len(word[1]) != width

    return list(dropwhile(is_comment, block)), width
