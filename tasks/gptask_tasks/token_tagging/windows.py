"""Words to token ids: each word's pieces, and windows over sentences that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptask import DataError, Encoded, is_wide

MARK = " *"  # put before a predicate


def pieces(words: Sequence[str], marked: Sequence[int], tokenizer: Any) -> list[list[int]]:
    """Token ids of every word, behind a space where one would be written; ``marked`` ones behind a star.

    Words are tokenized apart, so that no token belongs to two of them (Chinese characters would melt together).
    """
    texts = []
    for number, word in enumerate(words):
        wide = is_wide(word[0]) or (number > 0 and is_wide(words[number - 1][-1]))
        mark = MARK if number in marked else ""
        texts.append(mark + word if wide else f"{mark} {word}")
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def windows(parts: Sequence[Sequence[int]], before: int, copies: int, room: int) -> list[Encoded]:
    """Token ids of one or several windows that begin with the id ``before`` and hold their words ``copies`` times.

    ``extra``: where each word ends in the last copy (``ends``), and which of the window's words are its own
    (``first`` to ``stop``); the others, a quarter of its room on each side, are only read. Of a word that is longer
    than that the last tokens are kept.
    """
    space = room // copies - 1  # a copy's tokens behind its first
    if space < 4:
        raise DataError(f"data.max_tokens={room} has no room for {copies} x 4 tokens: raise it")
    whole = [len(part) for part in parts]
    parts = [part[-(space // 4) :] for part in parts]
    found: list[Encoded] = []
    start = own = 0
    while own < len(parts):
        stop = start + _count(parts[start:], space)
        last = stop if stop == len(parts) else stop - _count(parts[own:stop][::-1], space // 4)
        found.append(_window(parts[start:stop], before, copies, own - start, last - start))
        found[-1].truncated = sum(whole[own:last]) - sum(map(len, parts[own:last]))
        own, start = last, last - _count(parts[start:last][::-1], space // 4)
    return found


def _count(parts: Sequence[Sequence[int]], room: int) -> int:
    """How many words, from the first on, have so many tokens together at most."""
    total = 0
    for count, part in enumerate(parts):
        total += len(part)
        if total > room:
            return count
    return len(parts)


def _window(parts: Sequence[Sequence[int]], before: int, copies: int, first: int, stop: int) -> Encoded:
    once, ends = [before], []
    for part in parts:
        once += part
        ends.append(len(once) - 1)
    offset = (copies - 1) * len(once)
    return Encoded(once * copies, extra={"ends": [offset + end for end in ends], "first": first, "stop": stop})
