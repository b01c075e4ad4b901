"""Packed forward passes: no pads, and what sequences have in common at their start is computed once.

A causal model's states of a prefix (a context with several questions, an instruction) do not depend on what follows
it. So all prefixes, and the rest of each sequence, lie one after another in a single row without pads; only attention
knows which tokens precede which. States and gradients are those of whole sequences.

Shapes: B sequences, T positions of padded sequences, G prefixes, P positions of the longest prefix, S positions of the
longest suffix, L = P + S, N tokens of the packed row, H query heads, K key and value heads, D head channels, C model
channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gptask.data.prefixes import prefix_groups
from gptask.model.engine import attention
from gptask.model.engine.forward_state import forward_state
from gptask.model.engine.last_layer import needed_places

if TYPE_CHECKING:
    from gptask.model.engine.interface import EngineBackbone

MIN_SAVING = 0.05  # share of the padded tokens that packing must save to pay


@dataclass
class PrefixSplit:
    """B sequences as G prefixes and B suffixes, all of them token ids."""

    prefixes: list[list[int]]
    suffixes: list[list[int]]
    prefix_numbers: list[int]  # (B,) number of each sequence's prefix

    @property
    def size(self) -> int:
        """N, the tokens that are computed."""
        return sum(map(len, self.prefixes)) + sum(map(len, self.suffixes))


def split_prefixes(rows: Sequence[list[int]], share: bool = True) -> PrefixSplit:
    """Split token ids into prefixes and suffixes; the only prefix is empty where nothing is shared."""
    groups = list(prefix_groups([np.asarray(row) for row in rows])) if share else []
    if len(groups) in (0, len(rows)):
        groups = [([*range(len(rows))], 0)]
    parts = PrefixSplit([], [[]] * len(rows), [0] * len(rows))
    for number, (members, length) in enumerate(groups):
        parts.prefixes.append(rows[members[0]][:length])
        for row in members:
            parts.suffixes[row], parts.prefix_numbers[row] = rows[row][length:], number
    return parts


class PackedLayout:
    """Where the tokens of B sequences lie in a row of N: first G prefixes, then B suffixes.

    A place is the index of a token in the row. ``recorded``, if it is a list, collects each layer's keys and values
    (1, K, N, D) and its window.
    """

    def __init__(self, parts: PrefixSplit, device: Any, dtype: torch.dtype) -> None:
        numbers_B = torch.tensor(parts.prefix_numbers)
        prefix_places_GP, prefix_real_GP, start = _places(parts.prefixes, 0)
        suffix_places_BS, suffix_real_BS, _ = _places(parts.suffixes, start)
        prefix_lengths_B = prefix_real_GP.sum(1)[numbers_B]
        real_BL = torch.cat([prefix_real_GP[numbers_B], suffix_real_BS], 1)
        self.lengths_B = prefix_lengths_B + suffix_real_BS.sum(1)
        self.mask_B1SL = attention.additive_mask(real_BL, suffix_real_BS.shape[1], dtype).to(device)
        self.suffix_positions_BS = _positions(suffix_real_BS) + prefix_lengths_B[:, None]
        self._longest = int(self.lengths_B.max())
        self._masks_of_windows: dict[int, tuple[Tensor | None, Tensor]] = {}
        self.recorded: list[tuple[Tensor, Tensor, int | None]] | None = None

        ids = [token for rows in (parts.prefixes, parts.suffixes) for row in rows for token in row]
        prefix_positions, suffix_positions = _positions(prefix_real_GP), self.suffix_positions_BS
        positions_N = torch.cat([prefix_positions[prefix_real_GP], suffix_positions[suffix_real_BS]])
        self.inputs = {"input_ids": torch.tensor([ids]).to(device), "position_ids": positions_N[None].to(device)}

        self.real_BL = real_BL.to(device)
        self.places_BL = torch.cat([prefix_places_GP[numbers_B], suffix_places_BS], 1).to(device)
        self.prefix_places_GP = prefix_places_GP.to(device)
        self.suffix_places_BS = suffix_places_BS.to(device)
        self.prefix_tokens = prefix_real_GP.flatten().nonzero()[:, 0].to(device)  # of G·P places, those that are real
        self.suffix_tokens = suffix_real_BS.flatten().nonzero()[:, 0].to(device)  # of B·S places, those that are real
        self.last_places_B = suffix_places_BS.gather(1, suffix_real_BS.sum(1, keepdim=True) - 1)[:, 0].to(device)

    def token_places(self) -> Tensor:
        """Return the places of all sequences' tokens, one sequence after another; shared tokens appear repeatedly."""
        return self.places_BL[self.real_BL]

    def unpack(self, states_NC: Tensor, width: int) -> Tensor:
        """Return the states (B, T, C) of whole sequences, right-padded to ``width``, from those of the row."""
        places_BT = torch.zeros(len(self.real_BL), width, dtype=torch.long, device=states_NC.device)
        places_BT[self._real_tokens(width)] = self.token_places()
        return states_NC.index_select(0, places_BT.flatten()).view(*places_BT.shape, -1)

    def pack(self, states_BTC: Tensor) -> Tensor:
        """Return the states (N, C) of the row's tokens from those of whole sequences, right-padded."""
        states_LC = states_BTC[self._real_tokens(states_BTC.shape[1])]
        sources_N = torch.zeros(self.inputs["input_ids"].shape[1], dtype=torch.long, device=states_LC.device)
        numbers_L = torch.arange(len(states_LC), device=states_LC.device)
        # a token that sequences share is that of the first of them
        sources_N.scatter_reduce_(0, self.token_places(), numbers_L, "amin", include_self=False)
        return states_LC.index_select(0, sources_N)

    def pack_flags(self, needed_BT: Tensor) -> Tensor:
        """Return the flags (N,) of the row's tokens, true where those of whole sequences are."""
        return self.flags_at(self.token_places()[needed_BT[self._real_tokens(needed_BT.shape[1])]])

    def _real_tokens(self, width: int) -> Tensor:
        """(B, T) true at the real tokens of whole sequences, right-padded to ``width``."""
        return (torch.arange(width) < self.lengths_B[:, None]).to(self.places_BL.device)

    def flags_at(self, places: Tensor) -> Tensor:
        """Return flags (N,) that are true at these places of the row."""
        flags_N = torch.zeros(self.inputs["input_ids"].shape[1], dtype=torch.bool, device=places.device)
        flags_N[places] = True
        return flags_N

    def _masks(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """Additive masks of prefixes (1, 1, P, P), None if they only hide later tokens, and of suffixes (B, 1, S, L).

        With a ``window``, a token sees that many positions, its own being the last.
        """
        if window is None or window >= self._longest:
            return None, self.mask_B1SL
        if window not in self._masks_of_windows:
            positions_P, device = torch.arange(self.prefix_places_GP.shape[1]), self.mask_B1SL.device
            prefix_positions_BP = positions_P.expand(len(self.real_BL), -1)
            key_positions_BL = torch.cat([prefix_positions_BP, self.suffix_positions_BS], 1)
            far_BSL = (self.suffix_positions_BS[:, :, None] - key_positions_BL[:, None] >= window).to(device)
            suffix_mask_B1SL = self.mask_B1SL.masked_fill(far_BSL[:, None], attention.MASKED_SCORE)
            far_PP = (positions_P[:, None] - positions_P >= window).to(device)
            all_real_1P = torch.ones(1, len(positions_P), device=device)
            causal_11PP = attention.additive_mask(all_real_1P, len(positions_P), suffix_mask_B1SL.dtype)
            prefix_mask_11PP = causal_11PP.masked_fill_(far_PP, attention.MASKED_SCORE) if far_PP.any() else None
            self._masks_of_windows[window] = prefix_mask_11PP, suffix_mask_B1SL
        return self._masks_of_windows[window]

    def attend(
        self, padded_attention: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, window: int | None = None
    ) -> Tensor:
        """Attend from queries (1, H, N, D) to keys and values (1, K, N, D); returns states (1, N, H, D).

        A token sees all tokens before it in its sequence, or the ``window`` positions of which its own is the last.
        ``padded_attention`` computes the same for padded sequences, from queries, keys, values and an additive mask.
        """
        if self.recorded is not None:
            self.recorded.append((key, value, window))
        prefix_mask, suffix_mask = self._masks(window)
        q_NHD, k_NKD, v_NKD = (states[0].transpose(0, 1) for states in (query, key, value))
        parts = []
        if self.prefix_places_GP.shape[1]:
            prefixes = (_gather(states, self.prefix_places_GP) for states in (q_NHD, k_NKD, v_NKD))
            states_GPHD = padded_attention(*prefixes, prefix_mask)
            parts.append(states_GPHD.flatten(0, 1).index_select(0, self.prefix_tokens))
        keys, values = _gather(k_NKD, self.places_BL), _gather(v_NKD, self.places_BL)
        states_BSHD = padded_attention(_gather(q_NHD, self.suffix_places_BS), keys, values, suffix_mask)
        parts.append(states_BSHD.flatten(0, 1).index_select(0, self.suffix_tokens))
        return torch.cat(parts)[None]


def _places(rows: Sequence[list[int]], start: int) -> tuple[Tensor, Tensor, int]:
    """Places (B, T) of rows that lie one after another from ``start`` on, which of them are real, and their end.

    A pad has the place ``start``.
    """
    lengths_B = torch.tensor([len(row) for row in rows])
    real_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    first_B = start + lengths_B.cumsum(0) - lengths_B
    return (first_B[:, None] + _positions(real_BT)).where(real_BT, start), real_BT, start + int(lengths_B.sum())


def _positions(real_BT: Tensor) -> Tensor:
    return torch.arange(real_BT.shape[1]).expand_as(real_BT)


def _gather(states_NHD: Tensor, places_BT: Tensor) -> Tensor:
    """States (B, H, T, D) at places of a row."""
    states_BTHD = states_NHD.index_select(0, places_BT.flatten()).view(*places_BT.shape, *states_NHD.shape[1:])
    return states_BTHD.transpose(1, 2)


def forward_packed(
    backbone: EngineBackbone, layout: PackedLayout, needed_N: Tensor | None = None, embeds_NC: Tensor | None = None
) -> Tensor:
    """Return the last hidden states (N, C) of a packed row, right at least where they are needed.

    The embeddings of its tokens are ``embeds_NC`` where they are given.
    """
    inputs = dict(layout.inputs)
    if embeds_NC is not None:
        del inputs["input_ids"]
        inputs["inputs_embeds"] = embeds_NC[None]
    mask_1111 = attention.open_mask(backbone.model)
    with forward_state(layout=layout, needed_places=needed_places(needed_N)):
        output = backbone.body(**inputs, attention_mask=mask_1111, use_cache=False)
    states_NC: Tensor = output.last_hidden_state[0]
    return states_NC


def packed_hidden(
    backbone: EngineBackbone,
    rows: Sequence[list[int]],
    width: int,
    needed: Tensor | None = None,
    embeds: Tensor | None = None,
) -> Tensor | None:
    """Return the last hidden states (B, T, C) of sequences, right-padded to ``width``; None where packing saves little.

    They are right at least where they are ``needed`` (B, T). Where ``embeds`` (B, T, C) are given, ``rows`` are numbers
    that are equal where the embeddings are.
    """
    parts = split_prefixes(rows)
    if parts.size > (1 - MIN_SAVING) * len(rows) * width:
        return None
    layout = PackedLayout(parts, backbone.device, backbone.model.dtype)
    needed_N = None if needed is None else layout.pack_flags(needed)
    embeds_NC = None if embeds is None else layout.pack(embeds)
    return layout.unpack(forward_packed(backbone, layout, needed_N, embeds_NC), width)


def supports_packing(backbone: EngineBackbone) -> bool:
    """Whether a sequence's states are the same behind another sequence in its row, tried on token ids.

    They are not where layers mix tokens by other means than our attention (convolutions, state spaces).
    """
    with torch.inference_mode():
        states = [forward_packed(backbone, _two_sequences(backbone, first))[3:] for first in ([0, 1, 2], [3, 4, 5])]
    return torch.equal(*states)


def passes_window(backbone: EngineBackbone) -> bool:
    """Whether each layer passes to our attention the window that its configuration gives it, if any."""
    config, layout = backbone.config, _two_sequences(backbone, [0, 1, 2])
    layout.recorded = []
    with torch.inference_mode():
        forward_packed(backbone, layout)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    window_of_kind = {"full_attention": None, "sliding_attention": window}
    expected = [window_of_kind.get(kind, 0) for kind in kinds]  # 0, which no layer passes, for an unknown kind
    return [passed for *_, passed in layout.recorded] == expected


def _two_sequences(backbone: EngineBackbone, first: list[int]) -> PackedLayout:
    """One row of a sequence and another one that shares nothing with it."""
    return PackedLayout(split_prefixes([first, [6, 7, 8]], share=False), backbone.device, backbone.model.dtype)
