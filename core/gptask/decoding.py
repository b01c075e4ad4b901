"""The decoding loop: what all prompts share is read once, a step copies no keys, and finished rows leave at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, LogitsProcessorList
from transformers.cache_utils import DynamicLayer
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptask import sharing
from gptask.data.batches import BatchesByLength
from gptask.sharing import Shared

if TYPE_CHECKING:
    from gptask.backbone.model import Backbone
    from gptask.generation import Generation

Decoded = tuple[list[int], float | None]  # new token ids, and the geometric mean of their probabilities
ROOM = 64  # positions that a buffer has to spare when it is made
TOGETHER = 2048  # padded tokens of prompts that are read at once


class Buffer(DynamicLayer):
    """One layer's keys and values, views (B, K, S, D) of buffers that have room for more positions."""

    def __init__(self) -> None:
        super().__init__()
        self.room: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind those that are there."""
        seen = self.get_seq_length()
        end = seen + key_states.shape[2]
        if end > self.room[0].shape[2]:
            self.room = [_roomy(held, end) for held in (self.keys, self.values)]
        for buffer, new in zip(self.room, (key_states, value_states), strict=True):
            buffer[: len(new), :, seen:end] = new
        return self._show(len(key_states), end)

    def _show(self, rows: int, end: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:rows, :, :end] for buffer in self.room)
        return self.keys, self.values

    def place(self, total: int, rows: list[int], read: DynamicLayer, prefix: int, end: int) -> None:
        """Take over what was read for some of ``total`` rows: the first positions at the start, the rest up to ``end``."""
        for number, held in enumerate((read.keys, read.values)):
            assert held is not None
            if len(self.room) == number:  # zeros: nothing is ever written between what a row has
                self.room.append(held.new_zeros(total, held.shape[1], end + ROOM, held.shape[3]))
            self.room[number][rows, :, :prefix] = held[:, :, :prefix]
            self.room[number][rows, :, end - held.shape[2] + prefix : end] = held[:, :, prefix:]
        self.is_initialized = True
        self._show(total, end)

    def keep(self, rows: int, source: list[int], target: list[int]) -> None:
        """Copy some rows over others and keep the first ``rows``."""
        end = self.get_seq_length()
        for buffer in self.room if source else []:
            buffer[target, :, :end] = buffer[source, :, :end]
        self._show(rows, end)


def _roomy(held: Any, end: int) -> Tensor:
    """A buffer for ``end`` positions and some more, with what is held (B, K, S, D) at its start."""
    rows, heads, seen, channels = held.shape
    buffer = held.new_empty(rows, heads, end + ROOM, channels)
    buffer[:, :, :seen] = held
    return buffer


def decode(backbone: Backbone, prompts: Sequence[list[int]], rooms: list[int], options: Generation) -> list[Decoded]:
    """Continue every prompt, greedily or by sampling, for at most its room."""
    rows = Rows(backbone, prompts, rooms, options)
    chain, stops = processors(options), stop_test(backbone, options.stop)
    logits, position = rows.read()
    while True:
        token, chosen = _choose(chain(rows.ids, logits), logits, sample=options.temperature > 0)  # type: ignore[arg-type]
        order = rows.take(token[:, 0].tolist(), chosen, stops)
        if not order:
            return [(row, exp(fmean(log))) for row, log in zip(rows.said, rows.logs, strict=True)]
        position = position[order] + 1
        rows.add(token[order], order)
        logits = _logits(backbone, token[order], rows.real, position, rows.cache)


def _logits(backbone: Backbone, step: Tensor, real: Tensor, position: Tensor, cache: Cache) -> Tensor:
    """Scores (B, V) of what follows the tokens (B, T), given the keys and values before them."""
    hidden = backbone.body(
        input_ids=step,
        attention_mask=sharing.additive(backbone, real, step.shape[1]),
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    return backbone.logits(hidden).float()


class Rows:
    """The sequences that are still being written, B of them, and what was said so far."""

    def __init__(self, backbone: Backbone, prompts: Sequence[list[int]], rooms: list[int], options: Generation) -> None:
        self.backbone, self.prompts, self.rooms = backbone, prompts, rooms
        self.said: list[list[int]] = [[] for _ in prompts]
        self.logs: list[list[float]] = [[] for _ in prompts]
        self.alive = list(range(len(prompts)))
        layers = backbone.model.config.get_text_config().num_hidden_layers
        self.buffers = [Buffer() for _ in range(layers)]
        self.cache = Cache(layers=list(self.buffers))

    def read(self) -> tuple[Tensor, Tensor]:
        """Read the prompts, what some share once; scores (B, V), positions (B, 1).

        All rows end at the same place; pads lie between a prefix and the rest of its prompt.
        """
        parts = list(groups(self.prompts, share=self._may_share()))
        prefixes = [max(map(len, shared.prefixes)) for _, shared in parts]
        own = [max(map(len, shared.suffixes)) for _, shared in parts]
        end, count, device = max(map(sum, zip(prefixes, own, strict=True))), len(self.prompts), self.backbone.device
        # a pad is a token of its row, which the repetition penalty has seen anyway
        self.ids = torch.tensor([[prompt[0]] * (end - len(prompt)) + prompt for prompt in self.prompts], device=device)
        self.real = torch.zeros_like(self.ids)
        scores: dict[int, Tensor] = {}
        for (rows, shared), prefix in zip(parts, prefixes, strict=True):
            found = sharing.read(self.backbone, shared)
            scores |= dict(zip(rows, self.backbone.logits(found.suffixes[:, -1]).float(), strict=True))
            for row, suffix in zip(rows, shared.suffixes, strict=True):
                self.real[row, : len(self.prompts[row]) - len(suffix)] = 1
                self.real[row, end - len(suffix) :] = 1
            for mine, layer in zip(self.buffers, found.layers, strict=True):
                mine.place(count, rows, layer, prefix, end)
        return torch.stack([scores[row] for row in range(count)]), self.real.sum(1, keepdim=True) - 1

    def add(self, token: Tensor, order: list[int]) -> None:
        """Put the rows in ``order`` and one more token (B, 1) behind them."""
        self.ids = torch.cat([self.ids[order], token], 1)
        self.real = torch.cat([self.real[order], torch.ones_like(token)], 1)

    def _may_share(self) -> bool:
        """Whether pads may follow what is shared: a layer that sees only a window counts them as if they were real."""
        return self.backbone.sees(max(map(len, self.prompts)) + max(self.rooms))

    def take(self, tokens: list[int], logs: list[float], stops: Callable[[list[int]], bool]) -> list[int]:
        """Note one more token of every row; rows that end leave, and the order (B') of those that stay is returned."""
        staying = []
        for place, (row, token, log) in enumerate(zip(self.alive, tokens, logs, strict=True)):
            self.logs[row].append(log)
            if token in self.backbone.stop_ids:
                continue
            self.said[row].append(token)
            if len(self.said[row]) < self.rooms[row] and not stops(self.said[row]):
                staying.append(place)
        count = len(staying)
        free = sorted(set(range(count)) - set(staying))  # places of rows that left are filled from the end
        moved = [place for place in staying if place >= count]
        order = list(range(count))
        for place, source in zip(free, moved, strict=True):
            order[place] = source
        if count < len(self.alive):
            for buffer in self.buffers:
                buffer.keep(count, moved, free)
        self.alive = [self.alive[place] for place in order]
        return order


def groups(prompts: Sequence[list[int]], share: bool) -> Iterator[tuple[list[int], Shared]]:
    """Row numbers and the parts of their prompts, in groups of at most `TOGETHER` padded tokens (or one row)."""
    lengths = np.array([len(prompt) for prompt in prompts])
    common = sharing.prefixes([np.array(prompt) for prompt in prompts]) if share else None
    for rows in BatchesByLength(lengths, len(prompts), TOGETHER, None, common=common):
        chosen = [prompts[row] for row in rows]
        yield rows, sharing.split(chosen) if share else sharing.whole(chosen)


def processors(options: Generation) -> LogitsProcessorList:
    """What is done to the logits, by transformers' own."""
    chain = LogitsProcessorList()
    if options.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature > 0:
        if options.temperature != 1.0:
            chain.append(TemperatureLogitsWarper(options.temperature))
        if options.top_k:
            chain.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            chain.append(TopPLogitsWarper(options.top_p))
    return chain


def _choose(scores: Tensor, logits: Tensor, sample: bool) -> tuple[Tensor, list[float]]:
    """The next tokens (B, 1), and their log-probabilities under the model itself (before penalty and temperature)."""
    token = torch.multinomial(scores.softmax(-1), 1) if sample else scores.argmax(-1, keepdim=True)
    return token, (logits.gather(1, token) - logits.logsumexp(1, keepdim=True))[:, 0].tolist()


def stop_test(backbone: Backbone, stops: Sequence[str]) -> Callable[[list[int]], bool]:
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
