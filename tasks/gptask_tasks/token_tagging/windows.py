"""Words to token ids: the tokens of each word, and windows over sentences that are too long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gptask import DataError, Encoded, is_wide

PREDICATE_MARK = " *"  # stands before a predicate


def word_ids(words: Sequence[str], predicate: Sequence[int], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of every word, behind a space where one would be written; those of the predicate are marked.

    Words are tokenized apart, so that no token belongs to two of them (Chinese characters would melt together).
    """
    texts = []
    for position, word in enumerate(words):
        joins = is_wide(word[0]) or (position > 0 and is_wide(words[position - 1][-1]))
        mark = PREDICATE_MARK if position in predicate else ""
        texts.append(mark + word if joins else f"{mark} {word}")
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def windows(words: Sequence[Sequence[int]], first_id: int, copies: int, room: int) -> list[Encoded]:
    """Return one or several windows over the token ids of words; each begins with ``first_id`` and is repeated.

    ``copies`` says how often a window holds its words. ``extra`` has where each word ends in the last copy (``ends``),
    and which of the words are predicted in this window (``first`` to ``stop``); the others, a quarter of its room on
    each side, are context. Of a word that is longer than this quarter only the last tokens are read.
    """
    space = room // copies - 1  # tokens of a copy behind its first
    if space < 4:
        raise DataError(f"data.max_tokens={room} has no room for {copies} x 4 tokens: raise it")
    lengths = [len(ids) for ids in words]
    words = [ids[-(space // 4) :] for ids in words]
    encoded: list[Encoded] = []
    start = first = 0  # of the window, and of the words it predicts
    while first < len(words):
        end = start + _words_that_fit(words[start:], space)
        stop = end if end == len(words) else end - _words_that_fit(reversed(words[first:end]), space // 4)
        window = _window(words[start:end], first_id, copies, first - start, stop - start)
        window.truncated = sum(lengths[first:stop]) - sum(map(len, words[first:stop]))
        encoded.append(window)
        first, start = stop, stop - _words_that_fit(reversed(words[start:stop]), space // 4)
    return encoded


def _words_that_fit(words: Iterable[Sequence[int]], room: int) -> int:
    """Count how many words, from the first on, fit into so many tokens."""
    tokens = count = 0
    for ids in words:
        tokens += len(ids)
        if tokens > room:
            break
        count += 1
    return count


def _window(words: Sequence[Sequence[int]], first_id: int, copies: int, first: int, stop: int) -> Encoded:
    """Encode the words of one window, of which those from ``first`` to ``stop`` are predicted."""
    copy, ends = [first_id], []
    for ids in words:
        copy += ids
        ends.append(len(copy) - 1)
    offset = (copies - 1) * len(copy)
    return Encoded(copy * copies, extra={"ends": [offset + end for end in ends], "first": first, "stop": stop})
