"""Tags and the spans they mark: every published way of writing them is read, and sound sequences are decoded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from gptask import DataError

OUTSIDE = "O"
PREFIXED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
FIRST, LAST = set("BSU"), set("ESLU")  # prefixes that begin and that end a span whatever stands beside them


class EntitySpan(NamedTuple):
    """Words ``start`` to ``end`` (exclusive, from 0) of one type."""

    type: str
    start: int
    end: int


def are_plain(tags: Iterable[str]) -> bool:
    """Whether tags say something about each word alone (parts of speech), and mark no spans."""
    return not any(PREFIXED.fullmatch(tag) for tag in tags)


def split(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag that marks spans; both are empty for one that marks none."""
    if tag == OUTSIDE:
        return "", ""
    if not (found := PREFIXED.fullmatch(tag)):
        raise DataError(f"tag '{tag[:40]}' is neither {OUTSIDE} nor a type behind B-, I- (or E-, S-, L-, U-, M-)")
    return found[1], found[2]


def spans(tags: Sequence[str], plain: bool = False) -> list[EntitySpan]:
    """The spans that tags mark, by the rules of conlleval (Tjong Kim Sang & Buchholz 2000), as seqeval counts them.

    They hold for BIO, IOB1, IO, BIOES, BILOU and BMES alike: a span begins at B- (S-, U-), at a type that the word
    before has not, and behind the end of another. ``plain`` tags are a span each.
    """
    if plain:
        return [EntitySpan(tag, number, number + 1) for number, tag in enumerate(tags)]
    found: list[EntitySpan] = []
    open_type = ""  # of the span that the next word may belong to
    for number, tag in enumerate(tags):
        prefix, kind = split(tag)
        if kind and kind == open_type and prefix not in FIRST:
            found[-1] = EntitySpan(kind, found[-1].start, number + 1)
        elif kind:
            found.append(EntitySpan(kind, number, number + 1))
        open_type = "" if prefix in LAST else kind
    return found


def bio(found: Iterable[EntitySpan], words: int) -> list[str]:
    """Spans as BIO tags of so many words."""
    tags = [OUTSIDE] * words
    for kind, start, end in found:
        tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return tags


def decode(scores: np.ndarray, tags: Sequence[str]) -> list[int]:
    """The likeliest sound sequence of tags, as numbers (N,), from log-probabilities (N, K): I- only inside its span.

    Viterbi's algorithm; what may follow what is all that neighbours have to do with each other.
    """
    inside = np.array([tag.startswith("I-") for tag in tags])
    names = np.array([tag[2:] for tag in tags])
    follows = ~inside[None] | ((names[:, None] == names[None]) & (np.array(tags) != OUTSIDE)[:, None])  # (K, K)
    barrier = np.where(follows, 0.0, -np.inf)
    best, back = np.where(inside, -np.inf, scores[0]), []
    for row in scores[1:]:
        paths = best[:, None] + barrier  # (K before, K)
        back.append(paths.argmax(0))
        best = paths.max(0) + row
    path = [int(best.argmax())]
    for step in reversed(back):
        path.append(int(step[path[-1]]))
    return path[::-1]
