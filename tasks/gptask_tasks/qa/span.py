"""Answers as spans of a context: windows over it, the head that scores spans, the best span.

Shapes: B windows, T positions, C channels, F features of the bidirectional layer, W tokens of a window's context,
2 for the start and the end of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gptask import DataError, Encoded, Example, Head
from torch import Tensor, nn

from gptask_tasks.bilstm import BiLSTM
from gptask_tasks.text import published_start

if TYPE_CHECKING:
    from gptask import Backbone, Batch


def context_windows(
    example: Example, around: tuple[str, str], tokenizer: Any, max_tokens: int, stride: int
) -> list[Encoded]:
    """Cut a long context into overlapping windows, each between the same two texts.

    The label is the first and the last token of the answer, or twice the window's last token where the answer is not
    (wholly) inside: that token has read everything and stands for "no answer here". ``extra`` has the position of the
    context's first token (``first``) and the characters where each of its tokens begins and ends (``left``, ``right``).
    """
    before = tokenizer(around[0])["input_ids"]
    after = tokenizer(around[1], add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    context = tokenizer(example["context"], add_special_tokens=False, return_offsets_mapping=True)
    context_ids, offsets = context["input_ids"], context["offset_mapping"]
    room = max_tokens - len(before) - len(after)
    if room <= stride:
        raise DataError(
            f"question and prompt leave {room} of {max_tokens} tokens for the context, not more than task.stride="
            f"{stride}: raise data.max_tokens or lower task.stride"
        )
    answer = _answer_characters(example)
    encoded = []
    for start in range(0, max(len(context_ids) - stride, 1), room - stride):
        spans = offsets[start : start + room]  # of characters, one for each token
        ids = [*before, *context_ids[start : start + room], *after]
        label = None if example.get("answers") is None else [len(ids) - 1] * 2
        if answer and (inside := _tokens_inside(spans, answer)):
            label = [len(before) + position for position in inside]
        extra = {"first": len(before), "left": [left for left, _ in spans], "right": [right for _, right in spans]}
        encoded.append(Encoded(ids, label=label, extra=extra))
    return encoded


def _tokens_inside(spans: Sequence[tuple[int, int]], answer: tuple[int, int]) -> tuple[int, int] | None:
    """Return the first and the last of the tokens that hold an answer, None where a part of it lies outside."""
    start, end = answer
    inside = [k for k, (left, right) in enumerate(spans) if left < end and right > start]
    if inside and spans[0][0] <= start and end <= spans[-1][1]:
        return inside[0], inside[-1]
    return None


def _answer_characters(example: Example) -> tuple[int, int] | None:
    """Return the character span of the first answer that the context holds, nearest to its published offset."""
    for number, text in enumerate(example.get("answers") or []):
        starts, start = [], example["context"].find(text)
        while start >= 0 and text:
            starts.append(start)
            start = example["context"].find(text, start + 1)
        if starts:
            start = published_start(example, number, starts)
            return start, start + len(text)
    return None


@dataclass
class AnswerSpan:
    """Characters ``start`` to ``end`` of a context, with the probability of both ends."""

    start: int
    end: int
    probability: float
    null_score: float  # log-probability of "no answer here"
    score: float  # log-probability of the span


class SpanHead(Head):
    """Scores every position as start and as end of the answer.

    A causal state has not read what follows it, so a `BiLSTM` is put on top. Each position is also compared with a
    query made from the last one, whose state has read the whole window. The weights of the comparison start at zero.
    """

    export_class = None  # transformers' question answering has no such query
    score_axis = 1

    def __init__(self, backbone: Backbone, max_answer_tokens: int) -> None:
        super().__init__(backbone)
        self.max_answer_tokens = max_answer_tokens
        self.around = BiLSTM(backbone.channels)
        self.linear = nn.Linear(self.around.features, 2)
        self.query = nn.Linear(self.around.features, 2 * self.around.features, bias=False)
        nn.init.zeros_(self.query.weight)

    def scores(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return log-probabilities (B, T, 2) of start and end over the window's context and its last token."""
        device, last_B = hidden.device, batch.last()
        states_BTF = self.around(hidden, batch.lengths)
        b, t, f = states_BTF.shape
        query_B2F = self.query(states_BTF[torch.arange(b, device=device), last_B]).view(b, 2, f)
        logits_BT2 = self.linear(states_BTF) + torch.einsum("btf,bkf->btk", states_BTF, query_B2F) / f**0.5
        first_B = torch.tensor(batch.extra["first"], device=device)
        stop_B = first_B + torch.tensor([len(left) for left in batch.extra["left"]], device=device)
        position_1T = torch.arange(t, device=device)[None]
        context_BT = (position_1T >= first_B[:, None]) & (position_1T < stop_B[:, None])
        allowed_BT = context_BT | (position_1T == last_B[:, None])
        scores_BT2: Tensor = logits_BT2.masked_fill(~allowed_BT[..., None], float("-inf")).log_softmax(1)
        return scores_BT2

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return the mean negative log-probability of the true start and end."""
        assert batch.labels is not None  # what is learned from has labels
        return -self.scores(hidden, batch).gather(1, batch.labels[:, None, :].long()).mean()

    def predict(self, hidden: Tensor, batch: Batch) -> list[Any]:
        """Return the best allowed span of each window."""
        columns = (batch.extra[name] for name in ("first", "left", "right"))
        rows = zip(self.scores(hidden, batch), *columns, batch.last().tolist(), strict=True)
        return [self._best_span(*row) for row in rows]

    def _best_span(self, scores_T2: Tensor, first: int, left: list[int], right: list[int], last: int) -> AnswerSpan:
        null_score = float(scores_T2[last].sum())
        if not left:
            return AnswerSpan(0, 0, 0.0, null_score, float("-inf"))
        context_W2 = scores_T2[first : first + len(left)]
        pairs_WW = context_W2[:, None, 0] + context_W2[None, :, 1]  # by start and end
        allowed_WW = torch.ones_like(pairs_WW, dtype=torch.bool).triu().tril(self.max_answer_tokens - 1)
        score, index = pairs_WW.masked_fill(~allowed_WW, float("-inf")).flatten().max(0)
        start, end = divmod(int(index), len(left))
        return AnswerSpan(left[start], right[end], float(score.exp()), null_score, float(score))


def best_span(spans: Sequence[AnswerSpan], unanswerable: bool, threshold: float) -> AnswerSpan:
    """Return the likeliest span over a context's windows.

    It is empty where the question may be ``unanswerable`` and "no answer here" beats it by more than the threshold (in
    log-odds) in every window.
    """
    best = max(spans, key=lambda span: span.score)
    null_score = min(span.null_score for span in spans)
    if unanswerable and null_score - best.score > threshold:
        return AnswerSpan(0, 0, float(torch.tensor(null_score).exp()), null_score, null_score)
    return best
