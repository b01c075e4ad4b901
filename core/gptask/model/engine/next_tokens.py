"""Chooses the next token of every row, greedily or sampled, by the options of each.

Shapes: B rows, b rows of a chunk, s rows of it that are sampled, k candidates, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from gptask.model.engine.interface import DecodingRow
from gptask.model.engine.loss import rows_per_chunk

CANDIDATES = 256  # likeliest tokens among which top_p is looked for before the whole vocabulary is sorted


class Sampler:
    """Chooses the next tokens of rows, each by its own options; what a row draws with a seed depends on no other row.

    The steps are those of transformers' logits processors, computed for all rows at once.
    """

    def __init__(self, stop_ids: set[int]) -> None:
        self.stop_ids = sorted(stop_ids)

    def __call__(self, rows: Sequence[DecodingRow], logits_BV: Tensor) -> tuple[list[int], list[float]]:
        """Return the next tokens of the rows (B) and their log-probabilities (B); rows with a constraint advance it.

        The log-probabilities are those of the model itself, before constraint, penalties and temperature. So are those
        of the likeliest tokens, which rows that ask for them get in ``top_tokens``.
        """
        size = rows_per_chunk(logits_BV)
        tokens: list[int] = []
        log_probabilities: list[float] = []
        for start in range(0, len(rows), size):
            chunk, logits_bV = rows[start : start + size], logits_BV[start : start + size].float()
            tokens_b1 = self._choose(chunk, self._processed(chunk, logits_bV))
            total_b1 = logits_bV.logsumexp(1, keepdim=True)
            _record_top_tokens(chunk, logits_bV, total_b1)
            tokens += tokens_b1[:, 0].tolist()
            log_probabilities += (logits_bV.gather(1, tokens_b1) - total_b1)[:, 0].tolist()
        for row, token in zip(rows, tokens, strict=True):
            if row.constraint:
                row.constraint.advance(token)
        return tokens, log_probabilities

    def _processed(self, rows: Sequence[DecodingRow], logits_bV: Tensor) -> Tensor:
        """The logits after constraints, minimum lengths and penalties. A constraint itself says when a text may end."""
        scores_bV = logits_bV.clone()
        for place, row in enumerate(rows):
            if row.constraint:
                allowed_V = row.constraint.allowed(scores_bV.shape[1]).to(scores_bV.device)
                scores_bV[place].masked_fill_(~allowed_V, float("-inf"))
            elif len(row.new_ids) < row.options.min_new_tokens:
                scores_bV[place, self.stop_ids] = float("-inf")
        _penalize(rows, scores_bV)
        return scores_bV

    def _choose(self, rows: Sequence[DecodingRow], scores_bV: Tensor) -> Tensor:
        """Tokens (b, 1): the best ones, or samples."""
        tokens_b1 = scores_bV.argmax(-1, keepdim=True)
        places = [place for place, row in enumerate(rows) if row.options.temperature > 0]
        if places:
            tokens_b1[places] = _draw([rows[place] for place in places], scores_bV[places])
        return tokens_b1


def _record_top_tokens(rows: Sequence[DecodingRow], logits_bV: Tensor, total_b1: Tensor) -> None:
    """Give each row that asks for them the ids of the likeliest tokens and their log-probabilities."""
    places = [place for place, row in enumerate(rows) if row.top_count]
    if not places:
        return
    count = max(rows[place].top_count for place in places)
    best = logits_bV[places].topk(count)
    log_probabilities = (best.values - total_b1[places]).tolist()
    for place, ids, values in zip(places, best.indices.tolist(), log_probabilities, strict=True):
        rows[place].top_tokens.append([*zip(ids, values, strict=True)][: rows[place].top_count])


def _penalize(rows: Sequence[DecodingRow], scores_bV: Tensor) -> None:
    """Change the scores of tokens that were there: repetition counts the prompt too, frequency and presence do not."""
    repeated: list[tuple[int, int, float]] = []  # row, token, penalty
    counted: list[tuple[int, int, float]] = []
    for place, row in enumerate(rows):
        if row.options.repetition_penalty != 1.0:
            repeated += [(place, token, row.options.repetition_penalty) for token in {*row.prompt, *row.new_ids}]
        if row.frequency_penalty or row.presence_penalty:
            counts = Counter(row.new_ids).items()
            counted += [(place, token, row.presence_penalty + n * row.frequency_penalty) for token, n in counts]
    if repeated:
        places, tokens, penalties = _columns(repeated, scores_bV)
        scores = scores_bV[places, tokens]
        scores_bV[places, tokens] = torch.where(scores < 0, scores * penalties, scores / penalties)
    if counted:
        places, tokens, penalties = _columns(counted, scores_bV)
        scores_bV[places, tokens] -= penalties


def _columns(entries: list[tuple[int, int, float]], scores_bV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    places, tokens, penalties = zip(*entries, strict=True)
    device = scores_bV.device
    return torch.tensor(places, device=device), torch.tensor(tokens, device=device), scores_bV.new_tensor(penalties)


def sampling_weights(rows: Sequence[DecodingRow], scores_sV: Tensor) -> Tensor:
    """Return what each token's probability (s, V) is proportional to, after temperature, top_k and top_p."""
    options = [row.options for row in rows]
    temperatures_s1 = scores_sV.new_tensor([[o.temperature] for o in options])
    lowest = torch.finfo(scores_sV.dtype).tiny
    scores_sV = (scores_sV - scores_sV.amax(-1, keepdim=True)) / temperatures_s1.clamp(min=lowest)
    limits = [min(o.top_k, scores_sV.shape[1]) for o in options]
    if any(limits):
        best_sk = scores_sV.topk(max(limits)).values
        places_s1 = torch.tensor([[max(limit - 1, 0)] for limit in limits], device=scores_sV.device)
        unlimited_s1 = torch.tensor([[not limit] for limit in limits], device=scores_sV.device)
        least_s1 = best_sk.gather(1, places_s1).masked_fill(unlimited_s1, float("-inf"))
        scores_sV = scores_sV.masked_fill(scores_sV < least_s1, float("-inf"))
    weights_sV = scores_sV.softmax(-1)
    places = [place for place, o in enumerate(options) if o.top_p < 1]
    if places:
        masses_s1 = weights_sV.new_tensor([[options[place].top_p] for place in places])
        weights_sV[places] = _nucleus(weights_sV[places], masses_s1, CANDIDATES)
    return weights_sV


