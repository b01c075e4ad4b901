"""What sequences have in common at their start, computed once: a context with several questions, an instruction.

A causal model's states of a prefix don't depend on what follows. So all prefixes, and what is each sequence's own, lie
behind one another in a single row without pads; only attention sees which tokens come before which. States and
gradients are those of whole sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gptask.data.prefixes import prefix_groups
from gptask.model.engine import attention, linear

if TYPE_CHECKING:
    from gptask.model.engine.interface import EngineBackbone

MIN_SAVING = 0.05  # share of padded tokens that must be saved for the detour to pay


@dataclass
class PrefixSplit:
    """B sequences as G prefixes and B suffixes, all of them token ids."""

    prefixes: list[list[int]]
    suffixes: list[list[int]]
    of: list[int]  # (B,) number of each sequence's prefix

    @property
    def size(self) -> int:
        """N, the tokens that are computed."""
        return sum(map(len, self.prefixes)) + sum(map(len, self.suffixes))


def split(rows: Sequence[list[int]], share: bool = True) -> PrefixSplit:
    """Prefixes and suffixes of token ids; one empty prefix where nothing is shared."""
    found = PrefixSplit([], [[]] * len(rows), [0] * len(rows))
    parts = list(prefix_groups([np.asarray(row) for row in rows])) if share else []
    if len(parts) in (0, len(rows)):
        parts = [([*range(len(rows))], 0)]
    for members, prefix in parts:
        for row in members:
            found.suffixes[row], found.of[row] = rows[row][prefix:], len(found.prefixes)
        found.prefixes.append(rows[members[0]][:prefix])
    return found


class PackedLayout:
    """Where the tokens of B sequences lie in a row of N: G prefixes (P at most), then B suffixes (S at most)."""

    def __init__(self, rows: PrefixSplit, device: Any, dtype: torch.dtype) -> None:
        of = torch.tensor(rows.of)
        self.prefix, self.prefix_real, start = _places(rows.prefixes, 0)  # (G, P)
        self.own, self.own_real, _ = _places(rows.suffixes, start)  # (B, S)
        self.keys = torch.cat([self.prefix[of], self.own], 1)  # (B, P + S)
        self.real = torch.cat([self.prefix_real[of], self.own_real], 1)
        before = self.prefix_real.sum(1)[of]
        self.lengths = before + self.own_real.sum(1)
        self.mask = attention.additive(self.real, self.own.shape[1], dtype).to(device)  # (B, 1, S, P + S)
        ids = [token for part in (rows.prefixes, rows.suffixes) for row in part for token in row]
        self.own_position = _position(self.own_real) + before[:, None]  # (B, S)
        position = torch.cat([_position(self.prefix_real)[self.prefix_real], self.own_position[self.own_real]])
        self._longest = int(self.lengths.max())
        self._windowed: dict[int, tuple[Tensor | None, Tensor]] = {}
        self.told: list[tuple[Tensor, Tensor, int | None]] | None = None  # a list takes layers' keys, values, windows
        self.inputs = {"input_ids": torch.tensor([ids]).to(device), "position_ids": position[None].to(device)}
        self.prefix_at, self.own_at = (real.flatten().nonzero()[:, 0] for real in (self.prefix_real, self.own_real))
        for name in ("prefix", "prefix_at", "own", "own_real", "own_at", "keys", "real"):
            setattr(self, name, getattr(self, name).to(device))

    def whole(self, states: Tensor, width: int) -> Tensor:
        """States (B, T, C) of whole sequences, right-padded to ``width``, from those of the row (N, C)."""
        index = torch.zeros(len(self.real), width, dtype=torch.long, device=states.device)
        index[self._in_whole(width)] = self.keys[self.real]
        return states.index_select(0, index.flatten()).view(*index.shape, -1)

    def row(self, needed: Tensor) -> Tensor:
        """(N,) which states of the row are ``needed`` (B, T) of whole sequences."""
        return self.only(self.keys[self.real][needed[self._in_whole(needed.shape[1])]])

    def _in_whole(self, width: int) -> Tensor:
        """(B, T) where whole sequences, right-padded to ``width``, have their tokens."""
        return (torch.arange(width) < self.lengths[:, None]).to(self.keys.device)

    def only(self, places: Tensor) -> Tensor:
        """(N,) true at some places of the row."""
        here = torch.zeros(self.inputs["input_ids"].shape[1], dtype=torch.bool, device=places.device)
        here[places] = True
        return here

    def last(self) -> Tensor:
        """(B,) where the last token of each sequence is."""
        return self.own.gather(1, self.own_real.sum(1, keepdim=True) - 1)[:, 0]

    def _masks(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """What to add to scores of prefixes (1, 1, P, P), None if only later tokens are hidden, and of suffixes
        (B, 1, S, P + S), where a token sees the ``window`` positions that end with it."""
        if window is None or window >= self._longest:
            return None, self.mask
        if window not in self._windowed:
            start, device = torch.arange(self.prefix.shape[1]), self.mask.device
            keys = torch.cat([start.expand(len(self.real), -1), self.own_position], 1)  # (B, P + S)
            far = (self.own_position[:, :, None] - keys[:, None] >= window).to(device)
            own = self.mask.masked_fill(far[:, None], attention.HIDDEN)
            causal = attention.additive(torch.ones(1, len(start), device=device), len(start), own.dtype)
            far = (start[:, None] - start >= window).to(device)
            self._windowed[window] = causal.masked_fill_(far, attention.HIDDEN) if far.any() else None, own
        return self._windowed[window]

    def attend(
        self, attention: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, window: int | None = None
    ) -> Tensor:
        """Attention of queries (1, H, N, D) to keys and values (1, K, N, D): states (1, N, H, D). A token sees all
        before it in its sequence, or the ``window`` positions that end with it.

        ``attention`` computes the same for sequences; it gets queries, keys, values and a mask to add.
        """
        if self.told is not None:
            self.told.append((key, value, window))
        prefix_mask, mask = self._masks(window)
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (N, H or K, D)
        parts = []
        if self.prefix.shape[1]:
            states = attention(*(_rows(part, self.prefix) for part in (q, k, v)), prefix_mask)
            parts.append(states.flatten(0, 1).index_select(0, self.prefix_at))
        states = attention(_rows(q, self.own), _rows(k, self.keys), _rows(v, self.keys), mask)
        parts.append(states.flatten(0, 1).index_select(0, self.own_at))
        return torch.cat(parts)[None]


def _places(rows: Sequence[list[int]], start: int) -> tuple[Tensor, Tensor, int]:
    """Places (B, T) of tokens that lie behind one another from ``start`` on, which are real, and where they end."""
    lengths = torch.tensor([len(row) for row in rows])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    first = start + lengths.cumsum(0) - lengths
    return (first[:, None] + _position(real)).where(real, start), real, start + int(lengths.sum())


def _position(real: Tensor) -> Tensor:
    return torch.arange(real.shape[1]).expand_as(real)


def _rows(states: Tensor, places: Tensor) -> Tensor:
    """States (B, H, T, D) at places (B, T) of a row (N, H, D)."""
    found = states.index_select(0, places.flatten()).view(*places.shape, *states.shape[1:])
    return found.transpose(1, 2)


def read(backbone: EngineBackbone, layout: PackedLayout, needed: Tensor | None = None) -> Tensor:
    """Last hidden states (N, C) in one forward pass, right at least where they are ``needed`` (N,)."""
    mask = attention.open_mask(backbone.model)
    with attention.packed_attention(layout), linear.only_positions(needed):
        return backbone.body(**layout.inputs, attention_mask=mask, use_cache=False).last_hidden_state[0]


def hidden(
    backbone: EngineBackbone, rows: Sequence[list[int]], width: int, needed: Tensor | None = None
) -> Tensor | None:
    """Last hidden states (B, T, C) of sequences, right-padded to ``width``, right at least where they are ``needed``
    (B, T); None where little is saved."""
    found = split(rows)
    if found.size > (1 - MIN_SAVING) * len(rows) * width:
        return None
    layout = PackedLayout(found, backbone.device, backbone.model.dtype)
    needed = None if needed is None else layout.row(needed)
    return layout.whole(read(backbone, layout, needed=needed), width)


def supports_packing(backbone: EngineBackbone) -> bool:
    """Whether a sequence's states are the same behind another one in its row: not where layers mix tokens by other
    means than our attention (convolutions, state spaces)."""
    with torch.inference_mode():
        states = [read(backbone, _two(backbone, first))[3:] for first in ([0, 1, 2], [3, 4, 5])]
    return torch.equal(*states)


def passes_window(backbone: EngineBackbone) -> bool:
    """Whether each layer tells our attention of the window that its configuration gives it, if any."""
    config, layout = backbone.config, _two(backbone, [0, 1, 2])
    layout.told = []
    with torch.inference_mode():
        read(backbone, layout)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    known = {"full_attention": None, "sliding_attention": window}
    return [window for *_, window in layout.told] == [known.get(kind, 0) for kind in kinds]  # 0: what no layer tells


def _two(backbone: EngineBackbone, first: list[int]) -> PackedLayout:
    """A sequence, and another one that shares nothing with it, in one row."""
    return PackedLayout(split([first, [6, 7, 8]], share=False), backbone.device, backbone.model.dtype)
