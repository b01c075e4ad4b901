"""Examples to predictions, in chunks that are batched by length."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gptask.config.schemas import Data
from gptask.data.column_lookup import trained_columns
from gptask.data.columns import Columns
from gptask.data.rows import Row
from gptask.errors import DataError
from gptask.model.out_of_memory import BatchDivider
from gptask.model.predictions import predictions_by_example
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Prediction
from gptask.runs.rows_in_memory import rows_in_memory

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

MAX_CHUNK = 256  # most rows that are sorted by length together
END = object()


class InputRow(NamedTuple):
    """A row to predict: as it was read, and the example it holds, its error, or None for a blank row.

    ``place`` says in messages where the row stands; it may be empty.
    """

    row: Row
    example: Example | DataError | None
    place: str = ""


class EncodedChunk(NamedTuple):
    """Rows as the task reads them: examples by place in the chunk, encoded items of all, errors by place.

    An item's ``example`` is the place of its row, ``row`` its own number, ``truncated`` the number of tokens cut off.
    """

    examples: list[Example]
    items: list[dict[str, Any]]
    errors: dict[int, Prediction | DataError]


@dataclass
class Predictor:
    """A task with its backbone and its head; ``options`` are the data's, which bound a prompt and a batch."""

    task: Task
    backbone: GPTBackbone
    head: Head
    options: Data
    window = MAX_CHUNK  # rows that are batched together

    def predict(self, examples: Any) -> Iterator[Prediction]:
        """Predict what `rows_in_memory` reads, lazily and in order, one prediction for each example.

        Raises `UserError` at once for what holds no examples, and `DataError` in the place of one that can't be used.
        """
        trained = trained_columns(vars(self.options))
        columns = Columns(self.task, Data(labels=None), self.task.inputs(), trained_columns=trained)
        inputs = read_inputs(rows_in_memory(examples, columns), columns, "example")
        return predictions_or_error(self.predict_each(inputs, live=isinstance(examples, Iterator)))

    def predict_each(self, inputs: Iterable[InputRow], live: bool) -> Iterator[tuple[InputRow, Prediction | DataError]]:
        """Yield each row with its prediction, in order.

        Rows of a ``live`` source, such as a pipe, do not wait for others; else the batches depend on the rows alone,
        and so do the last digits of a probability.
        A blank row's prediction is None. The error of an unreadable row is its own prediction; a row whose example
        can't be encoded has the error as its prediction.
        """
        self.move_to_device()
        for chunk in chunks(inputs, live, self.window):
            encoded = self.encode(chunk)
            yield from zip(chunk, self.results(encoded, self._predict_items(encoded.items)), strict=True)

    def move_to_device(self) -> None:
        """Move the weights to where they compute fastest."""
        import torch

        for module in (self.backbone, self.head):
            module.to("cuda" if torch.cuda.is_available() else "cpu")

    def results(self, chunk: EncodedChunk, outputs: dict[int, Any]) -> list[Prediction | DataError]:
        """One prediction or error for each row of a chunk, from the head's output for each item, by its number."""
        # the places in the chunk of the encoded examples, several items of one example counted once
        places = list(dict.fromkeys(item["example"] for item in chunk.items))
        owners = np.array([item["example"] for item in chunk.items], dtype=int)
        _, predictions = predictions_by_example(self.task, chunk.examples, owners, outputs)
        results = chunk.errors | dict(zip(places, predictions, strict=True))
        return [results.get(place, Prediction(None)) for place in range(len(chunk.examples))]

    def encode(self, chunk: Sequence[InputRow]) -> EncodedChunk:
        """Encode the examples of some rows."""
        from gptask.data.datamodule import encode

        examples: list[Example] = []
        items: list[dict[str, Any]] = []
        errors: dict[int, Prediction | DataError] = {}
        max_tokens = min(self.options.max_tokens, self.backbone.context)
        for place, (row, example, location) in enumerate(chunk):
            examples.append({})
            if isinstance(example, DataError):
                errors[place] = example
            elif example is not None:
                try:
                    examples[place] = self._clean({"id": str(row.number)} | example)
                    parts = encode(self.task, examples[place], self.backbone.tokenizer, max_tokens)
                except DataError as error:
                    errors[place] = _located(error, location)
                    continue
                items += [part | {"example": place, "row": len(items) + number} for number, part in enumerate(parts)]
        return EncodedChunk(examples, items, errors)

    def _clean(self, example: Example) -> Example:
        """The example without targets, cleaned as those of a test set: scores hold for cleaned inputs."""
        example = {f.name: None for f in self.task.targets()} | example
        for cleaned in self.task.clean([example], False, Counter()):
            return cleaned
        raise DataError("nothing is left of it after the task's cleaning")

    def batches(self, items: Sequence[dict[str, Any]]) -> Iterator[list[int]]:
        """Yield the numbers of the items of each batch, which have about the same length."""
        from gptask.data.batches import BatchesByLength
        from gptask.data.datamodule import eval_batch_tokens

        lengths = np.array([item["length"] for item in items], dtype=int)
        decodes = self.head.decodes
        tokens = eval_batch_tokens(self.options, reads=not decodes, writes=decodes)
        yield from BatchesByLength(lengths, self.options.eval_batch_size, tokens, None)

    def _predict_items(self, items: list[dict[str, Any]]) -> dict[int, Any]:
        """The head's output for each item, by the item's number."""
        import torch

        outputs: dict[int, Any] = {}
        with torch.inference_mode():
            for rows in self.batches(items):
                outputs.update(zip(rows, self.predict_batch([items[row] for row in rows]), strict=True))
        return outputs

    def predict_batch(self, items: Sequence[dict[str, Any]]) -> list[Any]:
        """The head's output for each item, computed together or, where memory runs out, in parts."""
        from gptask.data.datamodule import collate

        def predict(rows: slice) -> list[Any]:
            batch = collate(items[rows]).to(self.backbone.device)
            if self.head.decodes:
                return self.head.predict(None, batch)
            needed = self.head.needed_positions(batch)
            return self.head.predict(self.backbone.hidden(batch.input_ids, batch.lengths, needed), batch)

        return [*chain.from_iterable(self.divider.compute([item["length"] for item in items], predict))]

    @cached_property
    def divider(self) -> BatchDivider:
        """What divides a batch that does not fit into memory."""
        return BatchDivider()