def _nucleus(weights_sV: Tensor, masses_s1: Tensor, candidates: int) -> Tensor:
    """The weights of the smallest set of tokens with these masses, the others 0; the likeliest token always stays."""
    values_sk, ids_sk = weights_sV.topk(min(candidates, weights_sV.shape[1]))
    through_sk = values_sk.cumsum(-1)
    stays_sk = through_sk - values_sk < masses_s1
    stays_sk[:, 0] = True
    nucleus_sV = torch.zeros_like(weights_sV).scatter_(1, ids_sk, values_sk * stays_sk)
    more = [place for place, within in enumerate((through_sk[:, -1:] < masses_s1)[:, 0].tolist()) if within]
    if more and values_sk.shape[1] < weights_sV.shape[1]:
        nucleus_sV[more] = _nucleus(weights_sV[more], masses_s1[more], weights_sV.shape[1])
    return nucleus_sV


def _draw(rows: Sequence[DecodingRow], scores_sV: Tensor) -> Tensor:
    """Tokens (s, 1) by one uniform number a row: the first token with whose weight the sum exceeds it."""
    sums_sV = sampling_weights(rows, scores_sV).cumsum(-1, dtype=torch.double)
    uniform: list[Tensor] = []
    for row in rows:
        if row.generator is None and row.options.seed is not None:
            row.generator = torch.Generator().manual_seed(row.options.seed + row.draw)
        uniform.append(torch.rand(1, dtype=torch.double, generator=row.generator))
    total_s1 = sums_sV[:, -1:]
    below_total_s1 = total_s1.nextafter(torch.zeros_like(total_s1))  # else rounding could pass the last token
    targets_s1 = torch.stack(uniform).to(total_s1.device).mul(total_s1).minimum(below_total_s1)
    return torch.searchsorted(sums_sV, targets_s1, right=True).clamp_(max=scores_sV.shape[1] - 1)
