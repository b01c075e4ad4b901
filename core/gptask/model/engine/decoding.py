"""The decoding loop: what prompts share is read once, a step copies no keys, and finished rows leave at once.

Shapes: B rows, T tokens that are read, S key positions, N tokens of a prefilled group, H query heads, K key and value
heads, D head channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from gptask.data.batches import BatchesByLength
from gptask.data.prefixes import shared_prefixes
from gptask.model.engine import attention, kv_cache, packing
from gptask.model.engine.attention import additive_mask
from gptask.model.engine.kv_cache import PreallocatedKVCache, capacity
from gptask.model.engine.packing import PackedLayout
from gptask.model.engine.sampling import Sampler

if TYPE_CHECKING:
    from gptask.model.engine.interface import EngineBackbone
    from gptask.plugins.generation_options import GenerationOptions

Decoded = tuple[list[int], float | None]  # new token ids, and the geometric mean of their probabilities
BUCKET_COST = 4096  # positions of pads that one more bucket must save, on a CPU: what it adds to the time of a step
PREFILL_TOKENS = 1024  # padded tokens of prompts that a CPU reads at once: more would not stay in its caches
GPU_PREFILL_FACTOR = 4  # times as many on other devices


def decode(
    backbone: EngineBackbone, prompts: Sequence[list[int]], limits: list[int], options: GenerationOptions
) -> list[Decoded]:
    """Continue every prompt, greedily or by sampling, by at most ``limits`` new tokens each."""
    batch = DecodingBatch(backbone, prompts, limits)
    is_stopped = stop_test(backbone, options.stop)
    logits_BV = batch.prefill()
    sampler = Sampler(options, backbone, batch.ids_BT.shape[1], len(prompts))
    while True:
        tokens_B1, log_probabilities = sampler(batch.ids_BT, logits_BV, batch.active_rows)
        order = batch.append(tokens_B1[:, 0].tolist(), log_probabilities, is_stopped)
        if not order:
            pairs = zip(batch.new_ids, batch.log_probabilities, strict=True)
            return [(ids, exp(fmean(row_log_probabilities))) for ids, row_log_probabilities in pairs]
        logits_BV = batch.step(tokens_B1[order], order)


def next_token_logits(
    backbone: EngineBackbone, ids_BT: Tensor, mask: Tensor | None, positions_BT: Tensor, cache: Cache | None
) -> Tensor:
    """Return logits (B, V) of the tokens that follow ``ids_BT``, given the keys and values before them."""
    hidden_BC = backbone.body(
        input_ids=ids_BT,
        attention_mask=mask,
        position_ids=positions_BT,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state[:, -1]
    return backbone.logits(hidden_BC)


class DecodingBatch:
    """B sequences that are still being written, and the new tokens of all prompts so far.

    Where the model computes its attention by ours (``packs``), rows of similar length form a bucket, so that a step
    reads few pads; elsewhere all rows are in one bucket.
    """

    def __init__(self, backbone: EngineBackbone, prompts: Sequence[list[int]], limits: list[int]) -> None:
        self.backbone, self.limits = backbone, limits
        self.new_ids: list[list[int]] = [[] for _ in prompts]
        self.log_probabilities: list[list[float]] = [[] for _ in prompts]
        lengths = [*map(len, prompts)]
        positions = max(lengths) + max(limits)
        self.packs = backbone.can_pack(positions)
        in_buckets = decodes_in_buckets(backbone, positions)
        rows_of_buckets = split_by_length(lengths) if in_buckets else [[*range(len(prompts))]]
        self.buckets = [
            LengthBucket(backbone, rows, [prompts[row] for row in rows], self.packs) for rows in rows_of_buckets
        ]
        self.layer = 0  # number of the layer that attends next in a step

    @property
    def active_rows(self) -> list[int]:
        """Numbers of the B prompts whose text is still being written, in the order of the batch."""
        return [row for bucket in self.buckets for row in bucket.rows]

    def prefill(self) -> Tensor:
        """Read the prompts; return logits (B, V)."""
        prompts = [prompt for bucket in self.buckets for prompt in bucket.prompts]
        self.ids_BT, real_BT = left_padded(prompts, self.backbone.device)
        self.positions_B1 = real_BT.sum(1, keepdim=True) - 1
        return torch.cat([bucket.prefill() for bucket in self.buckets])

    def step(self, tokens_B1: Tensor, order: list[int]) -> Tensor:
        """Reorder the rows, append one token to each and read it; return logits (B, V)."""
        self.ids_BT = torch.cat([self.ids_BT[order], tokens_B1], 1)
        self.positions_B1 = self.positions_B1[order] + 1
        for bucket in self.buckets:
            bucket.add_position()
        if not self.packs:
            (bucket,) = self.buckets
            mask = decoding_mask(self.backbone, bucket.real(), 1)
            return next_token_logits(self.backbone, tokens_B1, mask, self.positions_B1, bucket.cache)
        self.layer = 0
        with attention.packed_attention(self):
            mask = attention.open_mask(self.backbone.model)
            return next_token_logits(self.backbone, tokens_B1, mask, self.positions_B1, None)

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

    def append(
        self, tokens: list[int], log_probabilities: list[float], is_stopped: Callable[[list[int]], bool]
    ) -> list[int]:
        """Append a token to every row; finished rows leave. Returns the old places of the remaining rows, in order."""
        order: list[int] = []
        start, pairs = 0, iter(zip(tokens, log_probabilities, strict=True))
        for bucket in self.buckets:
            count = len(bucket.rows)
            staying = [place for place, row in enumerate(bucket.rows) if self._goes_on(row, *next(pairs), is_stopped)]
            order += [start + place for place in bucket.keep(staying)]
            start += count
        self.buckets = [bucket for bucket in self.buckets if bucket.rows]
        return order

    def _goes_on(self, row: int, token: int, log_probability: float, is_stopped: Callable[[list[int]], bool]) -> bool:
        """Append a row's next token; whether another one may follow."""
        self.log_probabilities[row].append(log_probability)
        if token in self.backbone.stop_ids:
            return False
        self.new_ids[row].append(token)
        return len(self.new_ids[row]) < self.limits[row] and not is_stopped(self.new_ids[row])


