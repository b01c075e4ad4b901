"""The decoding loop: what all prompts share is read once, a step copies no keys, and finished rows leave at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from statistics import fmean
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from gptask.backbone.model import Backbone
    from gptask.generation import Generation

Decoded = tuple[list[int], float | None]  # new token ids, and the geometric mean of their probabilities
ROOM = 64  # positions that a buffer has to spare when it is made
TOGETHER = 2048  # padded tokens of prompts that are read at once
HIDDEN = -1e30  # added to a score that must not count; not -inf: a pad's own row has nothing else


class Buffer(DynamicLayer):
    """One layer's keys and values, views (B, K, S, D) of buffers that have room for more positions."""

    room: list[Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind those that are there."""
        seen = self.get_seq_length()
        end = seen + key_states.shape[2]
        if not seen or end > self.room[0].shape[2]:
            self.is_initialized = True
            held = (self.keys, self.values) if seen else (None, None)
            self.room = [_roomy(new, old, end) for new, old in zip((key_states, value_states), held, strict=True)]
        for buffer, new in zip(self.room, (key_states, value_states), strict=True):
            buffer[: len(new), :, seen:end] = new
        return self._show(len(key_states), end)

    def _show(self, rows: int, end: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:rows, :, :end] for buffer in self.room)
        return self.keys, self.values

    def held(self) -> list[Tensor]:
        """The keys and the values that are shown."""
        return [states for states in (self.keys, self.values) if states is not None]

    def repeated(self, rows: int) -> Buffer:
        """A buffer that holds for each of ``rows`` rows what this one holds for its only one."""
        copy, end = Buffer(), self.get_seq_length()
        if end:
            copy.is_initialized = True
            copy.room = [_roomy(held.expand(rows, -1, -1, -1), held, end) for held in self.held()]
            copy._show(rows, end)
        return copy

    def place(self, total: int, rows: list[int], read: Buffer, common: int, end: int) -> None:
        """Take over what was read for some of ``total`` rows: the common part at the start, the rest up to ``end``."""
        sources = read.held()
        if not self.is_initialized:
            self.is_initialized = True  # zeros: nothing is ever written where a row is shorter than the longest
            self.room = [held.new_zeros(total, held.shape[1], end + ROOM, held.shape[3]) for held in sources]
        for buffer, held in zip(self.room, sources, strict=True):
            buffer[rows, :, :common] = held[:, :, :common]
            buffer[rows, :, end - held.shape[2] + common : end] = held[:, :, common:]
        self._show(total, end)

    def keep(self, rows: int, source: list[int], target: list[int]) -> None:
        """Copy some rows over others and keep the first ``rows``."""
        end = self.get_seq_length()
        for buffer in self.room if source else []:
            buffer[target, :, :end] = buffer[source, :, :end]
        self._show(rows, end)


def _roomy(like: Tensor, held: Tensor | None, end: int) -> Tensor:
    """A buffer for rows such as ``like``'s and ``end`` positions and some more, with what is held at its start."""
    rows, heads, _, channels = like.shape
    buffer = like.new_empty(rows, heads, end + ROOM, channels)
    if held is not None:
        buffer[:, :, : held.shape[2]] = held
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
        attention_mask=_mask(backbone, real, step.shape[1]),
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
        """Read what all prompts share once and the rest in groups of similar length; scores (B, V), positions (B, 1).

        All rows end at the same place; pads lie between what is shared and the rest of a shorter prompt.
        """
        common = shared(self.prompts) if self._may_share() else 0
        count, end, device = len(self.prompts), max(map(len, self.prompts)), self.backbone.device
        start = [Buffer() for _ in self.buffers]
        if common:
            first = torch.tensor([self.prompts[0][:common]], device=device)
            self.backbone.body(input_ids=first, past_key_values=Cache(layers=list(start)), use_cache=True)
        # a pad is a token of its row, which the repetition penalty has seen anyway
        self.ids = torch.tensor([[prompt[0]] * (end - len(prompt)) + prompt for prompt in self.prompts], device=device)
        self.real = torch.zeros_like(self.ids)
        scores: dict[int, Tensor] = {}
        for group in groups(self.prompts, common):
            step, real = left_padded([self.prompts[row][common:] for row in group], device)
            buffers = [buffer.repeated(len(group)) for buffer in start]
            mask = torch.cat([real.new_ones(len(real), common), real], 1)
            position = common + (real.cumsum(1) - 1).clamp(min=0)
            found = _logits(self.backbone, step, mask, position, Cache(layers=list(buffers)))
            scores |= dict(zip(group, found, strict=True))
            self.real[group, :common] = 1
            self.real[group, end - step.shape[1] :] = real
            for mine, read in zip(self.buffers, buffers, strict=True):
                mine.place(count, group, read, common, end)
        return torch.stack([scores[row] for row in range(count)]), self.real.sum(1, keepdim=True) - 1

    def add(self, token: Tensor, order: list[int]) -> None:
        """Put the rows in ``order`` and one more token (B, 1) behind them."""
        self.ids = torch.cat([self.ids[order], token], 1)
        self.real = torch.cat([self.real[order], torch.ones_like(token)], 1)

    def _may_share(self) -> bool:
        """Whether pads may follow what is shared: a layer that sees only a window counts them as if they were real."""
        lengths = set(map(len, self.prompts))
        return len(lengths) == 1 or max(lengths) + max(self.rooms) <= (_window(self.backbone) or float("inf"))

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


def shared(prompts: Sequence[list[int]]) -> int:
    """How many first tokens all prompts have in common, the last one of the shortest left out; 0 for one prompt."""
    first, last = min(prompts), max(prompts)
    longest = min(map(len, prompts)) - 1
    return next((n for n in range(longest) if first[n] != last[n]), longest) if len(prompts) > 1 else 0


def groups(prompts: Sequence[list[int]], common: int) -> list[list[int]]:
    """Row numbers, longest first, in groups of at most `TOGETHER` padded tokens (or one row)."""
    found: list[list[int]] = [[]]
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row])):
        longest = len(prompts[found[-1][0] if found[-1] else row]) - common
        if found[-1] and longest * (len(found[-1]) + 1) > TOGETHER:
            found.append([])
        found[-1].append(row)
    return found


def left_padded(prompts: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T); pads repeat the row's first token."""
    width = max(map(len, prompts))
    ids = [[prompt[0]] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _window(backbone: Backbone) -> int | None:
    """How many last positions some layers see, if not all."""
    return getattr(backbone.model.config.get_text_config(), "sliding_window", None)


def _mask(backbone: Backbone, real: Tensor, t: int) -> Tensor | None:
    """What to add to the scores (B, 1, T, S) of the last T of S positions; as (B, S) where layers see only a window."""
    s = real.shape[1]
    if (_window(backbone) or s) < s:
        return real
    if t == s and real.all():
        return None
    later = torch.ones(t, s, dtype=torch.bool, device=real.device).triu(1 + s - t)
    hidden = later | (real == 0)[:, None, None]
    return torch.zeros(hidden.shape, dtype=backbone.model.dtype, device=real.device).masked_fill_(hidden, HIDDEN)


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
