"""Chooses the next token of every row, greedily or sampled, by the options of each.

Shapes: B rows, b rows of a chunk, s rows of it that are sampled, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gptask.model.engine.interface import DecodingRow
from gptask.model.engine.loss import rows_per_chunk


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
            _penalize(row, scores_bV[place])
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


def _penalize(row: DecodingRow, scores_V: Tensor) -> None:
    """Change the scores of tokens that were there: repetition counts the prompt too, frequency and presence do not."""
    repetition, frequency, presence = row.options.repetition_penalty, row.frequency_penalty, row.presence_penalty
    if repetition == 1.0 and not frequency and not presence:
        return
    ids_T = _ids(row, scores_V.device)
    if repetition != 1.0:  # a token that is there twice is written twice, each time the same
        seen_T = scores_V[ids_T]
        scores_V[ids_T] = torch.where(seen_T < 0, seen_T * repetition, seen_T / repetition)
    new_T = ids_T[len(row.prompt) :]
    if presence:
        scores_V[new_T] -= presence
    if frequency:
        scores_V.index_add_(0, new_T, scores_V.new_full(new_T.shape, -frequency))


def _ids(row: DecodingRow, device: torch.device) -> Tensor:
    """The ids (T,) of a row's prompt and text, kept for the next step: a list of thousands takes long to convert."""
    ids_T = row.penalized_ids
    if ids_T is None:
        ids_T = torch.tensor(row.prompt, dtype=torch.long, device=device)
    newest = row.new_ids[len(ids_T) - len(row.prompt) :]
    row.penalized_ids = torch.cat([ids_T, ids_T.new_tensor(newest)])
    return row.penalized_ids


def sampling_weights(rows: Sequence[DecodingRow], scores_sV: Tensor) -> Tensor:
    """Return what each token's probability (s, V) is proportional to, after temperature, top_k and top_p."""
    temperatures_s1 = scores_sV.new_tensor([[row.options.temperature] for row in rows])
    lowest = torch.finfo(scores_sV.dtype).tiny
    scores_sV = (scores_sV - scores_sV.amax(-1, keepdim=True)) / temperatures_s1.clamp(min=lowest)
    places = [place for place, row in enumerate(rows) if row.options.top_k or row.options.top_p < 1]
    if places:
        scores_sV[places] = _likeliest([rows[place] for place in places], scores_sV[places])
    return scores_sV.softmax(-1)


def _likeliest(rows: Sequence[DecodingRow], scores_sV: Tensor) -> Tensor:
    """The scores of the tokens that top_k and top_p leave, the others minus infinity; the likeliest token always stays.

    All tokens that are equal to the last one of top_k stay. Of those that are equal to the last one of top_p, which are
    many where the model computes in bfloat16, only as many stay as its mass needs: those of the lowest ids.
    """
    vocabulary = scores_sV.shape[1]
    limits = [min(row.options.top_k or vocabulary, vocabulary) for row in rows]
    limits_s1 = torch.tensor(limits, device=scores_sV.device)[:, None]
    rising_sV = _sorted(scores_sV)
    rising_sV = torch.where(rising_sV < rising_sV.gather(1, vocabulary - limits_s1), float("-inf"), rising_sV)
    through_sV = rising_sV.softmax(-1).cumsum(-1, dtype=torch.double)
    rest_s1 = through_sV.new_tensor([[1.0 - row.options.top_p] for row in rows])
    dropped_s1 = torch.searchsorted(through_sV, rest_s1, right=True).clamp_(max=vocabulary - 1)
    least_s1 = rising_sV.gather(1, dropped_s1)
    equal_sV = scores_sV == least_s1
    above_sV = scores_sV > least_s1
    needed_s1 = vocabulary - dropped_s1 - above_sV.sum(-1, keepdim=True)
    stays_sV = above_sV | (equal_sV & (equal_sV.cumsum(-1, dtype=torch.int32) <= needed_s1))
    return torch.where(stays_sV, scores_sV, float("-inf"))


def _sorted(scores_sV: Tensor) -> Tensor:
    """The scores of each row from low to high. On a CPU, numpy sorts a hundred times faster than torch."""
    if scores_sV.device.type != "cpu":
        return scores_sV.sort(-1).values
    return torch.from_numpy(np.sort(scores_sV.numpy(), axis=-1))


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