class LengthBucket:
    """B rows that are left-padded to one width, with their keys and values; S is the capacity of their buffers."""

    def __init__(self, backbone: EngineBackbone, rows: list[int], prompts: list[list[int]], packs: bool) -> None:
        self.backbone, self.rows, self.prompts, self.packs = backbone, rows, prompts, packs
        self.lengths_B = torch.tensor([*map(len, prompts)])
        self.end = int(self.lengths_B.max())
        columns_S = torch.arange(capacity(self.end))
        real_BS = (columns_S >= self.end - self.lengths_B[:, None]) & (columns_S < self.end)
        self.mask_B11S = additive_mask(real_BS.to(backbone.device), 1, backbone.model.dtype)
        self.buffers = [PreallocatedKVCache(shows_capacity=packs) for _ in range(backbone.config.num_hidden_layers)]
        self.cache = Cache(layers=list(self.buffers))

    def prefill(self) -> Tensor:
        """Read the prompts, what some of them share only once; return logits (B, V). All rows end at one column."""
        b, end = len(self.rows), self.end
        common = shared_prefixes([np.array(prompt) for prompt in self.prompts]) if self.packs else None
        max_tokens = PREFILL_TOKENS * (1 if self.backbone.device.type == "cpu" else GPU_PREFILL_FACTOR)
        logits_of_rows: dict[int, Tensor] = {}
        for rows in BatchesByLength(self.lengths_B.numpy(), b, max_tokens, None, common=common):
            prompts, lengths = [self.prompts[row] for row in rows], self.lengths_B[rows]
            logits, keys_values = self._prefill_packed(prompts) if self.packs else self._prefill_padded(prompts)
            logits_of_rows |= dict(zip(rows, logits, strict=True))
            columns_N = torch.cat([torch.arange(end - int(length), end) for length in lengths])
            places = torch.tensor(rows).repeat_interleave(lengths), columns_N
            for buffer, key_value in zip(self.buffers, keys_values, strict=True):
                buffer.write((b, end), places, key_value)
        return torch.stack([logits_of_rows[row] for row in range(b)])

    def _prefill_packed(self, prompts: list[list[int]]) -> tuple[Tensor, Iterator[list[Tensor]]]:
        """Logits (B, V) behind some prompts, and the keys and values (N, K, D) of their N tokens, layer by layer."""
        layout = PackedLayout(packing.split_prefixes(prompts), self.backbone.device, self.backbone.model.dtype)
        last_B, places_N = layout.last_places_B, layout.token_places()
        layout.recorded = []
        states_NC = packing.forward_packed(self.backbone, layout, layout.flags_at(last_B))
        keys_values = (
            [states[0].transpose(0, 1)[places_N] for states in key_value] for *key_value, _ in layout.recorded
        )
        return self.backbone.logits(states_NC[last_B]), keys_values

    def _prefill_padded(self, prompts: list[list[int]]) -> tuple[Tensor, Iterator[list[Tensor]]]:
        """The same as `_prefill_packed`, by transformers' own cache, where the model needs padded rows."""
        ids_BT, real_BT = left_padded(prompts, self.backbone.device)
        layers = [DynamicLayer() for _ in self.buffers]  # type: ignore[no-untyped-call]
        positions_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
        mask = decoding_mask(self.backbone, real_BT, ids_BT.shape[1])
        logits_BV = next_token_logits(self.backbone, ids_BT, mask, positions_BT, Cache(layers=[*layers]))
        pairs = ((layer.keys, layer.values) for layer in layers)
        keys_values = (
            [states.transpose(1, 2)[real_BT.bool()] for states in pair if states is not None] for pair in pairs
        )
        return logits_BV, keys_values

    def real(self) -> Tensor:
        """Return (B, end) ones at the real positions up to the rows' end, zeros at pads."""
        return (self.mask_B11S[:, 0, 0, : self.end] == 0).long()

    def window_mask(self, window: int | None) -> Tensor:
        """Return the additive mask (B, 1, 1, S) of the newest tokens.

        With a ``window``, they see that many positions, their own being the last.
        """
        if window is None or window >= self.end:
            return self.mask_B11S
        mask_B11S = self.mask_B11S.clone()
        mask_B11S[..., : self.end - window] = attention.MASKED_SCORE
        return mask_B11S

    def add_position(self) -> None:
        """Let one more position be real in every row."""
        if self.end == self.mask_B11S.shape[-1]:
            growth = (0, kv_cache.GROWTH)
            self.mask_B11S = torch.nn.functional.pad(self.mask_B11S, growth, value=attention.MASKED_SCORE)
        self.mask_B11S[..., self.end] = 0
        self.end += 1

    def keep(self, staying: list[int]) -> list[int]:
        """Remove the rows at all other places; return the old places of the remaining rows, in their new order."""
        count = len(staying)
        free = sorted(set(range(count)) - set(staying))  # places of removed rows are filled with rows from the end
        moved = [place for place in staying if place >= count]
        order = list(range(count))
        for place, source in zip(free, moved, strict=True):
            order[place] = source
        if count < len(self.rows):
            for buffer in self.buffers:
                buffer.move_rows(moved, free, count)
            self.mask_B11S = self.mask_B11S[order]
            self.rows = [self.rows[place] for place in order]
        return order


