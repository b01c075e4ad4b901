"""Which items go into a batch together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np
from torch.utils.data import Sampler

BUSY_TOKENS = 512  # padded tokens that keep the processor busy


class BatchesByLength(Sampler[list[int]]):
    """Batches of similar length under a budget of examples and of padded tokens.

    Training draws chunks of a shuffled order and sorts inside each (lengths mix, batches vary from epoch to epoch);
    scoring sorts everything, longest first, so that running out of memory happens at once. ``padding`` is the share of
    pads from which a batch of `BUSY_TOKENS` tokens is closed. ``common`` tells which items share a prefix, and how long it
    is (`prefixes.prefixes`): they stay neighbours, and their prefix counts once.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        examples: int,
        tokens: int,
        seed: int | None,
        share: tuple[int, int] = (0, 1),
        padding: float = 1.0,
        common: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.lengths, self.examples, self.tokens, self.padding = lengths, examples, tokens, padding
        alone = np.arange(len(lengths)), np.zeros_like(lengths)
        self.of: np.ndarray
        self.prefix: np.ndarray
        self.of, self.prefix = alone if common is None else common
        generator = None if seed is None else np.random.default_rng(seed)
        packed = list(self._pack(self._order(generator)))
        if generator:
            generator.shuffle(packed)
        rank, world = share  # every process gets equally many batches: the first ones once more, if need be
        total = -(-len(packed) // world) * world
        mine = list(islice(cycle(packed), total))[rank::world]
        self.batches = [batch for batch, _ in mine]
        self.costs = [cost for _, cost in mine]  # padded tokens of each batch

    def _order(self, generator: np.random.Generator | None) -> np.ndarray:
        """Item numbers: what shares a prefix in one piece, the pieces longest first, in all or in shuffled chunks."""
        if not len(self.lengths):
            return self.of
        members = np.lexsort((-self.lengths, self.of))  # by piece, the longest first
        firsts = np.flatnonzero(np.diff(self.of[members], prepend=-1))
        pieces, longest = np.split(members, firsts[1:]), self.lengths[members[firsts]]
        order = np.argsort(-longest, kind="stable")
        if generator:
            order = generator.permutation(len(pieces))
            chunks = np.array_split(order, max(1, len(self.lengths) // (50 * self.examples)))
            order = np.concatenate([chunk[np.argsort(-longest[chunk], kind="stable")] for chunk in chunks])
        return np.concatenate([pieces[number] for number in order])

    def _pack(self, order: np.ndarray) -> Iterator[tuple[list[int], int]]:
        """Batches and their padded tokens."""
        batch: list[int] = []
        cost = prefix = suffix = real = 0
        pieces: set[int] = set()
        for index in order.tolist():
            shared, own, piece = int(self.prefix[index]), int(self.lengths[index] - self.prefix[index]), self.of[index]
            more = own + (0 if piece in pieces else shared)
            size = max(prefix, shared) * len(pieces | {piece}) + max(suffix, own) * (len(batch) + 1)
            wasteful = size > BUSY_TOKENS and size - real - more > self.padding * size
            if batch and (len(batch) == self.examples or size > self.tokens or wasteful):
                yield batch, cost
                batch, prefix, suffix, real, pieces = [], 0, 0, 0, set()
                size, more = shared + own, shared + own
            batch.append(index)
            pieces.add(piece)
            prefix, suffix, real, cost = max(prefix, shared), max(suffix, own), real + more, size
        if batch:
            yield batch, cost

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
