"""Items that are scored: those of many requests, runs and heads in one pass, taken fairly by request.

Shapes: B items, T positions, C channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from gptask.data.batches import BatchesByLength
from gptask.data.datamodule import collate
from gptask.model.out_of_memory import BatchDivider, is_out_of_memory
from gptask.serving.batching.failed_passes import FailedPasses
from gptask.serving.batching.work import ScoringWork
from gptask.serving.prometheus import ServerMetrics

T = TypeVar("T")


class ScoringRequest:
    """Scoring work with the numbers of the items that are left, the longest one last, and the outputs so far."""

    def __init__(self, work: ScoringWork) -> None:
        self.work = work
        self.left = sorted(range(len(work.items)), key=lambda number: int(work.items[number]["length"]))
        self.outputs: dict[int, Any] = {}

    def add(self, number: int, output: Any) -> None:
        """Take the output of an item; the last one ends the work."""
        self.outputs[number] = output
        if len(self.outputs) == len(self.work.items):
            self.work.finish([self.outputs[number] for number in range(len(self.outputs))])


class Entry(NamedTuple):
    """One item of a request."""

    request: ScoringRequest
    number: int

    @property
    def item(self) -> dict[str, Any]:
        """The encoded item."""
        item: dict[str, Any] = self.request.work.items[self.number]
        return item


class HeadBatch:
    """Entries of one head, as the batch that it gets; what it needs of their states (B, T) may be None, for all."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries, work = entries, entries[0].request.work
        self.model, self.head = work.model, work.head
        self.batch = collate([entry.item for entry in entries]).to(work.model.backbone.device)
        self.needed_BT = self.head.needed_positions(self.batch)

    def predict(self, states_BTC: Tensor) -> list[Any]:
        """The head's outputs, from states that may have been computed beside longer ones."""
        outputs = list(self.head.predict(states_BTC[:, : self.batch.input_ids.shape[1]], self.batch))
        if len(outputs) != len(self.entries):
            kind = type(self.head).__name__
            raise ValueError(f"{kind}.predict returned {len(outputs)} outputs for {len(self.entries)} sequences")
        return outputs


class ScoringQueue:
    """Scoring work that waits or is partly computed.

    A round takes an item of each request in turn, so that a small request never waits for a large one's end. What a
    head raises for items of several requests is tried again for each request alone: only the guilty one fails.
    """

    def __init__(self, metrics: ServerMetrics, failed_passes: FailedPasses) -> None:
        self.metrics, self.failed_passes = metrics, failed_passes
        self.divider = BatchDivider()
        self._requests: deque[ScoringRequest] = deque()  # that have items left, the next one first

    def __bool__(self) -> bool:
        return bool(self._requests)

    def add(self, work: ScoringWork) -> None:
        """Queue work."""
        if work.items:
            self._requests.append(ScoringRequest(work))
        else:
            work.finish([])

    def drop_ended(self) -> None:
        """Forget work that is cancelled, expired or failed."""
        self._requests = deque(request for request in self._requests if not request.work.ended)

    def compute(self, max_tokens: int) -> int:
        """Score items of at most so many tokens, or one longer item alone; return how many tokens it were."""
        by_engine: dict[Any, list[Entry]] = {}
        taken = self._take(max_tokens)
        for entry in taken:
            by_engine.setdefault(entry.request.work.model.backbone.engine, []).append(entry)
        for entries in by_engine.values():
            lengths = np.array([entry.item["length"] for entry in entries])
            for places in BatchesByLength(lengths, len(entries), max_tokens, None, max_padding=0.1):
                self._compute_pass([entries[place] for place in places])
        return sum(int(entry.item["length"]) for entry in taken)

    def _take(self, max_tokens: int) -> list[Entry]:
        """The next items, one of each request in turn."""
        entries: list[Entry] = []
        tokens = 0
        while self._requests:
            request = self._requests[0]
            entry = Entry(request, request.left[-1])
            tokens += int(entry.item["length"])
            if entries and tokens > max_tokens:
                break
            request.work.start()
            entries.append(entry)
            request.left.pop()
            self._requests.popleft()
            if request.left:
                self._requests.append(request)
        return entries

    def _compute_pass(self, entries: Sequence[Entry]) -> None:
        """Score entries of one backbone together or, where memory runs out, in parts."""
        lengths = [int(entry.item["length"]) for entry in entries]
        for failed in self.divider.compute(lengths, lambda part: self._compute_part(entries[part])):
            if failed:
                self._recover(*failed)

    def _compute_part(self, entries: Sequence[Entry]) -> tuple[list[Entry], Exception] | None:
        """Score entries of one backbone in one pass; return those that it failed for, with the exception.

        Raises the exception that several entries need more memory than there is.
        """
        by_head: dict[Any, list[Entry]] = {}
        for entry in entries:
            by_head.setdefault((entry.request.work.head, entry.request.work.model), []).append(entry)
        batches = [batch for group in by_head.values() for batch in _isolating_faults(group, HeadBatch)]
        if not batches:
            return None
        try:
            states_BTC = _hidden(batches)
        except Exception as error:
            if len(entries) > 1 and is_out_of_memory(error):
                raise
            return [entry for batch in batches for entry in batch.entries], error
        self.failed_passes.reset()
        self.metrics.scoring_batch.observe(len(states_BTC))
        start = 0
        for batch in batches:
            states_of_batch, start = states_BTC[start : start + len(batch.entries)], start + len(batch.entries)
            self.metrics.tokens_read.labels(batch.model.name).inc(int(batch.batch.lengths.sum()))
            _predict(batch, states_of_batch)
        return None

    def _recover(self, entries: Sequence[Entry], error: Exception) -> None:
        """After a pass that failed, score each request's entries alone; those of one request fail with the error."""
        by_request = _by_request(entries)
        if len(by_request) == 1:
            entries[0].request.work.fail(error)
        self.failed_passes.add(error)
        for own_entries in by_request.values() if len(by_request) > 1 else ():
            self._compute_pass(own_entries)