def decodes_in_buckets(backbone: EngineBackbone, positions: int) -> bool:
    """Whether texts of up to this many positions are decoded in buckets: on a CPU only, where pads take time."""
    return backbone.device.type == "cpu" and backbone.can_pack(positions)


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


def left_padded(rows: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Return ids and mask (B, T); a pad repeats its row's first token, which the repetition penalty counts anyway."""
    width = max(map(len, rows))
    ids = [[row[0]] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def decoding_mask(backbone: EngineBackbone, real_BS: Tensor, t: int) -> Tensor | None:
    """Return the additive mask (B, 1, T, S) of the last T of S positions, None where all earlier positions are real.

    Where layers see a window only, it is ``real_BS`` itself: the model makes such a mask.
    """
    s = real_BS.shape[1]
    if not backbone.sees_all(s):
        return real_BS
    if t == s and real_BS.all():
        return None
    return additive_mask(real_BS, t, backbone.model.dtype)


def stop_test(backbone: EngineBackbone, stops: Sequence[str]) -> Callable[[list[int]], bool]:
    """Return a test whether the newest token of a row's ids completes a stop text.

    It decodes only rows whose newest token may end a stop text.
    """
    may_end: dict[int, bool] = {}  # token -> whether it may end a stop text
    window = max((len(stop.encode()) for stop in stops), default=0) + 8  # tokens: each may be a single byte

    def text(ids: list[int]) -> str:
        return str(backbone.tokenizer.decode(ids, skip_special_tokens=True))

    def is_stopped(row: list[int]) -> bool:
        token = row[-1]
        if token not in may_end:
            token_text = text([token])  # a part of a character decodes to U+FFFD
            may_end[token] = "\ufffd" in token_text or any(stop[-1] in token_text for stop in stops)
        return may_end[token] and any(stop in text(row[-window:]) for stop in stops)

    return is_stopped if stops else lambda row: False
