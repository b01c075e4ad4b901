"""An engine without a model, whose passes a test counts, watches and breaks.

The state of a token is its id. A row writes its prompt's last token until its limit: whoever gets another number got
the answer to another request.
"""

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from gptask.model.engine.interface import DecodingRow
from gptask.plugins.generation_options import GenerationOptions
from gptask.serving.batching.work import ScoringWork, WritingWork


class FakeEngine:
    """``before_pass``, ``before_read`` and ``before_step`` are called in the batcher's thread, and may raise."""

    def __init__(self) -> None:
        self.batches: list[FakeBatch] = []
        self.passes: list[int] = []  # the items of each
        self.pass_tokens: list[int] = []
        self.steps = 0
        self.before_pass: Callable[[torch.Tensor], None] = lambda ids: None
        self.before_read: Callable[[DecodingRow], None] = lambda row: None
        self.before_step: Callable[[FakeBatch], None] = lambda batch: None

    def hidden(self, ids: Any, lengths: Any, needed: Any, *, adapters: Sequence[str | None]) -> torch.Tensor:
        assert len(ids) == len(lengths) == len(adapters)
        assert needed is None or needed.shape == ids.shape
        assert all(adapter == f"adapter {int(row[0]) % 10}" for adapter, row in zip(adapters, ids, strict=True))
        self.before_pass(ids)
        self.passes.append(len(ids))
        self.pass_tokens.append(ids.numel())
        return ids[..., None].float()

    def row_bytes(self, row: DecodingRow) -> int:
        return len(row.prompt) + row.limit

    def decoding_batch(self, keep: int = 0) -> "FakeBatch":
        self.batches.append(FakeBatch(self, keep))
        return self.batches[-1]


class FakeBatch:
    """Holds the rows of one engine; ``most_bytes`` is the most that they and the kept ones ever took."""

    def __init__(self, engine: FakeEngine, keep: int) -> None:
        self.engine = engine
        self.kept = deque[DecodingRow](maxlen=keep)
        self.rows: list[DecodingRow] = []
        self.unread: list[DecodingRow] = []
        self.read_tokens: dict[DecodingRow, int] = {}
        self.reads: list[int] = []  # tokens of each
        self.most_bytes = 0

    def bytes(self) -> int:
        return sum(map(self.engine.row_bytes, [*self.rows, *self.unread, *self.kept]))

    def enqueue(self, rows: Sequence[DecodingRow]) -> None:
        self.unread += rows
        self.most_bytes = max(self.most_bytes, self.bytes())

    def read(self, max_tokens: int) -> int:
        left = max_tokens
        while self.unread and left:
            row = self.unread.pop(0)  # lost where reading it fails
            self.engine.before_read(row)
            self.unread.insert(0, row)
            part = min(left, len(row.prompt) - self.read_tokens.get(row, 0))
            self.read_tokens[row] = self.read_tokens.get(row, 0) + part
            left -= part
            if self.read_tokens[row] == len(row.prompt):
                self.rows.append(self.unread.pop(0))
        self.reads.append(max_tokens - left)
        return max_tokens - left

    def step(self) -> list[DecodingRow]:
        if not self.rows:
            return []
        self.engine.before_step(self)
        self.engine.steps += 1
        for row in self.rows:
            row.new_ids.append(row.prompt[-1])
            if len(row.new_ids) == row.limit:
                row.finish = "length"
        ended = [row for row in self.rows if row.finish]
        self.rows = [row for row in self.rows if not row.finish]
        self.kept += ended
        return ended

    def leave(self, row: DecodingRow) -> None:
        for rows in (self.rows, self.unread):
            if row in rows:
                rows.remove(row)
                self.kept.append(row)

    @property
    def kept_bytes(self) -> int:
        return sum(map(self.engine.row_bytes, self.kept))

    def forget(self) -> None:
        self.kept.clear()


class EchoHead:
    """Its output is an item's last token; ``predicting`` may raise, or return other outputs."""

    def __init__(self, predicting: Callable[[list[int]], list[Any]] = list) -> None:
        self.predicting = predicting

    def needed_positions(self, batch: Any) -> torch.Tensor:
        return torch.arange(batch.input_ids.shape[1])[None] == batch.last()[:, None]

    def predict(self, hidden: torch.Tensor, batch: Any) -> list[Any]:
        assert hidden.shape[:2] == batch.input_ids.shape
        return self.predicting([int(x) for x in hidden[torch.arange(len(hidden)), batch.last(), 0]])


class FakeModel:
    """A model with an adapter of its own; its items begin with a token that has its number as last digit."""

    def __init__(self, engine: FakeEngine, number: int = 0) -> None:
        self.name, self.number, self.head = f"model {number}", number, EchoHead()
        self.backbone = SimpleNamespace(engine=engine, adapter=f"adapter {number}", device=torch.device("cpu"))


def item(tokens: list[int]) -> dict[str, Any]:
    return {"ids": tokens, "target": None, "label": None, "extra": None, "length": len(tokens), "learned": []}


def scoring(model: Any, canaries: Sequence[int], length: int = 4, head: Any = None, **options: Any) -> ScoringWork:
    """Items of ``length`` tokens, or 1 more or less; the result should be the canaries."""
    items = [
        item([model.number] * (max(1, length + place % 3 - 1)) + [canary]) for place, canary in enumerate(canaries)
    ]
    return ScoringWork(model, items, head or model.head, **options)


def writing(
    model: Any, canary: int, limit: int = 4, prompt: int = 3, rows: int = 1, on_token: Any = None, **options: Any
) -> WritingWork:
    """Rows that should write the canary ``limit`` times."""
    prompts = [[0] * (prompt - 1) + [canary] for _ in range(rows)]
    decoding_rows = [DecodingRow(ids, limit, GenerationOptions(), model.backbone.adapter) for ids in prompts]
    return WritingWork(model, decoding_rows, on_token, **options)
