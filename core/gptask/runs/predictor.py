"""Examples to predictions, in chunks of about the same length."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.config.schemas import Data
from gptask.data.columns import Columns
from gptask.data.rows import Row
from gptask.errors import DataError, UserError
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Prediction

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

CHUNK = 256  # rows at most that are sorted by length together
END = object()


@dataclass
class Predictor:
    """A task, its backbone and its head; ``options`` are those of its data, which bound a batch."""

    task: Task
    backbone: GPTBackbone
    head: Head
    options: Data

    def predict(self, examples: Iterable[dict[str, Any]]) -> Iterator[Prediction]:
        """Predict dictionaries of input fields, lazily and in order; raise `DataError` for one that can't be used."""
        columns = Columns(self.task, Data(labels=None), self.task.inputs())
        rows = (Row(number, example) for number, example in enumerate(examples, 1))
        for _, prediction in self.predict_each(read_examples(rows, columns, "example")):
            if isinstance(prediction, DataError):
                raise prediction
            yield prediction

    def predict_each(
        self, examples: Iterable[Example | DataError]
    ) -> Iterator[tuple[Example | DataError, Prediction | DataError]]:
        """Each example with its prediction, in order; one that can't be used has its error in both places."""
        import torch

        for part in (self.backbone, self.head):
            part.to("cuda" if torch.cuda.is_available() else "cpu")
        for chunk in _chunks(examples):
            yield from zip(chunk, self._predict_chunk(chunk), strict=True)

    def _predict_chunk(self, chunk: list[Example | DataError]) -> list[Prediction | DataError]:
        import torch

        from gptask.data.batches import BatchesByLength
        from gptask.data.datamodule import collate, encode, scored_tokens
        from gptask.model.heads import GenerationHead
        from gptask.model.predictions import predictions_by_example

        results: list[Prediction | DataError] = [e if isinstance(e, DataError) else Prediction(None) for e in chunk]
        items: list[dict[str, Any]] = []
        limit = min(self.options.max_tokens, self.backbone.context)
        for number, example in enumerate(chunk):
            if isinstance(example, dict):
                blank = {f.name: None for f in self.task.targets()}
                try:
                    parts = encode(self.task, blank | example, self.backbone.tokenizer, limit)
                    items += [part | {"example": number, "row": len(items) + k} for k, part in enumerate(parts)]
                except DataError as error:
                    results[number] = error
        outputs: dict[int, Any] = {}
        lengths = np.array([item["length"] for item in items], dtype=int)
        writes = isinstance(self.head, GenerationHead)
        tokens = scored_tokens(self.options, reads=not writes, writes=writes)
        with torch.inference_mode():
            for rows in BatchesByLength(lengths, self.options.eval_batch_size, tokens, None):
                batch = collate([items[row] for row in rows]).to(self.backbone.device)
                outputs.update(zip(rows, self.head.predict(self.backbone, batch), strict=True))
        owners = np.array([item["example"] for item in items], dtype=int)
        numbers = dict.fromkeys(int(owners[row]) for row in sorted(outputs))
        _, predictions = predictions_by_example(self.task, chunk, owners, outputs)  # type: ignore[arg-type]
        for number, prediction in zip(numbers, predictions, strict=True):
            results[number] = prediction
        return results


def read_examples(rows: Iterable[Row], columns: Columns, name: str) -> Iterator[Example | DataError]:
    """Rows of the file ``name`` as examples, blank lines left out; a bad row is yielded as its error."""
    for row in rows:
        if isinstance(row.value, str) and not row.value.strip():
            continue
        try:
            yield columns.example(row)
        except DataError as error:
            yield DataError(f"{row.at(name)}: {error}")


def _chunks(examples: Iterable[Any]) -> Iterator[list[Any]]:
    """Whatever has been read by now, at least one and at most CHUNK rows: a slow pipe is answered row by row."""
    waiting: queue.Queue[Any] = queue.Queue(maxsize=4 * CHUNK)

    def pump() -> None:
        try:
            for example in examples:
                waiting.put(example)
            waiting.put(END)
        except Exception as error:  # handed to the reader below, which raises it
            waiting.put(error)

    threading.Thread(target=pump, daemon=True).start()
    chunk: list[Any] = []
    while True:
        item = waiting.get()
        ended = item is END or (isinstance(item, Exception) and not isinstance(item, DataError))
        ended = ended or (isinstance(item, UserError) and not isinstance(item, DataError))
        if not ended:
            chunk.append(item)
        if chunk and (ended or waiting.empty() or len(chunk) == CHUNK):
            yield chunk
            chunk = []
        if ended:
            if item is not END:
                raise item
            return
