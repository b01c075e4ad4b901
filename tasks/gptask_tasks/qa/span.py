"""Pointing at an answer in a context: windows, the head, the best span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gptask import DataError, Encoded, Example, Head
from torch import Tensor, nn

from gptask_tasks.both_ways import BiLSTM

if TYPE_CHECKING:
    from gptask import Backbone, Batch


def windows(example: Example, around: tuple[str, str], tokenizer: Any, max_tokens: int, stride: int) -> list[Encoded]:
    """Cut a long context into overlapping windows, each between the same two texts.

    The label is the first and last token of the answer, or twice the window's last token where the answer is not
    (wholly) inside: that token has read everything and stands for "no answer here".
    """
    before = tokenizer(around[0])["input_ids"]
    after = tokenizer(around[1], add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    context = tokenizer(example["context"], add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = context["input_ids"], context["offset_mapping"]
    room = max_tokens - len(before) - len(after)
    if room <= stride:
        raise DataError(
            f"question and prompt leave {room} of {max_tokens} tokens for the context, not more than task.stride="
            f"{stride}: raise data.max_tokens or lower task.stride"
        )
    answer = _place(example)
    parts = []
    for start in range(0, max(len(ids) - stride, 1), room - stride):
        piece, spans = ids[start : start + room], offsets[start : start + room]
        whole = [*before, *piece, *after]
        label = None
        if answer:
            label = [len(whole) - 1] * 2
            inside = [k for k, (left, right) in enumerate(spans) if left < answer[1] and right > answer[0]]
            if inside and spans[0][0] <= answer[0] and answer[1] <= spans[-1][1]:
                label = [len(before) + inside[0], len(before) + inside[-1]]
        elif example.get("answers") is not None:
            label = [len(whole) - 1] * 2
        extra = {"first": len(before), "left": [s[0] for s in spans], "right": [s[1] for s in spans]}
        parts.append(Encoded(whole, label=label, extra=extra))
    return parts


def _place(example: Example) -> tuple[int, int] | None:
    """Character span of the first answer that is there; at its published offset, else the occurrence nearest to it."""
    starts = example.get("answer_start") or []
    for number, text in enumerate(example.get("answers") or []):
        told = starts[number] if number < len(starts) else 0
        found, at = [], example["context"].find(text)
        while at >= 0 and text:
            found.append(at)
            at = example["context"].find(text, at + 1)
        if found:
            start = min(found, key=lambda place: abs(place - told))
            return start, start + len(text)
    return None


@dataclass
class AnswerSpan:
    """Characters ``start`` to ``end`` of a context, with the probability of both ends."""

    start: int
    end: int
    probability: float
    null: float  # log-probability of "no answer here"
    score: float  # log-probability of the span


class SpanHead(Head):
    """Scores every position as start and as end of the answer.

    A causal state has not read what follows it, which `BiLSTM` adds. Each position is also compared with a query made
    from the last one, whose state has read the whole window. The comparison starts at zero.
    """

    export_class = None  # transformers' question answering has no such query

    def __init__(self, channels: int, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.around = BiLSTM(channels)
        self.linear = nn.Linear(self.around.features, 2)
        self.query = nn.Linear(self.around.features, 2 * self.around.features, bias=False)
        nn.init.zeros_(self.query.weight)

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Log-probabilities (B, T, 2) of start and end over the window's context and its last token."""
        states = self.around(hidden, batch.lengths)
        b, t, f = states.shape
        last = batch.last()
        query = self.query(states[torch.arange(b, device=hidden.device), last]).view(b, 2, f)
        logits = self.linear(states) + torch.einsum("btf,bkf->btk", states, query) / f**0.5
        first = torch.tensor(batch.extra["first"], device=hidden.device)
        end = first + torch.tensor([len(left) for left in batch.extra["left"]], device=hidden.device)
        position = torch.arange(t, device=hidden.device)[None]
        legal = (position >= first[:, None]) & (position < end[:, None]) | (position == last[:, None])
        return logits.masked_fill(~legal[..., None], float("-inf")).log_softmax(1)

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Mean negative log-probability of the true start and end."""
        picked = self.scores(hidden, batch).gather(1, batch.labels[:, None, :].long())  # type: ignore[index]
        return -picked.mean()

    def predict(self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None) -> list[Any]:
        """The best legal span of each window."""
        if hidden is None:
            hidden = backbone.hidden(batch.input_ids, batch.lengths)
        scores = self.scores(hidden, batch)
        rows = zip(
            scores,
            batch.extra["first"],
            batch.extra["left"],
            batch.extra["right"],
            batch.last().tolist(),
            strict=True,
        )
        return [self._best(score, first, left, right, last) for score, first, left, right, last in rows]

    def _best(self, scores: Tensor, first: int, left: list[int], right: list[int], last: int) -> AnswerSpan:
        null = float(scores[last].sum())
        if not left:
            return AnswerSpan(0, 0, 0.0, null, float("-inf"))
        window = scores[first : first + len(left)]
        pairs = window[:, None, 0] + window[None, :, 1]  # (W, W) by start and end
        legal = torch.ones_like(pairs, dtype=torch.bool).triu().tril(self.longest - 1)
        score, place = pairs.masked_fill(~legal, float("-inf")).flatten().max(0)
        start, end = divmod(int(place), len(left))
        return AnswerSpan(left[start], right[end], float(score.exp()), null, float(score))


def best(spans: Sequence[AnswerSpan], nullable: bool, threshold: float) -> AnswerSpan:
    """The likeliest span over a context's windows; an empty one if no answer is likelier in every window."""
    found = max(spans, key=lambda span: span.score)
    null = min(span.null for span in spans)
    if nullable and null - found.score > threshold:
        return AnswerSpan(0, 0, float(torch.tensor(null).exp()), null, null)
    return found
