"""Keys and values of the tokens that a model has read, in preallocated buffers.

Shapes: B rows, S positions, K key and value heads, D head channels, N positions that are written at once, L positions
of one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

GROWTH = 32  # positions by which a buffer grows
SPARE_SHARE = 4  # a buffer that gets more rows has room for a further one for each 4 of them


class PreallocatedKVCache(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values: views (B, K, S, D) of buffers that have capacity for more positions.

    With ``shows_capacity`` the views include the positions that are not written yet, zeros that the mask must hide:
    then the views are contiguous, as matrix products want them.
    """

    def __init__(self, shows_capacity: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shows_capacity, self.end = shows_capacity, 0
        self.buffers: list[Tensor] = []  # of keys and of values

    def get_seq_length(self) -> int:
        """Return how many positions are written."""
        return self.end

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values (B, K, new positions, D); return the views of all."""
        start, end = self.end, self.end + key_states.shape[2]
        if not self.buffers:
            self.buffers = [_with_capacity(states[:, :, :0], end) for states in (key_states, value_states)]
            self.is_initialized = True
        if end > self.buffers[0].shape[2]:
            self.buffers = [_with_capacity(view, end) for view in (self.keys, self.values)]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: len(states), :, start:end] = states
        return self._set_views(len(key_states), end)

    def _set_views(self, rows: int, end: int) -> tuple[Tensor, Tensor]:
        self.end = end
        shown = None if self.shows_capacity else end
        self.keys, self.values = (buffer[:rows, :, :shown] for buffer in self.buffers)
        return self.keys, self.values

    def write(self, shape: tuple[int, int], places: tuple[Tensor, Tensor], states: Sequence[Tensor]) -> None:
        """Write keys and values (N, K, D) at ``places``, (N,) rows and (N,) columns of ``shape`` = (B, S)."""
        for number, states_NKD in enumerate(states):
            if len(self.buffers) == number:  # zeros: nothing is ever written before the start of a padded row
                _, heads, channels = states_NKD.shape
                self.buffers.append(states_NKD.new_zeros(shape[0], heads, capacity(shape[1]), channels))
            self.buffers[number][places[0], :, places[1]] = states_NKD
        self.is_initialized = True
        self._set_views(*shape)

    def show_capacity(self, shows: bool) -> None:
        """Let the views include the positions that are not written yet, or not."""
        self.shows_capacity = shows
        if self.buffers:
            self._set_views(len(self.keys), self.end)  # type: ignore[arg-type]

    def row(self, place: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return a row's keys and values (1, K, positions, D) of the positions from ``start`` to ``end``."""
        keys, values = (buffer[place : place + 1, :, start:end] for buffer in self.buffers)
        return keys, values

    def append_rows(self, added: Sequence[tuple[Tensor, Tensor]], end: int) -> None:
        """Add rows whose keys and values (1, K, L, D) end at column ``end``, as those of all rows do."""
        first = len(self.keys) if self.buffers else 0  # type: ignore[arg-type]
        total = first + len(added)
        for number in range(2):
            buffer = self.buffers[number] if self.buffers[number:] else None
            if buffer is None or total > len(buffer):
                _, k, _, d = added[0][number].shape
                s = capacity(end) if buffer is None else buffer.shape[2]
                larger = added[0][number].new_zeros(total if buffer is None else slots_for(total), k, s, d)
                if buffer is None:
                    self.buffers.append(larger)
                else:
                    larger[:first] = buffer[:first]
                    self.buffers[number] = larger
            for place, pair in enumerate(added, first):
                states_KLD = pair[number][0]
                start = end - states_KLD.shape[1]
                self.buffers[number][place, :, :start] = 0  # a row that has left may have been here
                self.buffers[number][place, :, start:end] = states_KLD
        self.is_initialized = True
        self._set_views(total, end)

    def clear(self) -> None:
        """Free the memory."""
        self.buffers, self.keys, self.values = [], None, None

    def move_rows(self, source: list[int], target: list[int], count: int) -> None:
        """Copy the ``source`` rows over the ``target`` rows, then keep the first ``count`` rows only."""
        for buffer in self.buffers if source else []:
            buffer[target, :, : self.end] = buffer[source, :, : self.end]
        self._set_views(count, self.end)


def capacity(positions: int) -> int:
    """Return how many positions a buffer made for this many has."""
    return -(-positions // GROWTH) * GROWTH


def slots_for(rows: int) -> int:
    """Return for how many rows a buffer that gets more of them has room, so that not every new one moves all."""
    return rows + rows // SPARE_SHARE


def _with_capacity(states_BKSD: Any, end: int) -> Tensor:
    """Copy states to the start of a zeroed buffer with capacity for ``end`` positions."""
    b, k, s, d = states_BKSD.shape
    buffer: Tensor = states_BKSD.new_zeros(b, k, capacity(end), d)
    buffer[:, :, :s] = states_BKSD
    return buffer
