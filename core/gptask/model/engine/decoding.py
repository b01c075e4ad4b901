"""The decoding loop: what all prompts share is read once, a step copies no keys, and finished rows leave at once."""

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
from gptask.data.prefixes import prefixes
from gptask.model.engine import attention, kv_cache, packing
from gptask.model.engine.attention import additive
from gptask.model.engine.kv_cache import PreallocatedKVCache, capacity
from gptask.model.engine.packing import PackedLayout
from gptask.model.engine.sampling import Sampler

if TYPE_CHECKING:
    from gptask.model.engine.interface import EngineBackbone
    from gptask.plugins.generation_options import GenerationOptions

Decoded = tuple[list[int], float | None]  # new token ids, and the geometric mean of their probabilities
BUCKET_COST = 4096  # positions of pads that a segment of its own must save, on a CPU: what it adds to a step
PREFILL_TOKENS = 1024  # padded tokens of prompts that a CPU reads at once: more would not stay in its caches
GPU_PREFILL_FACTOR = 4  # times as many elsewhere


def decode(
    backbone: EngineBackbone, prompts: Sequence[list[int]], rooms: list[int], options: GenerationOptions
) -> list[Decoded]:
    """Continue every prompt, greedily or by sampling, for at most its room."""
    rows = DecodingBatch(backbone, prompts, rooms)
    stops = stop_test(backbone, options.stop)
    logits = rows.read()
    draw = Sampler(options, backbone, rows.ids.shape[1], len(prompts))
    while True:
        token, chosen = draw(rows.ids, logits, rows.alive)
        order = rows.take(token[:, 0].tolist(), chosen, stops)
        if not order:
            return [(row, exp(fmean(log))) for row, log in zip(rows.said, rows.logs, strict=True)]
        logits = rows.step(token[order], order)


