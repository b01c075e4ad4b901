"""Examples to predictions, in chunks that are batched by length."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.config.schemas import Data
from gptask.data.columns import Columns, trained_columns
from gptask.data.rows import Row
from gptask.errors import DataError
from gptask.model.predictions import predictions_by_example
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Prediction

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

MAX_CHUNK = 256  # most rows that are sorted by length together
END = object()


@dataclass
class Predictor:
    """A task with its backbone and its head; ``options`` are the data's, which bound a prompt and a batch."""

    task: Task
    backbone: GPTBackbone
    head: Head
    options: Data

    def predict(self, examples: Iterable[dict[str, Any]]) -> Iterator[Prediction]:
        """Predict dictionaries of input fields, lazily and in order; raise `DataError` for one that can't be used."""
        columns = Columns(
            self.task, Data(labels=None), self.task.inputs(), trained_columns=trained_columns(vars(self.options))
        )
        rows = (Row(number, example) for number, example in enumerate(examples, 1))
        for _, prediction in self.predict_each(read_examples(rows, columns, "example")):
            if isinstance(prediction, DataError):
                raise prediction
            yield prediction

    def predict_each(
        self, examples: Iterable[Example | DataError]
    ) -> Iterator[tuple[Example | DataError, Prediction | DataError]]:
        """Yield each example with its prediction, in order.

        An error that stands for an unreadable example is its own prediction; an example that can't be encoded has the
        error as its prediction.
        """
        import torch

        for module in (self.backbone, self.head):
            module.to("cuda" if torch.cuda.is_available() else "cpu")
        for chunk in _chunks(examples):
            yield from zip(chunk, self._predict_chunk(chunk), strict=True)

    def _predict_chunk(self, chunk: list[Example | DataError]) -> list[Prediction | DataError]:
        """One prediction or error for each entry of a chunk."""
        items, errors = self._encode_chunk(chunk)
        outputs = self._predict_items(items)
        # the places in the chunk of the encoded examples, several items of one example counted once
        places = list(dict.fromkeys(item["example"] for item in items))
        owners = np.array([item["example"] for item in items], dtype=int)
        _, predictions = predictions_by_example(self.task, chunk, owners, outputs)  # type: ignore[arg-type]
        results = errors | dict(zip(places, predictions, strict=True))
        return [results.get(place, Prediction(None)) for place in range(len(chunk))]

    def _encode_chunk(
        self, chunk: list[Example | DataError]
    ) -> tuple[list[dict[str, Any]], dict[int, Prediction | DataError]]:
        """The items of all examples, each with its example's place in the chunk, and the errors by place."""
        from gptask.data.datamodule import encode

        items: list[dict[str, Any]] = []
        errors: dict[int, Prediction | DataError] = {}
        max_tokens = min(self.options.max_tokens, self.backbone.context)
        no_targets = {f.name: None for f in self.task.targets()}
        for place, example in enumerate(chunk):
            if isinstance(example, DataError):
                errors[place] = example
                continue
            try:
                parts = encode(self.task, no_targets | example, self.backbone.tokenizer, max_tokens)
                items += [part | {"example": place, "row": len(items) + number} for number, part in enumerate(parts)]
            except DataError as error:
                errors[place] = error
        return items, errors

    def _predict_items(self, items: list[dict[str, Any]]) -> dict[int, Any]:
        """The head's output for each item, by the item's number; items of one batch have about the same length."""
        import torch

        from gptask.data.batches import BatchesByLength
        from gptask.data.datamodule import collate, eval_batch_tokens

        outputs: dict[int, Any] = {}
        lengths = np.array([item["length"] for item in items], dtype=int)
        decodes = self.head.decodes
        tokens = eval_batch_tokens(self.options, reads=not decodes, writes=decodes)
        with torch.inference_mode():
            for rows in BatchesByLength(lengths, self.options.eval_batch_size, tokens, None):
                batch = collate([items[row] for row in rows]).to(self.backbone.device)
                needed = self.head.needed_positions(batch)
                hidden = None if decodes else self.backbone.hidden(batch.input_ids, batch.lengths, needed)
                outputs.update(zip(rows, self.head.predict(hidden, batch), strict=True))
        return outputs


def read_examples(rows: Iterable[Row], columns: Columns, name: str) -> Iterator[Example | DataError]:
    """Rows of the file ``name`` as examples, blank lines left out; for a bad row, the error is yielded."""
    for row in columns.sentences(rows):
        if isinstance(row.value, str) and not row.value.strip():
            continue
        try:
            yield columns.example(row)
        except DataError as error:
            yield DataError(f"{row.location(name)}: {error}")


def _chunks(examples: Iterable[Example | DataError]) -> Iterator[list[Example | DataError]]:
    """Chunks of what has been read so far, 1 to CHUNK_ROWS examples: a row from a slow pipe does not wait for others.

    A thread reads ahead; an exception that reading raises is raised here, after the examples before it.
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=4 * MAX_CHUNK)

    def read_ahead() -> None:
        try:
            for example in examples:
                waiting.put((example, None))
            waiting.put((END, None))
        except Exception as error:
            waiting.put((END, error))

    threading.Thread(target=read_ahead, daemon=True).start()
    chunk: list[Example | DataError] = []
    while True:
        example, error = waiting.get()
        if example is not END:
            chunk.append(example)
        if chunk and (example is END or waiting.empty() or len(chunk) == MAX_CHUNK):
            yield chunk
            chunk = []
        if error is not None:
            raise error
        if example is END:
            return
