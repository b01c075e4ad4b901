"""Decoding on the fast engine: what prompts share is read once, and rows of similar length share a bucket.

Shapes: B rows, H query heads, K key and value heads, D head channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from gptask.model.engine import attention
from gptask.model.engine.forward_state import forward_state
from gptask.model.engine.inference_weights import tensor_identity
from gptask.model.engine.interface import DecodingRow, Engine, EngineBackbone
from gptask.model.engine.kv_cache import capacity
from gptask.model.engine.left_padding import decoding_mask, next_token_logits
from gptask.model.engine.length_bucket import KeptText, LengthBucket
from gptask.model.engine.sampling import SampledBatch

BUCKET_COST = 4096  # positions of pads that one more bucket must save, on a CPU: what it adds to the time of a step
LONG_PROMPT = 2048  # tokens of a prompt from which it is read in parts


class FastBatch(SampledBatch):
    """Rows that are still being written, in buckets of similar length, so that a step reads few pads.

    Rows of a bucket have one adapter. Where the model can't compute its attention by ours, rows that are admitted
    together are one bucket.
    """

    def __init__(self, engine: Engine, keep: int) -> None:
        super().__init__(engine.backbone)
        self.engine, self.keep = engine, keep
        self.buckets: list[LengthBucket] = []
        self.kept: list[KeptText] = []  # the latest last
        self.weights: list[tuple[int, int]] = []  # that read them

    @property
    def rows(self) -> list[DecodingRow]:
        """The rows that are still being written."""
        return [row for bucket in self.buckets for row in bucket.rows]

    @torch.inference_mode()
    def admit(self, rows: Sequence[DecodingRow]) -> None:
        """Read the prompts of more rows, what is kept of their beginnings left out."""
        self._forget_outdated()
        together: dict[str | None, list[DecodingRow]] = {}
        buckets = []
        for row in rows:
            kept = max(self.kept, key=lambda text: text.common(row), default=None)
            if len(row.prompt) > LONG_PROMPT or (kept and kept.common(row)):
                buckets.append((LengthBucket(self.engine, [row]), kept))
            else:
                together.setdefault(row.adapter, []).append(row)
        for group in together.values():
            in_buckets = self.engine.decodes_in_buckets(max(len(row.prompt) + row.limit for row in group))
            lengths = [len(row.prompt) for row in group]
            places_of_buckets = split_by_length(lengths) if in_buckets else [[*range(len(group))]]
            buckets += [(LengthBucket(self.engine, [group[p] for p in places]), None) for places in places_of_buckets]
        for bucket, kept in buckets:
            with self.engine.running(bucket.adapter):
                bucket.read_in_parts(kept) if kept or bucket.end > LONG_PROMPT else bucket.read_prompts()
        everything = [*self.buckets, *(bucket for bucket, _ in buckets)]
        self.buckets = sorted(everything, key=lambda bucket: (bucket.packs, bucket.adapter or ""))

    @property
    def kept_bytes(self) -> int:
        """The memory that kept texts hold, beside the keys and values of rows."""
        return sum(states.nbytes for text in self.kept for pair in text.layers for states in pair)

    def forget(self) -> None:
        """Drop what is kept of texts that have left."""
        self.kept = []

    def _require_engine(self) -> None:
        """Raise `RuntimeError` where the backbone computes by another engine than the one that read the rows."""
        if self.backbone.engine is not self.engine:
            raise RuntimeError("the backbone computes by another engine now: open a new decoding batch")

    def _forget_outdated(self) -> None:
        """Drop what other weights than the model's have read."""
        self._require_engine()
        parameters = self.backbone.peft.parameters() if self.keep else ()
        weights = [(self.engine.weight_drops, 0), *map(tensor_identity, parameters)]
        if weights != self.weights:
            self.kept, self.weights = [], weights

    def next_logits(self) -> Tensor:
        """Read the rows' newest tokens; return logits (B, V) of the tokens that follow."""
        self._require_engine()
        logits = []
        for (unread, packs, adapter), group in groupby(self.buckets, LengthBucket.reading_group):
            buckets = [*group]
            if not unread:  # just admitted
                logits += [bucket.take_logits() for bucket in buckets]
                continue
            with self.engine.running(adapter):
                together = [buckets] if packs else [[bucket] for bucket in buckets]
                logits += [_read_newest(self.backbone, part) for part in together]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def remove(self, rows: Sequence[DecodingRow]) -> None:
        """Let rows leave; the last ones are kept for prompts that begin like them."""
        leaving = set(rows)
        for bucket in self.buckets if leaving else []:
            for row in leaving & set(bucket.rows) if self.keep else ():
                self.kept = [*self.kept, bucket.kept_text(row)][-self.keep :]
            bucket.keep([place for place, row in enumerate(bucket.rows) if row not in leaving])
        self.buckets = [bucket for bucket in self.buckets if bucket.rows]


