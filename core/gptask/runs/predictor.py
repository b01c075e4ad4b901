"""Examples to predictions, in chunks of about the same length."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gptask.data.columns import Columns
from gptask.data.rows import Row
from gptask.errors import DataError, UserError
from gptask.plugins.types import Example, Prediction
from gptask.runs.run import Run

CHUNK = 256  # rows at most that are sorted by length together
END = object()


def predict_examples(run: Run, examples: Iterable[dict[str, Any]]) -> Iterator[Prediction]:
    """Predict dictionaries of input fields, in order; raise `DataError` for one that can't be used."""
    from gptask.config import schemas
    from gptask.config.conversion import from_plain

    data = from_plain("data", run.values["data"])
    columns = Columns(run.task, schemas.Data(labels=None), run.task.inputs())
    rows = (Row(number, example) for number, example in enumerate(examples, 1))
    for _, prediction in _predicted(run, _examples(rows, columns, "example"), data):
        if isinstance(prediction, DataError):
            raise prediction
        yield prediction


def _examples(rows: Iterable[Row], columns: Columns, name: str) -> Iterator[Example | DataError]:
    for row in rows:
        if isinstance(row.value, str) and not row.value.strip():
            continue
        try:
            yield columns.example(row)
        except DataError as error:
            yield DataError(f"{row.at(name)}: {error}")


def _predicted(
    run: Run, examples: Iterable[Example | DataError], options: Any
) -> Iterator[tuple[Example | DataError, Prediction | DataError]]:
    import torch

    for part in (run.backbone, run.head):
        part.to("cuda" if torch.cuda.is_available() else "cpu")
    for chunk in _chunks(examples):
        yield from zip(chunk, _predict_chunk(run, chunk, options), strict=True)


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


def _predict_chunk(run: Run, chunk: list[Example | DataError], options: Any) -> list[Prediction | DataError]:
    import torch

    from gptask.data.batches import BatchesByLength
    from gptask.data.datamodule import collate, encode, scored_tokens
    from gptask.model.heads import GenerationHead
    from gptask.model.predictions import merge

    results: list[Prediction | DataError] = [e if isinstance(e, DataError) else Prediction(None) for e in chunk]
    items: list[dict[str, Any]] = []
    limit = min(options.max_tokens, run.backbone.context)
    for number, example in enumerate(chunk):
        if isinstance(example, dict):
            blank = {f.name: None for f in run.task.targets()}
            try:
                parts = encode(run.task, blank | example, run.backbone.tokenizer, limit)
                items += [part | {"example": number, "row": len(items) + k} for k, part in enumerate(parts)]
            except DataError as error:
                results[number] = error
    outputs: dict[int, Any] = {}
    lengths = np.array([item["length"] for item in items], dtype=int)
    writes = isinstance(run.head, GenerationHead)
    tokens = scored_tokens(options, reads=not writes, writes=writes)
    with torch.inference_mode():
        for rows in BatchesByLength(lengths, options.eval_batch_size, tokens, None):
            batch = collate([items[row] for row in rows]).to(run.backbone.device)
            outputs.update(zip(rows, run.head.predict(run.backbone, batch), strict=True))
    owners = np.array([item["example"] for item in items], dtype=int)
    numbers = dict.fromkeys(int(owners[row]) for row in sorted(outputs))
    _, said = merge(run.task, chunk, owners, outputs)  # type: ignore[arg-type]
    for number, prediction in zip(numbers, said, strict=True):
        results[number] = prediction
    return results