def next_token_logits(
    backbone: EngineBackbone, step: Tensor, mask: Tensor | None, position: Tensor, cache: Cache | None
) -> Tensor:
    """Scores (B, V) of what follows the tokens (B, T), given the keys and values before them."""
    hidden = backbone.body(
        input_ids=step,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state[:, -1]
    return backbone.logits(hidden)


class DecodingBatch:
    """The sequences that are still being written, B of them, and what was said so far.

    Where our attention may tell the model what it sees, those of about the same length are a segment of the batch, so
    that a step reads few pads.
    """

    def __init__(self, backbone: EngineBackbone, prompts: Sequence[list[int]], rooms: list[int]) -> None:
        self.backbone, self.rooms = backbone, rooms
        self.said: list[list[int]] = [[] for _ in prompts]
        self.logs: list[list[float]] = [[] for _ in prompts]
        lengths = [*map(len, prompts)]
        end = max(lengths) + max(rooms)
        self.laid = backbone.can_pack(end)
        together = split_by_length(lengths) if decodes_in_buckets(backbone, end) else [[*range(len(prompts))]]
        self.segments = [LengthBucket(backbone, rows, [prompts[row] for row in rows], self.laid) for rows in together]
        self.layer = 0  # whose turn it is in a step

    @property
    def alive(self) -> list[int]:
        """Numbers of the prompts (B) whose text is still being written, in the order of the batch."""
        return [row for segment in self.segments for row in segment.rows]

    def read(self) -> Tensor:
        """Read the prompts; scores (B, V)."""
        prompts = [prompt for segment in self.segments for prompt in segment.prompts]
        self.ids, real = left_padded(prompts, self.backbone.device)
        self.position = real.sum(1, keepdim=True) - 1
        return torch.cat([segment.read() for segment in self.segments])

    def step(self, token: Tensor, order: list[int]) -> Tensor:
        """Put the rows in ``order`` and one more token (B, 1) behind them; scores (B, V)."""
        self.ids = torch.cat([self.ids[order], token], 1)
        self.position = self.position[order] + 1
        for segment in self.segments:
            segment.extend()
        if not self.laid:
            (segment,) = self.segments
            return next_token_logits(
                self.backbone, token, mask_of(self.backbone, segment.real(), 1), self.position, segment.cache
            )
        self.layer = 0
        with attention.packed_attention(self):
            return next_token_logits(
                self.backbone, token, attention.open_mask(self.backbone.model), self.position, None
            )

    def attend(
        self, whole: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, window: int | None = None
    ) -> Tensor:
        """A layer's attention of new queries (B, H, 1, D) to what their rows hold and to new keys and values
        (B, K, 1, D): states (B, 1, H, D)."""
        layer, self.layer = self.layer, self.layer + 1
        states, start = [], 0
        for segment in self.segments:
            rows = slice(start, start := start + len(segment.rows))
            held = segment.buffers[layer].update(key[rows], value[rows])
            states.append(whole(query[rows], *held, segment.mask(window)))
        return torch.cat(states)

    def take(self, tokens: list[int], logs: list[float], stops: Callable[[list[int]], bool]) -> list[int]:
        """Note one more token of every row; rows that end leave, and the order (B') of those that stay is returned."""
        order: list[int] = []
        start, said = 0, iter(zip(tokens, logs, strict=True))
        for segment in self.segments:
            count = len(segment.rows)
            staying = [place for place, row in enumerate(segment.rows) if self._goes_on(row, *next(said), stops)]
            order += [start + place for place in segment.keep(staying)]
            start += count
        self.segments = [segment for segment in self.segments if segment.rows]
        return order

    def _goes_on(self, row: int, token: int, log: float, stops: Callable[[list[int]], bool]) -> bool:
        """Note a row's next token, and whether another one may follow."""
        self.logs[row].append(log)
        if token in self.backbone.stop_ids:
            return False
        self.said[row].append(token)
        return len(self.said[row]) < self.rooms[row] and not stops(self.said[row])


class LengthBucket:
    """B rows that are left-padded to one width, with their keys and values."""

    def __init__(self, backbone: EngineBackbone, rows: list[int], prompts: list[list[int]], laid: bool) -> None:
        self.backbone, self.rows, self.prompts, self.laid = backbone, rows, prompts, laid
        self.lengths = torch.tensor([*map(len, prompts)])
        self.end = int(self.lengths.max())
        column = torch.arange(capacity(self.end))
        real = (column >= self.end - self.lengths[:, None]) & (column < self.end)
        self.hidden = additive(real.to(backbone.device), 1, backbone.model.dtype)  # (B, 1, 1, S)
        self.buffers = [PreallocatedKVCache(laid) for _ in range(backbone.config.num_hidden_layers)]
        self.cache = Cache(layers=list(self.buffers))

    def read(self) -> Tensor:
        """Read the prompts, what some share once; scores (B, V). All rows end at the same place."""
        count, end = len(self.rows), self.end
        common = prefixes([np.array(prompt) for prompt in self.prompts]) if self.laid else None
        most = PREFILL_TOKENS * (1 if self.backbone.device.type == "cpu" else GPU_PREFILL_FACTOR)
        read: dict[int, Tensor] = {}
        for rows in BatchesByLength(self.lengths.numpy(), count, most, None, common=common):
            found, held = self._read([self.prompts[row] for row in rows])
            read |= dict(zip(rows, found, strict=True))
            columns = torch.cat([torch.arange(end - int(length), end) for length in self.lengths[rows]])
            where = torch.tensor(rows).repeat_interleave(self.lengths[rows]), columns
            for buffer, pair in zip(self.buffers, held, strict=True):
                buffer.place((count, end), where, pair)
        return torch.stack([read[row] for row in range(count)])

    def _read(self, prompts: list[list[int]]) -> tuple[Tensor, Iterator[list[Tensor]]]:
        """Scores (B, V) behind some prompts, and the keys and values (N, K, D) of their N tokens, layer by layer."""
        if self.laid:
            layout = PackedLayout(packing.split(prompts), self.backbone.device, self.backbone.model.dtype)
            last, places = layout.last(), layout.keys[layout.real]
            layout.told = []
            states = packing.read(self.backbone, layout, layout.only(last))
            return self.backbone.logits(states[last]), (
                [part[0].transpose(0, 1)[places] for part in pair] for *pair, _ in layout.told
            )
        ids, real = left_padded(prompts, self.backbone.device)
        layers = [DynamicLayer() for _ in self.buffers]
        position = (real.cumsum(1) - 1).clamp(min=0)
        found = next_token_logits(
            self.backbone, ids, mask_of(self.backbone, real, ids.shape[1]), position, Cache(layers=[*layers])
        )
        pairs = ((layer.keys, layer.values) for layer in layers)
        return found, ([part.transpose(1, 2)[real.bool()] for part in pair if part is not None] for pair in pairs)

    def real(self) -> Tensor:
        """Which positions (B, S) count."""
        return (self.hidden[:, 0, 0, : self.end] == 0).long()

    def mask(self, window: int | None) -> Tensor:
        """What to add to the scores (B, 1, 1, S) of the newest tokens, which see the ``window`` positions that end with
        them, if it is given; S is all the buffers have room for."""
        hidden = self.hidden
        if window is not None and window < self.end:
            hidden = hidden.clone()
            hidden[..., : self.end - window] = attention.HIDDEN
        return hidden

    def extend(self) -> None:
        """One more position counts in every row."""
        if self.end == self.hidden.shape[-1]:
            self.hidden = torch.nn.functional.pad(self.hidden, (0, kv_cache.GROWTH), value=attention.HIDDEN)
        self.hidden[..., self.end] = 0
        self.end += 1

    def keep(self, staying: list[int]) -> list[int]:
        """Let the rows in all other places go; the order in which those at ``staying`` places lie afterwards."""
        count = len(staying)
        free = sorted(set(range(count)) - set(staying))  # places of rows that left are filled from the end
        moved = [place for place in staying if place >= count]
        order = list(range(count))
        for place, source in zip(free, moved, strict=True):
            order[place] = source
        if count < len(self.rows):
            for buffer in self.buffers:
                buffer.keep(count, moved, free)
            self.hidden = self.hidden[order]
            self.rows = [self.rows[place] for place in order]
        return order


def decodes_in_buckets(backbone: EngineBackbone, positions: int) -> bool:
    """Whether texts of so many positions at most are decoded in segments; elsewhere a step's time is not in pads."""
    return backbone.device.type == "cpu" and backbone.can_pack(positions)


def split_by_length(lengths: list[int]) -> list[list[int]]:
    """Split row numbers so that the positions that their buffers hold, and `BUCKET_COST` for each segment, are fewest."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ends = [capacity(lengths[row]) for row in order]
    cuts = [0, *(n for n in range(1, len(ends)) if ends[n - 1] < ends[n]), len(ends)]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}  # up to each cut: what it costs, and the cuts before it
    for number, cut in enumerate(cuts[1:], 1):
        found = ((best[before][0] + (cut - before) * ends[cut - 1] + BUCKET_COST, before) for before in cuts[:number])
        cost, before = min(found)
        best[cut] = cost, [*best[before][1], before]
    starts = best[len(ends)][1]
    return [order[start:end] for start, end in zip(starts, [*starts[1:], len(ends)], strict=True)]


def left_padded(rows: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T); pads repeat the row's first token, which the repetition penalty has seen anyway."""
    width = max(map(len, rows))
    ids = [[row[0]] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def mask_of(backbone: EngineBackbone, real: Tensor, t: int) -> Tensor | None:
    """What to add to the scores (B, 1, T, S) of the last T of S positions, of which some are real (B, S); None where
    all earlier ones count, and ``real`` itself where layers see only a window, whose mask is the model's to make."""
    s = real.shape[1]
    if not backbone.sees(s):
        return real
    if t == s and real.all():
        return None
    return additive(real, t, backbone.model.dtype)


def stop_test(backbone: EngineBackbone, stops: Sequence[str]) -> Callable[[list[int]], bool]:
    """Whether a row's text holds a stop text since its last token; only a token that may end one is looked at."""
    ends: dict[int, bool] = {}
    window = max((len(stop.encode()) for stop in stops), default=0) + 8  # a token may be one byte

    def text(ids: list[int]) -> str:
        return str(backbone.tokenizer.decode(ids, skip_special_tokens=True))

    def stopped(row: list[int]) -> bool:
        if row[-1] not in ends:
            alone = text(row[-1:])  # a part of a character decodes to U+FFFD
            ends[row[-1]] = "\ufffd" in alone or any(stop[-1] in alone for stop in stops)
        return ends[row[-1]] and any(stop in text(row[-window:]) for stop in stops)

    return stopped if stops else lambda row: False
