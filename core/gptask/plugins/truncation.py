"""The longest beginning of a text that fits, cut between characters as readers see them (grapheme clusters)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import regex

GRAPHEME = regex.compile(r"\X")
GRAPHEME_WINDOW = 64  # code points before a cut in which its grapheme begins
GUIDED_PROBES = 4  # cuts that follow from the surplus of tokens; after them the range of cuts is halved


def longest_prefix(text: str, offsets: Sequence[tuple[int, int]], excess: int, surplus: Callable[[str], int]) -> str:
    """Return the longest prefix of a text with at most 0 surplus tokens, the empty text where no other has.

    ``surplus`` tells how many tokens too many (negative: too few) there are with a prefix; ``excess`` (> 0) is that of
    the whole text. ``offsets`` are the characters (start, end) of the text's own tokens. Cuts are tried behind these
    tokens first; only if room is left, within the next one. Tokens may merge at a cut; a character may have several.
    """
    low, high = 0, len(offsets)  # tokens: ``low`` of them fit, ``high`` don't
    tokens = high - excess
    fitting, too_long = 0, len(text)  # characters
    probes = 0
    while high - low > 1:
        probes += 1
        halved = not low < tokens < high or probes > GUIDED_PROBES
        tokens = (low + high) // 2 if halved else tokens
        cut = _cut_behind(text, offsets, tokens)
        if cut <= fitting:  # within the character behind the longest prefix that fits so far
            low = tokens
            continue
        if cut >= too_long:
            high = tokens
            continue
        excess = surplus(text[:cut])
        if excess == 0:
            return text[:cut]
        low, fitting = (tokens, cut) if excess < 0 else (low, fitting)
        high, too_long = (tokens, cut) if excess > 0 else (high, too_long)
        tokens -= excess
    ends = [fitting + match.end() for match in GRAPHEME.finditer(text[fitting:too_long])][:-1]
    position = bisect_right(ends, 0, key=lambda end: surplus(text[:end]))
    return text[: ends[position - 1] if position else fitting]


def _cut_behind(text: str, offsets: Sequence[tuple[int, int]], tokens: int) -> int:
    """The position behind so many tokens; before the character that holds it."""
    if not tokens:
        return 0
    # tokens of one character have its offsets; between others there may be spaces that belong to neither
    cut = min(offsets[tokens - 1][1], offsets[tokens][0])
    if text[cut : cut + 1] < "\u0300" and text[cut : cut + 1] != "\n":  # a character begins there
        return cut
    start = max(0, cut - GRAPHEME_WINDOW)
    window = text[start : cut + GRAPHEME_WINDOW]
    return start + max((m.end() for m in GRAPHEME.finditer(window) if start + m.end() <= cut), default=0)
