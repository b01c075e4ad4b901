"""Keys and values of what was read, in buffers with room for more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

GROWTH = 32  # positions by which a buffer grows


class PreallocatedKVCache(DynamicLayer):
    """One layer's keys and values, views (B, K, S, D) of buffers that have room for more positions.

    A ``whole`` one shows that room too, zeros that the mask must hide: what it shows lies together in memory, as matrix
    products want it.
    """

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.whole, self.end = whole, 0
        self.room: list[Tensor] = []

    def get_seq_length(self) -> int:
        """Positions that are held."""
        return self.end

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind those that are there."""
        seen, end = self.end, self.end + key_states.shape[2]
        if not self.room:
            self.room, self.is_initialized = [_grown(new[:, :, :0], end) for new in (key_states, value_states)], True
        if end > self.room[0].shape[2]:
            self.room = [_grown(held, end) for held in (self.keys, self.values)]
        for buffer, new in zip(self.room, (key_states, value_states), strict=True):
            buffer[: len(new), :, seen:end] = new
        return self._show(len(key_states), end)

    def _show(self, rows: int, end: int) -> tuple[Tensor, Tensor]:
        self.end = end
        self.keys, self.values = (buffer[:rows, :, : None if self.whole else end] for buffer in self.room)
        return self.keys, self.values

    def cut(self, end: int) -> None:
        """Forget positions from ``end`` on."""
        if self.keys is not None:
            self._show(len(self.keys), end)

    def place(self, shape: tuple[int, int], where: tuple[Tensor, Tensor], read: Sequence[Tensor]) -> None:
        """Take over keys and values (N, K, D) of N positions, ``where`` = (N,) rows and (N,) columns of ``shape``."""
        for number, held in enumerate(read):
            if len(self.room) == number:  # zeros: nothing is ever written where a row has not begun
                self.room.append(held.new_zeros(shape[0], held.shape[1], capacity(shape[1]), held.shape[2]))
            self.room[number][where[0], :, where[1]] = held
        self.is_initialized = True
        self._show(*shape)

    def keep(self, rows: int, source: list[int], target: list[int]) -> None:
        """Copy some rows over others and keep the first ``rows``."""
        for buffer in self.room if source else []:
            buffer[target, :, : self.end] = buffer[source, :, : self.end]
        self._show(rows, self.end)


def capacity(positions: int) -> int:
    """How many positions a buffer has that is made for so many."""
    return -(-positions // GROWTH) * GROWTH


def _grown(held: Any, end: int) -> Tensor:
    """A buffer for ``end`` positions, with what is held (B, K, S, D) at its start."""
    rows, heads, seen, channels = held.shape
    buffer = held.new_zeros(rows, heads, capacity(end), channels)
    buffer[:, :, :seen] = held
    return buffer
