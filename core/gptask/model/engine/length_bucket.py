"""Rows of similar length that are decoded together, with their keys and values in preallocated buffers.

Shapes: B rows, T tokens that are read, S key positions, N tokens of a prefilled group, K key and value heads, D head
channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from gptask.data.batches import BatchesByLength
from gptask.data.prefixes import shared_prefixes
from gptask.model.engine import attention, kv_cache, packing
from gptask.model.engine.attention import additive_mask
from gptask.model.engine.interface import DecodingRow, Engine
from gptask.model.engine.kv_cache import PreallocatedKVCache, capacity
from gptask.model.engine.left_padding import decoding_mask, left_padded, next_token_logits
from gptask.model.engine.packing import PackedLayout

PREFILL_TOKENS = 1024  # padded tokens of prompts that a CPU reads at once: more would not stay in its caches
GPU_PREFILL_FACTOR = 4  # times as many on other devices
PROMPT_CHUNK = 512  # tokens of a part of a long prompt: bounds the memory of their attention


@dataclass
class KeptText:
    """What was read of a text that has left: token ids, the adapter that read them, keys and values of each layer."""

    ids: list[int]
    adapter: str | None
    layers: list[tuple[Tensor, Tensor]]  # each (1, K, positions, D)

    def common(self, row: DecodingRow) -> int:
        """How many tokens a row's prompt begins with that need not be read again; the last one always is."""
        if row.adapter != self.adapter:
            return 0
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, row.prompt[:-1], strict=False))
        return sum(1 for _ in equal)


class LengthBucket:
    """B rows of one adapter, left-padded to one width, with their keys and values; S is the capacity of their buffers.

    ``lengths`` counts what is read of each row; ``logits`` (B, V) are those behind the prompts, before the first step.
    """

    def __init__(self, engine: Engine, rows: list[DecodingRow]) -> None:
        self.backbone, self.rows, self.adapter = engine.backbone, rows, rows[0].adapter
        self.packs = engine.can_pack(max(len(row.prompt) + row.limit for row in rows))
        self.lengths = [len(row.prompt) for row in rows]
        self.end = max(self.lengths)
        self.starts = [self.end - length for length in self.lengths]  # columns of the rows' first tokens
        columns_S = torch.arange(capacity(self.end))
        real_BS = (columns_S >= torch.tensor(self.starts)[:, None]) & (columns_S < self.end)
        backbone = self.backbone
        self.mask_B11S = additive_mask(real_BS.to(backbone.device), 1, backbone.model.dtype)
        layers = range(engine.layers_of(self.adapter))
        self.buffers = [PreallocatedKVCache(shows_capacity=self.packs) for _ in layers]
        self.cache = Cache(layers=list(self.buffers))
        self.logits: Tensor | None = None

    def reading_group(self) -> tuple[bool, bool, str | None]:
        """Whether the newest tokens are unread, and with what other buckets they can be read together."""
        return self.logits is None, self.packs, self.adapter

    def take_logits(self) -> Tensor:
        """Return the logits (B, V), which are of no use after the next token."""
        assert self.logits is not None, "only buckets that were just admitted have logits"
        logits_BV, self.logits = self.logits, None
        return logits_BV

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

    def read_in_parts(self, kept: KeptText | None) -> None:
        """Read the prompt of the only row part by part, behind what is ``kept`` of its beginning."""
        (row,) = self.rows
        start = kept.common(row) if kept else 0
        for number, buffer in enumerate(self.buffers):
            buffer.show_capacity(False)
            if kept and start:
                buffer.update(*(states[:, :, :start] for states in kept.layers[number]))
        for part_start in range(start, self.end, PROMPT_CHUNK):
            part = row.prompt[part_start : part_start + PROMPT_CHUNK]
            end = part_start + len(part)
            ids_1T = torch.tensor([part], device=self.backbone.device)
            positions_1T = torch.arange(part_start, end, device=self.backbone.device)[None]
            mask = decoding_mask(self.backbone, ids_1T.new_ones(1, end), len(part))
            self.logits = next_token_logits(self.backbone, ids_1T, mask, positions_1T, self.cache)
        for buffer in self.buffers:
            buffer.show_capacity(self.packs)

    def kept_text(self, row: DecodingRow) -> KeptText:
        """What is read of a row; a pass that was interrupted may have written more in some layers than in others."""
        place = self.rows.index(row)
        start, length = self.starts[place], self.lengths[place]
        layers = [buffer.row(place, start, start + length) for buffer in self.buffers]
        if len(self.rows) > 1:  # not to hold all of the bucket
            layers = [(keys.clone(), values.clone()) for keys, values in layers]
        return KeptText(row.ids[:length], row.adapter, layers)

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
