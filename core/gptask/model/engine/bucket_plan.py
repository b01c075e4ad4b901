"""Which rows are decoded in one bucket, and when rows move to another one.

Rows of a bucket are padded to the longest of them, and each bucket adds to the time of a step: rows enter one by one
and leave in any order, so that what was the best arrangement is not for long. Rows move as soon as the steps so far
have lost by their arrangement what moving takes (the rule of renting skis): moves and losses together take at most
twice the time that an arrangement known in advance would lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from gptask.model.engine import kv_cache
from gptask.model.engine.kv_cache import capacity, slots_for
from gptask.model.engine.length_bucket import LengthBucket, Source

BUCKET_COST = 4096  # positions of pads that one more bucket must save, on a CPU: what it adds to the time of a step
COPY_COST = 3  # positions that a step attends to in the time in which one is copied
PADS = 1.5  # positions of a bucket that is planned, relative to those that its rows have alone
MAX_MEMORY = 2  # positions of a bucket's buffers, relative to what its rows may need to their limits


def split_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Split row numbers into buckets at the least cost: the positions of their buffers, and `BUCKET_COST` for each.

    A bucket has at most `PADS` times the positions of its rows.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ends = [capacity(lengths[row]) for row in order]
    totals = [0, *accumulate(ends)]
    cuts = [0, *(n for n in range(1, len(ends)) if ends[n - 1] < ends[n]), len(ends)]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}  # cut -> least cost up to it, and the cuts before it
    for number, cut in enumerate(cuts[1:], 1):
        positions = {before: (cut - before) * ends[cut - 1] for before in cuts[:number]}
        cost, before = min(
            (best[before][0] + count + BUCKET_COST, before)
            for before, count in positions.items()
            if count <= PADS * (totals[cut] - totals[before])
        )
        best[cut] = cost, [*best[before][1], before]
    starts = best[len(ends)][1]
    return [order[start:end] for start, end in zip(starts, [*starts[1:], len(ends)], strict=True)]


@dataclass
class Group:
    """Rows that are to be decoded together: in the ``host``, where some of them are already, or in a new bucket."""

    host: LengthBucket | None
    moving: list[Source]
    cost: int  # of a step

    @property
    def copied(self) -> int:
        """The positions that are copied."""
        positions = sum(source.length for source in self.moving)
        if self.host and self.moving and len(self.host.rows) + len(self.moving) > self.host.slots:
            positions += len(self.host.rows) * self.host.end
        return positions


class BucketPlan:
    """The best arrangement of the rows of some buckets, and what the steps have lost for want of it.

    Without ``by_length``, all rows are decoded together, however long they are.
    """

    def __init__(self, by_length: bool) -> None:
        self.by_length = by_length
        self.lost = 0  # positions
        self._signature: list[tuple[int, int, int]] = []
        self._groups: list[Group] = []

    def rearranged(self, buckets: list[LengthBucket]) -> list[LengthBucket]:
        """The buckets of the next step: the same ones, or others once that pays or saves memory."""
        signature = [(id(bucket), bucket.changes, bucket.capacity) for bucket in buckets]
        if signature != self._signature:
            self._signature, self._groups = signature, self._plan(buckets)
        if not any(group.moving for group in self._groups):
            self.lost = 0
            return buckets
        cost = sum(_cost(len(bucket.rows), bucket.capacity) for bucket in buckets)
        self.lost += max(0, cost - sum(group.cost for group in self._groups))
        wasteful = self.by_length and any(bucket.positions > MAX_MEMORY * bucket.promised for bucket in buckets)
        if self.by_length and not wasteful and self.lost < COPY_COST * sum(group.copied for group in self._groups):
            return buckets
        self.lost, self._signature = 0, []
        return _carry_out(buckets, self._groups)

    def _plan(self, buckets: list[LengthBucket]) -> list[Group]:
        sources = [Source(bucket, place) for bucket in buckets for place in range(len(bucket.rows))]
        numbers = [*range(len(sources))]
        groups = split_by_length([source.length for source in sources]) if self.by_length else [numbers]
        hosts: set[LengthBucket] = set()
        planned = []
        for rows in sorted(([sources[number] for number in group] for group in groups), key=len, reverse=True):
            group = self._group(rows, hosts)
            hosts |= {group.host} if group.host else set()
            planned.append(group)
        return planned

    def _group(self, rows: list[Source], taken: set[LengthBucket]) -> Group:
        """The group of some rows, hosted by the bucket that most of them are in already, if it suits."""
        longest = max(source.length for source in rows)
        counts: dict[LengthBucket, int] = {}
        for bucket, _ in rows:
            counts[bucket] = counts.get(bucket, 0) + 1
        for host in sorted(counts, key=counts.__getitem__, reverse=True):
            moving = [source for source in rows if source.bucket is not host]
            if host not in taken and self._suits(host, rows, moving, longest):
                return Group(host, moving, _cost(len(rows), host.capacity))
        return Group(None, rows, _cost(len(rows), capacity(longest)))

    def _suits(self, host: LengthBucket, rows: list[Source], moving: list[Source], longest: int) -> bool:
        """Whether a bucket is wide enough for rows, and neither it nor its buffers are much too large for them."""
        if host.end < longest or not self.by_length:
            return host.end >= longest
        count = len(host.rows) + len(moving)
        slots = host.slots if count <= host.slots else slots_for(count)
        promised = sum(source.bucket.promised_to(source.place) for source in rows)
        narrow = host.capacity <= capacity(longest) + kv_cache.GROWTH
        return narrow and slots * host.capacity <= MAX_MEMORY * promised


def _cost(rows: int, positions: int) -> int:
    """What a bucket of so many rows and positions costs a step."""
    return rows * positions + BUCKET_COST


def _carry_out(buckets: list[LengthBucket], groups: list[Group]) -> list[LengthBucket]:
    """Move rows to their groups, layer by layer: no more than one layer's keys and values are there twice."""
    targets = [group.host or buckets[0].empty_like(max(source.length for source in group.moving)) for group in groups]
    moved = {source for group in groups for source in group.moving}
    staying = {
        bucket: [place for place in range(len(bucket.rows)) if Source(bucket, place) not in moved] for bucket in buckets
    }
    for layer in range(buckets[0].layers):
        for target, group in zip(targets, groups, strict=True):
            target.copy_rows(layer, group.moving)
        for bucket in set(buckets) - set(targets):
            bucket.buffers[layer].clear()
    for target, group in zip(targets, groups, strict=True):
        present = len(target.rows)
        rows = [source.bucket.rows[source.place] for source in group.moving]
        target.add_rows(rows, [source.length for source in group.moving])
        staying[target] = [*staying.get(target, []), *range(present, len(target.rows))]
    for target in targets:
        target.keep(staying[target])
    return targets
