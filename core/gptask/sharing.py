"""What sequences have in common at their start, computed once: a context with several questions, an instruction.

A causal model's states of a prefix don't depend on what follows, so one forward pass over the prefixes and one over
what is each sequence's own give the very states, and gradients, of a pass over whole sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from gptask.backbone.model import Backbone

WORTH = 0.15  # share of padded tokens that must be saved for a second forward pass to pay
MOST = 64  # sequences that are looked at for a common prefix
HIDDEN = -1e30  # added to a score that must not count; not -inf: a pad's own row may have nothing else


def runs(rows: Sequence[np.ndarray]) -> Iterator[tuple[list[int], int]]:
    """Split token ids into runs of row numbers and the length of their common prefix, so that most tokens are shared.

    Sorted rows with a prefix in common are neighbours, so the best split is found by dynamic programming over them. Each
    row keeps a last token of its own; a row alone in its run "shares" all others.
    """
    order = sorted(range(len(rows)), key=lambda row: rows[row].astype(">u4").tobytes())
    ordered = [rows[row] for row in order]
    common = [0, *map(_common, ordered, ordered[1:])]
    best, start = [0] * (len(rows) + 1), [0] * (len(rows) + 1)
    for end in range(1, len(rows) + 1):
        best[end], start[end] = best[end - 1], end - 1
        prefix = len(ordered[end - 1]) - 1
        for begin in range(end - 2, max(-1, end - 1 - MOST), -1):
            prefix = min(prefix, common[begin + 1], len(ordered[begin]) - 1)
            if not prefix:
                break
            saved = best[begin] + prefix * (end - begin - 1)
            if saved > best[end]:
                best[end], start[end] = saved, begin
    end = len(rows)
    while end:
        begin = start[end]
        shortest = min(len(row) for row in ordered[begin:end]) - 1
        yield order[begin:end], min([shortest, *common[begin + 1 : end]])
        end = begin


def prefixes(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each of N rows of token ids the number (N,) of its run and the length (N,) of the prefix it shares there."""
    of, length = np.zeros(len(rows), dtype=int), np.zeros(len(rows), dtype=int)
    for number, (members, prefix) in enumerate(runs(rows)):
        of[members], length[members] = number, prefix
    return of, length


def _common(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


@dataclass
class Shared:
    """B sequences as G prefixes and B suffixes."""

    prefixes: list[list[int]]
    suffixes: list[list[int]]
    of: list[int]  # (B,) number of each sequence's prefix

    @property
    def padded_prefixes(self) -> int:
        """Tokens of prefixes that are computed, pads included."""
        return len(self.prefixes) * max(map(len, self.prefixes))

    @property
    def padded(self) -> int:
        """Tokens that are computed, pads included."""
        return self.padded_prefixes + len(self.suffixes) * max(map(len, self.suffixes))


def split(rows: Sequence[list[int]]) -> Shared:
    """Prefixes and suffixes of token ids; one empty prefix where that saves less than the share `WORTH` of tokens."""
    found = Shared([], [[]] * len(rows), [0] * len(rows))
    for members, prefix in runs([np.asarray(row) for row in rows]):
        for row in members:
            found.suffixes[row], found.of[row] = rows[row][prefix:], len(found.prefixes)
        found.prefixes.append(rows[members[0]][:prefix])
    return found if found.padded <= (1 - WORTH) * whole(rows).padded else whole(rows)


def whole(rows: Sequence[list[int]]) -> Shared:
    """Sequences that share nothing."""
    return Shared([[]], list(rows), [0] * len(rows))


@dataclass
class Read:
    """States of G prefixes (G, P, C), right-padded, and of B suffixes (B, S, C), left-padded, with every layer's keys
    and values of P + S positions."""

    prefixes: Tensor
    suffixes: Tensor
    layers: list[DynamicLayer]


def read(backbone: Backbone, rows: Shared) -> Read:
    """Two forward passes, or one if nothing is shared; gradients of a prefix are those of all its suffixes."""
    device, count = backbone.device, backbone.model.config.get_text_config().num_hidden_layers
    layers = [DynamicLayer() for _ in range(count)]
    lengths = torch.tensor([len(prefix) for prefix in rows.prefixes], device=device)
    of = torch.tensor(rows.of, device=device)
    ids, real = left_padded(rows.suffixes, device)
    prefixes = torch.empty(len(lengths), 0, backbone.channels, device=device, dtype=backbone.model.dtype)
    position = (real.cumsum(1) - 1).clamp(min=0)
    if rows.padded_prefixes:
        first = [torch.tensor(prefix, dtype=torch.long, device=device) for prefix in rows.prefixes]
        padded = torch.nn.utils.rnn.pad_sequence(first, batch_first=True)
        prefixes = _states(backbone, layers, input_ids=padded)
        layers = [_taken(layer, of) for layer in layers]
        seen = torch.arange(padded.shape[1], device=device) < lengths[of][:, None]
        position, real = position + lengths[of][:, None], torch.cat([seen.long(), real], 1)
    mask = additive(backbone, real, ids.shape[1])
    suffixes = _states(backbone, layers, input_ids=ids, attention_mask=mask, position_ids=position)
    return Read(prefixes, suffixes, layers)


def _states(backbone: Backbone, layers: list[DynamicLayer], **inputs: Any) -> Tensor:
    """Last hidden states (B, T, C) behind the keys and values in ``layers``, which take in those of the inputs."""
    return backbone.body(**inputs, past_key_values=Cache(layers=list(layers)), use_cache=True).last_hidden_state


def _taken(layer: DynamicLayer, of: Tensor) -> DynamicLayer:
    """A layer that holds for each of B rows what another holds for its prefix."""
    taken = DynamicLayer()
    keys, values = layer.keys, layer.values
    assert keys is not None and values is not None
    taken.lazy_initialization(keys, values)
    taken.keys, taken.values = keys[of], values[of]
    return taken


def hidden(backbone: Backbone, rows: Shared, width: int) -> Tensor:
    """Last hidden states (B, T, C) of whole sequences, right-padded to ``width``; those of pads are not real."""
    found = read(backbone, rows)
    (_, p, c), (b, s, _) = found.prefixes.shape, found.suffixes.shape
    index = torch.zeros(b, width, dtype=torch.long)
    for row, (group, suffix) in enumerate(zip(rows.of, rows.suffixes, strict=True)):
        start, end = len(rows.prefixes[group]), len(rows.prefixes[group]) + len(suffix)
        index[row, :start] = torch.arange(group * p, group * p + start)
        last = len(rows.prefixes) * p + (row + 1) * s
        index[row, start:end] = torch.arange(last - len(suffix), last)
    states = torch.cat([found.prefixes.reshape(-1, c), found.suffixes.reshape(-1, c)])
    return states[index.to(states.device)]


def left_padded(rows: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T); pads repeat the row's first token."""
    width = max(map(len, rows))
    ids = [[row[0]] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def additive(backbone: Backbone, real: Tensor, t: int) -> Tensor | None:
    """What to add to the scores (B, 1, T, S) of the last T of S positions, of which some are real (B, S); None where
    all earlier ones count, and ``real`` itself where layers see only a window, whose mask is the model's to make."""
    s = real.shape[1]
    if not backbone.sees(s):
        return real
    if t == s and real.all():
        return None
    later = torch.ones(t, s, dtype=torch.bool, device=real.device).triu(1 + s - t)
    unseen = later | (real == 0)[:, None, None]
    return torch.zeros(unseen.shape, dtype=backbone.model.dtype, device=real.device).masked_fill_(unseen, HIDDEN)