def _hidden(batches: Sequence[HeadBatch]) -> Tensor:
    """The last hidden states (B, T, C) of the batches, one after the other, in one pass; T is the longest one's."""
    width = max(batch.batch.input_ids.shape[1] for batch in batches)

    def joined(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([torch.nn.functional.pad(part_BT, (0, width - part_BT.shape[1])) for part_BT in parts])

    needed_BT = None
    if any(batch.needed_BT is not None for batch in batches):
        needed_BT = joined(
            torch.ones_like(batch.batch.input_ids, dtype=torch.bool) if batch.needed_BT is None else batch.needed_BT
            for batch in batches
        )
    states_BTC: Tensor = batches[0].model.backbone.engine.hidden(
        joined(batch.batch.input_ids for batch in batches),
        torch.cat([batch.batch.lengths for batch in batches]),
        needed_BT,
        adapters=[batch.model.backbone.adapter for batch in batches for _ in batch.entries],
    )
    return states_BTC


def _predict(batch: HeadBatch, states_BTC: Tensor) -> None:
    """Hand the head's outputs for a batch to its requests."""
    rows = {entry: row for row, entry in enumerate(batch.entries)}

    def outputs_of(entries: Sequence[Entry]) -> list[tuple[Entry, Any]]:
        part = batch if len(entries) == len(batch.entries) else HeadBatch(entries)
        return list(zip(entries, part.predict(states_BTC[[rows[entry] for entry in entries]]), strict=True))

    for outputs in _isolating_faults(batch.entries, outputs_of):
        for entry, output in outputs:
            entry.request.add(entry.number, output)


def _isolating_faults(entries: Sequence[Entry], compute: Callable[[Sequence[Entry]], T]) -> list[T]:
    """What a head's code computes of some entries; where it raises, of those of each request alone.

    A request for which it raises again fails with that exception.
    """
    try:
        return [compute(entries)]
    except BaseException as error:  # a plugin raises what it likes, even SystemExit; nobody interrupts this thread
        by_request = _by_request(entries)
        if len(by_request) == 1:
            entries[0].request.work.fail(error)
            return []
    return [result for own_entries in by_request.values() for result in _isolating_faults(own_entries, compute)]


def _by_request(entries: Sequence[Entry]) -> dict[ScoringRequest, list[Entry]]:
    by_request: dict[ScoringRequest, list[Entry]] = {}
    for entry in entries:
        by_request.setdefault(entry.request, []).append(entry)
    return by_request
