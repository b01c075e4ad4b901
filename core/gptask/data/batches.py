"""Which items go into a batch together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

BUSY_TOKENS = 512  # padded tokens that keep the processor busy


class BatchesByLength(Sampler[list[int]]):
    """Batches of similar length, of at most ``max_examples`` examples and ``max_tokens`` padded tokens.

    With a ``seed``, for training, chunks of a shuffled order are sorted by length (lengths mix, batches vary from epoch
    to epoch). Without one, for scoring, all items are sorted, longest first, so that memory runs out at once or never.
    A batch of more than `BUSY_TOKENS` tokens is closed before the share of pads exceeds ``max_padding``.
    ``shard`` is a process's rank and the number of processes, among which the batches are divided. For training all get
    the same number: the last one may be a filler (`is_filler`), which must not count. For scoring a process that would
    get none gets an empty one. ``limit`` bounds the batches of all processes together.
    ``common`` holds the prefix group (N,) of each item and the length (N,) of its shared prefix
    (`prefixes.shared_prefixes`): a group's items stay neighbours, and their prefix counts once. ``parts`` (N,) numbers
    items that must not be in a batch with those of another part. ``costs`` are the padded tokens of each batch. The
    first pass leaves out ``first_batch`` batches, which a resumed training has behind it.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        max_examples: int,
        max_tokens: int,
        seed: int | None,
        shard: tuple[int, int] = (0, 1),
        max_padding: float = 1.0,
        common: tuple[np.ndarray, np.ndarray] | None = None,
        first_batch: int = 0,
        limit: int | None = None,
        parts: np.ndarray | None = None,
    ) -> None:
        self.lengths, self.max_examples, self.max_tokens = lengths, max_examples, max_tokens
        self.max_padding = max_padding
        self.first_batch = self._next_first = first_batch
        nothing_shared = np.arange(len(lengths)), np.zeros_like(lengths)
        self.groups: np.ndarray
        self.prefix_lengths: np.ndarray
        self.groups, self.prefix_lengths = nothing_shared if common is None else common
        generator = None if seed is None else np.random.default_rng(seed)
        order = self._order(generator)
        orders = [order] if parts is None else [order[parts[order] == part] for part in np.unique(parts)]
        packed = [batch for one_part in orders for batch in self._pack(one_part)]
        if generator:
            generator.shuffle(packed)
        packed = packed[:limit]
        rank, world_size = shard
        shard_batches = packed[rank::world_size]
        self.has_filler = generator is not None and 0 < len(packed) % world_size <= rank
        if self.has_filler:
            shard_batches.append(min(packed, key=lambda batch: batch[1]))
        elif packed and not shard_batches:
            shard_batches = [([], 0)]
        self.batches = [batch for batch, _ in shard_batches]
        self.costs = [cost for _, cost in shard_batches]

    def _order(self, generator: np.random.Generator | None) -> np.ndarray:
        """Item numbers (N,), group after group, the longest groups first: of all, or of each chunk if shuffled."""
        if not len(self.lengths):
            return self.groups
        by_group = np.lexsort((-self.lengths, self.groups))  # the longest item of a group first
        group_starts = np.flatnonzero(np.diff(self.groups[by_group], prepend=-1))
        group_items, longest = np.split(by_group, group_starts[1:]), self.lengths[by_group[group_starts]]
        order = np.argsort(-longest, kind="stable")
        if generator:
            order = generator.permutation(len(group_items))
            chunks = np.array_split(order, max(1, len(self.lengths) // (50 * self.max_examples)))
            order = np.concatenate([chunk[np.argsort(-longest[chunk], kind="stable")] for chunk in chunks])
        return np.concatenate([group_items[number] for number in order])

    def _pack(self, order: np.ndarray) -> Iterator[tuple[list[int], int]]:
        """Batches, each with its padded tokens: of its prefixes, and of what follows them."""
        batch: list[int] = []
        groups: set[int] = set()  # of the batch, as are the lengths, the tokens without pads and the cost
        longest_prefix = longest_suffix = real_tokens = cost = 0
        for index in order.tolist():
            group, prefix = self.groups[index], int(self.prefix_lengths[index])
            suffix = int(self.lengths[index] - self.prefix_lengths[index])
            new_tokens = suffix + (0 if group in groups else prefix)
            padded = max(longest_prefix, prefix) * len(groups | {group})
            padded += max(longest_suffix, suffix) * (len(batch) + 1)
            wasteful = padded > BUSY_TOKENS and padded - real_tokens - new_tokens > self.max_padding * padded
            if batch and (len(batch) == self.max_examples or padded > self.max_tokens or wasteful):
                yield batch, cost
                batch, groups, longest_prefix, longest_suffix, real_tokens = [], set(), 0, 0, 0
                padded = new_tokens = prefix + suffix
            batch.append(index)
            groups.add(group)
            longest_prefix, longest_suffix = max(longest_prefix, prefix), max(longest_suffix, suffix)
            real_tokens, cost = real_tokens + new_tokens, padded
        if batch:
            yield batch, cost

    def __iter__(self) -> Iterator[list[int]]:
        first, self._next_first = self._next_first, 0
        yield from self.batches[first:]

    def __len__(self) -> int:
        return len(self.batches)

    def is_filler(self, number: int) -> bool:
        """Whether a batch of the epoch is there only because the other processes have as many."""
        return self.has_filler and number == len(self.batches) - 1


def epoch_of_batches(trainer: Any) -> int:
    """The epoch whose order of batches is trained now: that in which the trainer asked for a loader."""
    every = trainer.reload_dataloaders_every_n_epochs if trainer else 0
    return int(trainer.current_epoch - trainer.current_epoch % every) if every else 0


def first_batch_of(loader: Any) -> int:
    """The number of the batch that a training loader begins with: above 0 for one that continues within an epoch."""
    sampler = getattr(loader, "batch_sampler", None)
    return int(getattr(loader, "first_batch", getattr(sampler, "first_batch", 0)))
