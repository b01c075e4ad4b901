"""Which targets of a prediction are explained.

Shapes: T positions, W words, K classes or tags, N tokens of a written text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptask.analysis.explain.explanation import Word
from gptask.analysis.explain.objectives import (
    ClassObjective,
    EdgeObjective,
    Objective,
    Reading,
    TagObjective,
    WrittenObjective,
)
from gptask.analysis.explain.word_shares import token_starts
from gptask.data.words import WORD
from gptask.errors import UserError, listing, nearest
from gptask.plugins.types import Prediction

OUTSIDE = "O"  # the tag of a word in no span, in every scheme; such words are explained only if no other is


def class_targets(
    prediction: Prediction,
    log_probabilities: np.ndarray,
    names: Sequence[str],
    against: str | None,
    reference: Any,
    limit: int,
) -> list[Objective]:
    """The predicted class or classes, then the true one and ``limit`` next likeliest.

    With ``against`` it is the predicted class alone, the next likeliest where that is the one that is named.
    """
    by_probability = [names[k] for k in np.argsort(-log_probabilities, kind="stable")]
    predicted = [name for name in _members(prediction.value) if name in names] or by_probability[:1]
    if against is not None:
        target = next(name for name in [*predicted, *by_probability] if name != against)
        return [ClassObjective(target, None, against, names.index(against), names.index(target))]
    one = not isinstance(prediction.value, list)
    true = [name for name in _members(reference) if name in names]
    others = [name for name in by_probability if name not in {*predicted, *true}][:limit]
    targets = dict.fromkeys([*predicted, *true, *others])
    return [ClassObjective(name, number=names.index(name), is_exclusive=one) for name in targets]


def tag_targets(reading: Reading, names: Sequence[str], against: str | None, limit: int) -> list[Objective]:
    """The likeliest tag of each word, of at most ``limit`` of them: those that are not `OUTSIDE`, if there are any."""
    tagged: dict[int, int] = {}
    for number in reading.numbers:
        rows = [
            (item, index)
            for item in range(len(reading.items))
            if (index := TagObjective("", number).index(reading, item)) is not None
        ]
        scores = [reading.scores[item][index[0]] for item, index in rows]
        if scores:
            tagged[number] = int(max(scores, key=lambda row: float(row.max())).argmax())
    marked = {number: tag for number, tag in tagged.items() if names[tag] != OUTSIDE}
    rejected = None if against is None else names.index(against)
    return [
        TagObjective(names[tag], number, against, rejected, tag)
        for number, tag in [*(marked or tagged).items()][:limit]
        if tag != rejected
    ]


def span_targets(reading: Reading, prediction: Prediction) -> list[Objective]:
    """The start and the end of the predicted span; of the likeliest one where the prediction is no part of a text."""
    item, start, end = max(_spans(reading, str(prediction.value)), key=lambda span: _span_score(reading, span))
    ends: list[Objective] = []
    for edge, (name, token) in enumerate((("start", start), ("end", end))):
        shares = reading.shares[item][token] if token < len(reading.shares[item]) else np.zeros(0)
        if not shares.any():
            ends.append(EdgeObjective(name, edge=edge))
            continue
        number = reading.numbers[int(shares.argmax())]
        tokens = reading.tokens_of(item, number)
        before = [
            t for t in tokens if (t > token if edge else t < token) and np.isfinite(reading.scores[item][t, edge])
        ]
        ends.append(EdgeObjective(name, number, edge=edge, token=len(before)))
    return ends


def _span_score(reading: Reading, span: tuple[int, int, int]) -> float:
    item, start, end = span
    return float(reading.scores[item][start, 0] + reading.scores[item][end, 1])


def _spans(reading: Reading, text: str) -> list[tuple[int, int, int]]:
    """Spans (item, first, last) of tokens that read as a text; where there are none, the likeliest one of each item."""
    spans, likeliest = [], []
    for item, (encoded, scores_T2) in enumerate(zip(reading.items, reading.scores, strict=True)):
        decoded, starts = token_starts(encoded["ids"], reading.tokenizer)
        ends, place = [*starts[1:], len(decoded)], decoded.find(text) if text else -1
        while place >= 0:
            first = max(t for t, start in enumerate(starts) if start <= place and ends[t] > place)
            last = min(t for t, end in enumerate(ends) if end >= place + len(text))
            if np.isfinite(float(scores_T2[first, 0] + scores_T2[last, 1])):
                spans.append((item, first, last))
            place = decoded.find(text, place + 1)
        pairs_TT = np.asarray(scores_T2[:, None, 0] + scores_T2[None, :, 1])
        pairs_TT = np.where(np.tri(len(pairs_TT), k=-1, dtype=bool), -np.inf, pairs_TT)
        start, end = divmod(int(pairs_TT.argmax()), len(pairs_TT))
        likeliest.append((item, start, end))
    if not text:  # no answer: the last token stands for it, in the window that is surest
        return [(item, len(encoded["ids"]) - 1, len(encoded["ids"]) - 1) for item, encoded in enumerate(reading.items)]
    return spans or likeliest


def written_targets(text: str, ids: Sequence[int], tokenizer: Any, limit: int) -> tuple[list[Word], list[Objective]]:
    """The words of a written text, and its targets: the whole text, then its first words, at most ``limit``."""
    decoded, starts = token_starts(ids, tokenizer)
    ends = [*starts[1:], len(decoded)]
    words = [Word("prediction", match.start(), match.end(), match[0]) for match in WORD.finditer(text)]
    objectives: list[Objective] = [WrittenObjective(text, start=0, end=len(ids), is_whole=True)] if words else []
    shift = decoded.find(text)
    for number, word in enumerate(words[:limit] if shift >= 0 else []):
        inside = [
            t
            for t in range(len(ids))
            if starts[t] < word.end + shift and max(ends[t], starts[t] + 1) > word.start + shift
        ]
        if inside:
            objectives.append(WrittenObjective(word.text, number, start=inside[0], end=inside[-1] + 1))
    return words, objectives


def check_against(against: str | None, names: Sequence[str] | None) -> None:
    """Raise `UserError` for a class to compare with that the run does not have."""
    if against is None:
        return
    if names is None:
        raise UserError("against= names a class or a tag to compare with, and this run predicts neither: leave it out")
    if against not in names:
        raise UserError(f"against={against} is none of the run's classes: {listing(names)}.{nearest(against, names)}")


def _members(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
