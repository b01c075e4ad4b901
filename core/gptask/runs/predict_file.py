"""`gptask predict`: a run folder on a file or on standard input, as a stream."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from gptask.config.schemas import OnBad, Predict
from gptask.data.columns import Columns
from gptask.data.documents import of_task
from gptask.data.reading import Row, Source, read, read_stream, stdin
from gptask.errors import DataError, UserError
from gptask.plugins.task import Example, Prediction
from gptask.runs.run import Run, load_run
from gptask.training.results import prediction_fields

CHUNK = 256  # rows at most that are sorted by length together
END = object()


def predict(config: Predict) -> None:
    """Read ``config.input``, write a JSON line per row to ``config.output``, in order."""
    source = None if config.input == "-" else Source.parse(config.input, config.data.root)
    target = None if config.output == "-" else Path(config.output)
    if target and source and target.exists() and target.samefile(source.path):
        raise UserError(f"output={target} is the input; choose another file")
    run = load_run(config.run, config.task)
    columns = Columns(run.task, config.data, run.task.inputs())
    data = of_task(config.data, run.task)
    rows = read(source, data, columns.wanted) if source else read_stream(stdin(), data)
    examples = _examples(rows, columns, str(source.path) if source else "<stdin>")
    try:
        with target.open("w", encoding="utf-8") if target else nullcontext(sys.stdout) as stream:
            for example, prediction in _predicted(run, examples, config.data):
                stream.write(_line(run, example, prediction, config.on_error) + "\n")
                stream.flush()
    except BrokenPipeError:  # `gptask predict ... | head`
        sys.stdout = None
    except OSError as error:
        raise UserError(f"{config.output} can't be written: {error.strerror}") from error


def predict_examples(run: Run, examples: Iterable[dict[str, Any]]) -> Iterator[Prediction]:
    """Predict dictionaries of input fields, in order; raise `DataError` for one that can't be used."""
    from gptask.config import schemas

    data = schemas.from_plain("data", run.values["data"])
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


def _line(run: Run, example: Example | DataError, prediction: Prediction | DataError, on_error: OnBad) -> str:
    if isinstance(prediction, DataError):
        if on_error is OnBad.stop:
            raise DataError(f"{prediction} (on_error=skip writes the error into the row's place and goes on)")
        return json.dumps({"error": str(prediction)}, ensure_ascii=False)
    assert isinstance(example, dict)
    return json.dumps(example | prediction_fields(prediction), ensure_ascii=False)


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
    from gptask.training.task_runtime import merge

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
