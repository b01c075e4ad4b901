"""Rows of similar length that are decoded together, with their keys and values in preallocated buffers.

Shapes: B rows, T tokens that are read, S key positions, N tokens of a prefilled group, K key and value heads, D head
channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from gptask.data.batches import BatchesByLength
from gptask.data.prefixes import shared_prefixes
from gptask.model.engine import attention, kv_cache, packing
from gptask.model.engine.attention import additive_mask
from gptask.model.engine.interface import DecodingRow, EngineBackbone
from gptask.model.engine.kv_cache import PreallocatedKVCache, capacity
from gptask.model.engine.left_padding import decoding_mask, left_padded, next_token_logits
from gptask.model.engine.packing import PackedLayout

PREFILL_TOKENS = 1024  # padded tokens of prompts that a CPU reads at once: more would not stay in its caches
GPU_PREFILL_FACTOR = 4  # times as many on other devices
PROMPT_CHUNK = 512  # tokens of a part of a long prompt: bounds the memory of their attention


class Source(NamedTuple):
    """A row of a bucket."""

    bucket: LengthBucket
    place: int

    @property
    def length(self) -> int:
        """How many of its tokens are read."""
        return self.bucket.lengths[self.place]


class LengthBucket:
    """B rows, left-padded to one width, with their keys and values; S is the capacity of their buffers.

    The rows may have different adapters, as far as all of them pass the same number of ``layers``. ``lengths`` counts
    what is read of each row; ``logits`` (B, V) are those behind the prompts, before the first step.
    """

    def __init__(self, backbone: EngineBackbone, layers: int, packs: bool, end: int) -> None:
        self.backbone, self.layers, self.packs, self.end = backbone, layers, packs, end
        self.rows: list[DecodingRow] = []
        self.lengths: list[int] = []
        self.starts: list[int] = []  # columns of the rows' first tokens
        self.changes = 0  # how often rows have entered or left
        self.buffers = [PreallocatedKVCache(shows_capacity=packs) for _ in range(layers)]
        self.cache = Cache(layers=list(self.buffers))
        self.logits: Tensor | None = None
        self._forget_mask()

    def empty_like(self, end: int) -> LengthBucket:
        """A bucket without rows for rows that end at column ``end``."""
        return LengthBucket(self.backbone, self.layers, self.packs, end)

    @property
    def capacity(self) -> int:
        """S."""
        return self.mask_B11S.shape[-1]

    @property
    def slots(self) -> int:
        """For how many rows the buffers have room."""
        return len(self.buffers[0].buffers[0]) if self.buffers[0].buffers else 0

    @property
    def positions(self) -> int:
        """How many positions the buffers of a layer have."""
        return self.slots * self.capacity

    @property
    def promised(self) -> int:
        """How many positions the rows may need, to their limits."""
        return sum(map(self.promised_to, range(len(self.rows))))

    def promised_to(self, place: int) -> int:
        """How many positions one row may need."""
        return capacity(len(self.rows[place].prompt) + self.rows[place].limit)

    def reading_group(self) -> tuple[bool, bool, int]:
        """Whether the newest tokens are unread, and with what other buckets they can be read together."""
        return self.logits is None, self.packs, self.layers

    def take_logits(self) -> Tensor:
        """Return the logits (B, V), which are of no use after the next token."""
        assert self.logits is not None, "only buckets that were just admitted have logits"
        logits_BV, self.logits = self.logits, None
        return logits_BV

    def _forget_mask(self) -> None:
        backbone = self.backbone
        self.mask_B11S = torch.zeros(0, 1, 1, capacity(self.end), dtype=backbone.model.dtype, device=backbone.device)

    def add_rows(self, rows: Sequence[DecodingRow], lengths: Sequence[int]) -> None:
        """Let more rows, of which so many tokens are read, be behind the others; their states come separately."""
        starts = [self.end - length for length in lengths]
        columns_S = torch.arange(self.capacity)
        real_BS = (columns_S >= torch.tensor(starts, dtype=torch.long)[:, None]) & (columns_S < self.end)
        new_mask_B11S = additive_mask(real_BS.to(self.backbone.device), 1, self.mask_B11S.dtype)
        self.mask_B11S = torch.cat([self.mask_B11S, new_mask_B11S])
        self.rows, self.lengths, self.starts = [*self.rows, *rows], [*self.lengths, *lengths], [*self.starts, *starts]
        self.changes += 1

    def copy_rows(self, layer: int, sources: Sequence[Source]) -> None:
        """Copy one layer's keys and values of other buckets' rows behind those that are here."""
        pairs = [bucket.buffers[layer].row(place, bucket.starts[place], bucket.end) for bucket, place in sources]
        if pairs:
            self.buffers[layer].append_rows(pairs, self.end)

    def read_prompts(self) -> None:
        """Read the prompts, what some of them share only once. All rows end at one column."""
        b, end = len(self.rows), self.end
        all_prompts = [row.prompt for row in self.rows]
        common = shared_prefixes([np.array(prompt) for prompt in all_prompts]) if self.packs else None
        max_tokens = PREFILL_TOKENS * (1 if self.backbone.device.type == "cpu" else GPU_PREFILL_FACTOR)
        logits_of_rows: dict[int, Tensor] = {}
        for places in BatchesByLength(np.array(self.lengths), b, max_tokens, None, common=common):
            prompts, lengths = [all_prompts[place] for place in places], [self.lengths[place] for place in places]
            logits, keys_values = self._read_packed(prompts) if self.packs else self._read_padded(prompts)
            logits_of_rows |= dict(zip(places, logits, strict=True))
            columns_N = torch.cat([torch.arange(end - length, end) for length in lengths])
            cells = torch.tensor(places).repeat_interleave(torch.tensor(lengths)), columns_N
            for buffer, key_value in zip(self.buffers, keys_values, strict=True):
                buffer.write((b, end), cells, key_value)
        self.logits = torch.stack([logits_of_rows[place] for place in range(b)])

    def _read_packed(self, prompts: list[list[int]]) -> tuple[Tensor, Iterator[list[Tensor]]]:
        """Logits (B, V) behind some prompts, and the keys and values (N, K, D) of their N tokens, layer by layer."""
        layout = PackedLayout(packing.split_prefixes(prompts), self.backbone.device, self.backbone.model.dtype)
        last_B, places_N = layout.last_places_B, layout.token_places()
        layout.recorded = []
        states_NC = packing.forward_packed(self.backbone, layout, layout.flags_at(last_B))
        keys_values = (
            [states[0].transpose(0, 1)[places_N] for states in key_value] for *key_value, _ in layout.recorded
        )
        return self.backbone.logits(states_NC[last_B]), keys_values

    def _read_padded(self, prompts: list[list[int]]) -> tuple[Tensor, Iterator[list[Tensor]]]:
        """The same as `_read_packed`, by transformers' own cache, where the model needs padded rows."""
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

    def read_part(self, ids: list[int]) -> None:
        """Read the next tokens of the prompt of a row to be, the only one, behind those that are read already."""
        for start in range(0, len(ids), PROMPT_CHUNK):
            part = ids[start : start + PROMPT_CHUNK]
            positions_1T = torch.arange(self.end, self.end + len(part), device=self.backbone.device)[None]
            self.end += len(part)
            ids_1T = torch.tensor([part], device=self.backbone.device)
            mask = decoding_mask(self.backbone, ids_1T.new_ones(1, self.end), len(part))
            self.logits = next_token_logits(self.backbone, ids_1T, mask, positions_1T, self.cache)

    def begin_with(self, layers: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Begin a prompt with keys and values (1, K, positions, D) that were read before, the first ``length`` ones."""
        for buffer, pair in zip(self.buffers, layers, strict=True):
            buffer.update(*(states[:, :, :length] for states in pair))
        self.end = length

    def finish_prompt(self, rows: Sequence[DecodingRow], packs: bool) -> None:
        """Let rows begin with the prompt that was read part by part."""
        self.packs = packs
        for buffer in self.buffers:
            buffer.show_capacity(packs)
        self._forget_mask()
        self.add_rows(rows[:1], [self.end])
        copies = [Source(self, 0)] * (len(rows) - 1)
        for layer in range(self.layers):
            self.copy_rows(layer, copies)
        self.add_rows(rows[1:], [self.end] * len(copies))
        assert self.logits is not None, "the last token of a prompt is always read"
        self.logits = self.logits.expand(len(rows), -1)

    def states_of(self, place: int) -> list[tuple[Tensor, Tensor]]:
        """The keys and values (1, K, positions, D) of a row in each layer.

        A pass that was interrupted may have written more in some layers than in others: no more than the row's length.
        """
        start, length = self.starts[place], self.lengths[place]
        layers = [buffer.row(place, start, start + length) for buffer in self.buffers]
        if self.slots > 1:  # not to hold all of the bucket
            layers = [(keys.clone(), values.clone()) for keys, values in layers]
        return layers

    def real(self) -> Tensor:
        """Return (B, end) ones at the real positions up to the rows' end, zeros at pads."""
        return (self.mask_B11S[:, 0, 0, : self.end] == 0).long()

    def window_mask(self, window: int | None) -> Tensor:
        """Return the additive mask (B, 1, 1, S) of the newest position, which sees all real ones.

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

    def keep(self, staying: list[int]) -> None:
        """Remove the rows at all other places."""
        count = len(staying)
        if count == len(self.rows):
            return
        free = sorted(set(range(count)) - set(staying))  # places of removed rows are filled with rows from the end
        moved = [place for place in staying if place >= count]
        order = list(range(count))
        for place, source in zip(free, moved, strict=True):
            order[place] = source
        if count:
            for buffer in self.buffers:
                buffer.move_rows(moved, free, count)
            self.mask_B11S = self.mask_B11S[order]
            self.logits = None if self.logits is None else self.logits[order]
        self.rows = [self.rows[place] for place in order]
        self.lengths = [self.lengths[place] for place in order]
        self.starts = [self.starts[place] for place in order]
        self.changes += 1