def _read_newest(backbone: EngineBackbone, buckets: list[LengthBucket]) -> Tensor:
    """Read the newest token of each row of some buckets; return logits (B, V) of the tokens that follow.

    There are several buckets only where the model computes its attention by ours.
    """
    rows = [row for bucket in buckets for row in bucket.rows]
    tokens_B1 = torch.tensor([row.new_ids[-1:] for row in rows], device=backbone.device)
    positions_B1 = torch.tensor([[len(row.prompt) + len(row.new_ids) - 1] for row in rows], device=backbone.device)
    for bucket in buckets:
        bucket.add_position()
    if buckets[0].packs:
        with forward_state(layout=DecodingStep(buckets)):
            open_mask = attention.open_mask(backbone.model)
            logits_BV = next_token_logits(backbone, tokens_B1, open_mask, positions_B1, None)
    else:
        (bucket,) = buckets
        mask = decoding_mask(backbone, bucket.real(), 1)
        logits_BV = next_token_logits(backbone, tokens_B1, mask, positions_B1, bucket.cache)
    for bucket in buckets:
        bucket.lengths = [length + 1 for length in bucket.lengths]
    return logits_BV


class DecodingStep:
    """The attention of a step in which each row of some buckets reads one token."""

    def __init__(self, buckets: Sequence[LengthBucket]) -> None:
        self.buckets = buckets
        self.layer = 0  # number of the layer that attends next

    def attend(
        self,
        padded_attention: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None = None,
    ) -> Tensor:
        """Append a layer's new keys and values (B, K, 1, D) and attend to all of them from queries (B, H, 1, D).

        Returns states (B, 1, H, D).
        """
        layer, self.layer = self.layer, self.layer + 1
        states, start = [], 0
        for bucket in self.buckets:
            rows = slice(start, start := start + len(bucket.rows))
            keys_BKSD, values_BKSD = bucket.buffers[layer].update(key[rows], value[rows])
            states.append(padded_attention(query[rows], keys_BKSD, values_BKSD, bucket.window_mask(window)))
        return torch.cat(states)


def split_by_length(lengths: list[int]) -> list[list[int]]:
    """Split row numbers into buckets at the least cost: the positions of their buffers, and `BUCKET_COST` for each."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ends = [capacity(lengths[row]) for row in order]
    cuts = [0, *(n for n in range(1, len(ends)) if ends[n - 1] < ends[n]), len(ends)]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}  # cut -> least cost up to it, and the cuts before it
    for number, cut in enumerate(cuts[1:], 1):
        candidates = (
            (best[before][0] + (cut - before) * ends[cut - 1] + BUCKET_COST, before) for before in cuts[:number]
        )
        cost, before = min(candidates)
        best[cut] = cost, [*best[before][1], before]
    starts = best[len(ends)][1]
    return [order[start:end] for start, end in zip(starts, [*starts[1:], len(ends)], strict=True)]