def predictions_or_error(predicted: Iterable[tuple[InputRow, Prediction | DataError]]) -> Iterator[Prediction]:
    """The predictions alone, lazily; raises `DataError` in the place of an example that is bad or empty."""
    for entry, prediction in predicted:
        if isinstance(prediction, DataError):
            raise prediction
        if entry.example is None:
            raise DataError(f"{entry.place}: it is empty")
        yield prediction


def read_inputs(rows: Iterable[Row], columns: Columns, name: str) -> Iterator[InputRow]:
    """Rows of the file ``name`` (of a table with a word a row, its sentences), each with its example, its error, or
    None where the row is blank."""
    for row in columns.sentences(rows):
        example: Example | DataError | None
        place = row.location(name)
        try:
            example = columns.example(row)
        except DataError as error:
            example = None if _is_blank(row.value) else _located(error, place)
        yield InputRow(row, example, place)


def _located(error: DataError, place: str) -> DataError:
    """The error with the place in front of its message."""
    error.args = (f"{place}: {error}" if place else str(error),)
    return error


def _is_blank(value: Any) -> bool:
    """Whether a row holds nothing: a line of white space, or cells that are all empty."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict | list):
        return all(map(_is_blank, value.values() if isinstance(value, dict) else value))
    return value is None


def chunks(inputs: Iterable[InputRow], live: bool, size: int) -> Iterator[list[InputRow]]:
    """Chunks of ``size`` rows, or of a ``live`` source what has been read so far, so that no row waits for others.

    A thread reads ahead; an exception that reading raises is raised here, after the rows before it. The thread ends
    where the chunks are not drawn to their end.
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=4 * size)
    abandoned = threading.Event()

    def read_ahead() -> None:
        try:
            for entry in inputs:
                waiting.put((entry, None))
                if abandoned.is_set():
                    return
            waiting.put((END, None))
        except Exception as error:
            waiting.put((END, error))

    threading.Thread(target=read_ahead, daemon=True).start()
    chunk: list[InputRow] = []
    try:
        while True:
            entry, error = waiting.get()
            if entry is not END:
                chunk.append(entry)
            if chunk and (entry is END or len(chunk) == size or (live and waiting.empty())):
                yield chunk
                chunk = []
            if error is not None:
                raise error
            if entry is END:
                return
    finally:
        abandoned.set()
        while not waiting.empty():  # the thread may wait for room
            waiting.get_nowait()
