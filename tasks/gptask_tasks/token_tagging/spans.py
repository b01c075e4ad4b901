"""Tags and the spans they mark: all published schemes are read, and consistent sequences of tags are decoded."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from gptask import DataError, listing

OUTSIDE = "O"
PREFIXES = "BIESLUM"
PREFIXED = re.compile(rf"([{PREFIXES}])-(.+)", re.DOTALL)
OPENING, CLOSING = set("BSU"), set("ESLU")  # prefixes that begin and that end a span whatever stands beside them
ONLY_TYPE = "_"  # of spans whose tags have no type, as in seqeval
FOREIGN_FORMS = (  # of tags that mark spans and are written otherwise
    re.compile(rf"(?P<prefix>[{PREFIXES}])[_:/.|+](?P<type>.+)", re.DOTALL | re.IGNORECASE),  # B_PER
    re.compile(rf"(?P<type>.+)[-_:/.|+](?P<prefix>[{PREFIXES}])", re.DOTALL | re.IGNORECASE),  # PER-B
    re.compile(rf"(?P<prefix>[{PREFIXES.lower()}])-(?P<type>.+)", re.DOTALL),  # b-per
)


class EntitySpan(NamedTuple):
    """Words ``start`` to ``end`` (exclusive, from 0) of one type."""

    type: str
    start: int
    end: int


def are_plain(tags: Iterable[str]) -> bool:
    """Tell whether tags describe each word alone (parts of speech) and mark no spans."""
    tags = set(tags)
    return not (are_bare(tags) or any(PREFIXED.fullmatch(tag) for tag in tags))


def are_bare(tags: Collection[str]) -> bool:
    """Tell whether tags are prefixes without a type: B, I and O, or those of BIOES, BILOU and BMES."""
    return {*tags} <= {OUTSIDE, *PREFIXES} and len({*tags}) > 1 and not {*"BI"}.isdisjoint(tags)


def refuse_foreign_tags(tags: Collection[str]) -> None:
    """Raise `DataError` for all tags of a training set that mark spans in a form that is not read, or are numbers."""
    if all(re.fullmatch(r"-?\d+", tag) for tag in tags):
        raise DataError(
            f"the tags are numbers ({listing(sorted(map(int, tags)))}): name them in the order of their ids, "
            "data.labels=[O,B-PER,I-PER,...], or set task.plain=true if each number is a class of words"
        )
    names = {tag: OUTSIDE if tag.upper() == OUTSIDE else tag.upper() for tag in tags}
    if not are_bare({*names.values()}):
        names = next(filter(None, (_bio_names(tags, form) for form in FOREIGN_FORMS)), {})
    if names:
        pairs = ", ".join(f"{tag}: {name}" for tag, name in sorted(names.items()))
        raise DataError(
            f"the tags {listing(sorted(tags))} mark spans, but not as B-TYPE, I-TYPE and O: map them, "
            f"'data.labels={{{pairs}}}', or set task.plain=true if each tag is a class of words"
        )


def _bio_names(tags: Collection[str], form: re.Pattern[str]) -> dict[str, str]:
    """Return the usual name of each tag if all but O have this form, and a B is among them; else nothing."""
    others = {tag: form.fullmatch(tag) for tag in tags if tag.upper() != OUTSIDE}
    names = {tag: f"{match['prefix'].upper()}-{match['type']}" for tag, match in others.items() if match}
    if len(names) < len(others) or len(others) == len({*tags}) or not any(n.startswith("B-") for n in names.values()):
        return {}
    return dict.fromkeys(tags, OUTSIDE) | names


def split_tag(tag: str) -> tuple[str, str]:
    """Return the prefix and the type of a tag that marks spans; both are empty for O.

    The type of a prefix alone is `ONLY_TYPE`. Raises `DataError` for a tag that is neither.
    """
    if tag == OUTSIDE:
        return "", ""
    if tag in {*PREFIXES}:
        return tag, ONLY_TYPE
    if not (match := PREFIXED.fullmatch(tag)):
        raise DataError(
            f"tag '{tag[:40]}' is neither {OUTSIDE} nor a type behind B-, I- (or E-, S-, L-, U-, M-); data.labels maps "
            "tags of another form"
        )
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
