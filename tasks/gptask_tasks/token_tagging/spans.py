"""Tags and the spans they mark: all published schemes are read, and consistent sequences of tags are decoded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from gptask import DataError

OUTSIDE = "O"
PREFIXED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
OPENING, CLOSING = set("BSU"), set("ESLU")  # prefixes that begin and that end a span whatever stands beside them


class EntitySpan(NamedTuple):
    """Words ``start`` to ``end`` (exclusive, from 0) of one type."""

    type: str
    start: int
    end: int


def are_plain(tags: Iterable[str]) -> bool:
    """Tell whether tags describe each word alone (parts of speech) and mark no spans."""
    return not any(PREFIXED.fullmatch(tag) for tag in tags)


def split_tag(tag: str) -> tuple[str, str]:
    """Return the prefix and the type of a tag that marks spans; both are empty for O.

    Raises `DataError` for a tag that is neither.
    """
    if tag == OUTSIDE:
        return "", ""
    if not (match := PREFIXED.fullmatch(tag)):
        raise DataError(f"tag '{tag[:40]}' is neither {OUTSIDE} nor a type behind B-, I- (or E-, S-, L-, U-, M-)")
    return match[1], match[2]


def spans(tags: Sequence[str], plain: bool = False) -> list[EntitySpan]:
    """Return the spans that tags mark, by the rules of conlleval (Tjong Kim Sang & Buchholz 2000), as in seqeval.

    The rules hold for BIO, IOB1, IO, BIOES, BILOU and BMES alike: a span begins at B- (S-, U-), at a type other than
    that of the word before, and behind the end of another span. ``plain`` tags are a span each.
    """
    if plain:
        return [EntitySpan(tag, position, position + 1) for position, tag in enumerate(tags)]
    marked: list[EntitySpan] = []
    open_type = ""  # of the span that the next word may continue
    for position, tag in enumerate(tags):
        prefix, span_type = split_tag(tag)
        if span_type and span_type == open_type and prefix not in OPENING:
            marked[-1] = EntitySpan(span_type, marked[-1].start, position + 1)
        elif span_type:
            marked.append(EntitySpan(span_type, position, position + 1))
        open_type = "" if prefix in CLOSING else span_type
    return marked


def bio(marked: Iterable[EntitySpan], words: int) -> list[str]:
    """Write spans as BIO tags of so many words."""
    tags = [OUTSIDE] * words
    for name, start, end in marked:
        tags[start:end] = [f"B-{name}"] + [f"I-{name}"] * (end - start - 1)
    return tags


def decode_spans(scores: np.ndarray, tags: Sequence[str]) -> list[int]:
    """Return the likeliest consistent sequence of tags, as indices (N,), from log-probabilities (N, K).

    It is consistent if I- continues a span of its type. The algorithm is Viterbi's (1967), with transitions that are
    allowed or forbidden and cost nothing else.
    """
    inside = np.array([tag.startswith("I-") for tag in tags])
    types = np.array([tag[2:] for tag in tags])
    continues = (types[:, None] == types[None]) & (np.array(tags) != OUTSIDE)[:, None]
    transitions = np.where(~inside[None] | continues, 0.0, -np.inf)  # (K before, K)
    best, origins = np.where(inside, -np.inf, scores[0]), []
    for row in scores[1:]:
        paths = best[:, None] + transitions  # (K before, K)
        origins.append(paths.argmax(0))
        best = paths.max(0) + row
    path = [int(best.argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return path[::-1]
