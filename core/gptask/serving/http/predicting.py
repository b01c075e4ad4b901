"""Examples to predictions: a plugin's code runs in worker threads, passes of the model in the batcher's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from starlette.requests import ClientDisconnect, Request

from gptask.config.schemas import Data
from gptask.data.column_lookup import trained_columns
from gptask.data.columns import Columns
from gptask.data.datamodule import collate
from gptask.errors import DataError, UserError, listing, nearest
from gptask.model.generation.generate import decoding_rows, generated_texts
from gptask.model.heads import GenerationHead
from gptask.plugins.types import Prediction
from gptask.runs.predictions_file import prediction_fields
from gptask.runs.predictor import EncodedChunk, InputRow
from gptask.runs.rows_in_memory import rows_in_memory
from gptask.serving.batching.work import ScoringWork, WholeWork, WritingWork
from gptask.serving.http.compute import computed, refuse_if_full
from gptask.serving.http.http_errors import EXPECTED_ERRORS, ApiError, plugin_error
from gptask.serving.http.request_record import record_of
from gptask.serving.models.run_registry import StillLoading
from gptask.serving.models.served_run import ServedModel, ServedRun
from gptask.serving.state import ServerState

T = TypeVar("T")
MAX_EXAMPLES = 1024  # in one request; a stream of lines has no limit


@dataclass
class Answered:
    """A prediction, how many of its example's tokens were cut off, and the example's id as the client wrote it."""

    prediction: Prediction
    truncated: int
    id: str | int | None

    def fields(self) -> dict[str, Any]:
        """The entries of the answer."""
        named = {} if self.id is None else {"id": self.id}
        return named | prediction_fields(self.prediction) | {"truncated": self.truncated}


def run_of(state: ServerState, request: Request, name: str, param: str | None = None) -> ServedRun:
    """The run of a name; raises `ApiError` where there is none, and for the bare backbone, which has no task."""
    model = model_of(state, request, name, param)
    if not isinstance(model, ServedRun):
        raise ApiError(
            400,
            f"'{name}' is a backbone without a task; it answers under /v1/chat/completions and /v1/completions",
            param,
        )
    return model


def model_of(state: ServerState, request: Request, name: str, param: str | None = None) -> ServedModel:
    """The model of a name, which the request's record gets; raises `ApiError` where there is none.

    A full queue refuses a POST here already, before examples are encoded.
    """
    try:
        model = state.registry.get(name)
    except StillLoading as error:
        later = {"Retry-After": "1"}
        raise ApiError(503, str(error), kind="server_error", code="not_ready", headers=later) from error
    except UserError as error:
        raise ApiError(404, str(error), param, code="model_not_found") from error
    record_of(request).run = model.name
    if request.method == "POST":
        refuse_if_full(state)
    return model


async def predict_examples(
    state: ServerState, request: Request, model: ServedRun, examples: Sequence[Any], place_of: Callable[[int], str]
) -> list[Answered]:
    """Predict examples as `Predictor.predict` does.

    ``place_of`` words an example's place for messages. Raises `ApiError` for one that can't be used (422), and for an
    exception of the plugin (500).
    """
    record = record_of(request)
    chunk = await in_thread(state, request, lambda: encode_examples(model, examples, place_of), model)
    record.tokens_in += sum(item["length"] for item in chunk.items)
    outputs = dict(enumerate(await outputs_of(state, request, model, chunk.items)))

    def answers() -> list[Answered]:
        predictions = model.predictor.results(chunk, outputs)
        cut = [0] * len(examples)
        for item in chunk.items:
            cut[item["example"]] += item["truncated"]
        ids = [example.get("id") if isinstance(example, dict) else None for example in examples]
        answered = [Answered(*values) for values in zip(predictions, cut, ids, strict=True)]  # type: ignore[arg-type]
        for answer in answered:
            answer.fields()  # raises what is wrong with a plugin's prediction
        return answered

    return await in_thread(state, request, answers, model)


def encode_examples(model: ServedRun, examples: Sequence[Any], place_of: Callable[[int], str]) -> EncodedChunk:
    """Encode examples; raises `ApiError` that names the first one that can't be used, and its field."""
    chunk = model.predictor.encode(input_rows(model, examples, place_of))
    for number, problem in sorted(chunk.errors.items()):
        if isinstance(problem, DataError):
            raise _bad_example(problem, place_of(number)) from problem
    return chunk


def input_rows(model: ServedRun, examples: Sequence[Any], place_of: Callable[[int], str]) -> list[InputRow]:
    """Read examples; raises `ApiError` that names the first one that the task can't read, and its field."""
    predictor = model.predictor
    columns = Columns(
        predictor.task,
        Data(labels=None),
        predictor.task.inputs(),
        trained_columns=trained_columns(vars(predictor.options)),
    )
    inputs = []
    # a list, never a text alone: in Python, that may not be the name of a file
    for row in rows_in_memory(list(examples), columns):
        try:
            _refuse_unknown(examples[row.number - 1], columns)
            inputs.append(InputRow(row, columns.example(row)))
        except DataError as error:
            raise _bad_example(error, place_of(row.number - 1)) from error
    return inputs


def _refuse_unknown(example: Any, columns: Columns) -> None:
    """Raise `DataError` for a field that the task does not read, unless it converts rows itself, and for a bad id."""
    if not isinstance(example, dict):
        return
    id_value = example.get("id")
    if isinstance(id_value, bool) or not isinstance(id_value, str | int | None):
        raise DataError(f"the id must be a text or a whole number, got {str(id_value)[:40]!r}", "id")
    if columns.convert_row:
        return
    known = {name.partition(".")[0] for field in columns.fields for name in columns.accepted_names(field.name)}
    for name in example:
        if name not in known and name != "id":
            fields = listing(field.name for field in columns.fields)
            raise DataError(f"unknown field; the task reads {fields}.{nearest(name, known)}", name[:40])


def _bad_example(error: DataError, place: str) -> ApiError:
    param = f"{place}.{error.field}".lstrip(".") if error.field else place
    return ApiError(422, f"{param}: {error}" if param else str(error), param or None)


async def outputs_of(
    state: ServerState, request: Request, model: ServedRun, items: Sequence[dict[str, Any]]
) -> list[Any]:
    """The head's output for each encoded item of a run's examples, in order."""
    head: Any = model.run.head
    try:
        if not items:
            return []
        if not head.decodes:
            return list(await computed(state, request, ScoringWork(model, items, head)))
        if model.decodes_in_batches:
            return await _written(state, request, model, items)
        outputs: dict[int, Any] = {}
        for numbers in model.predictor.batches(items):
            batch = [items[number] for number in numbers]
            work = WholeWork(model, lambda batch=batch: model.predictor.predict_batch(batch))  # type: ignore[misc]
            outputs.update(zip(numbers, await computed(state, request, work), strict=True))
        return [outputs[number] for number in range(len(items))]
    except EXPECTED_ERRORS:
        raise
    except (Exception, SystemExit) as error:
        raise plugin_error(error, model) from error


async def _written(
    state: ServerState, request: Request, model: ServedRun, items: Sequence[dict[str, Any]]
) -> list[Any]:
    """The outputs of a head that writes token by token, in one decoding batch with other runs."""
    head: Any = model.run.head
    batch = collate(items).to(model.backbone.device)
    rows = decoding_rows(model.backbone, batch.prompts(), head.options)
    await computed(state, request, WritingWork(model, rows))
    record_of(request).tokens_out += sum(len(row.new_ids) for row in rows)
    texts = await in_thread(state, request, lambda: generated_texts(model.backbone, rows, head.options), model)
    if type(head).outputs is GenerationHead.outputs:
        return texts

    @torch.inference_mode()
    def outputs() -> list[Any]:  # it may compute passes of the backbone, beside which no adapter may be loaded
        return list(head.outputs(texts, batch))

    return list(await computed(state, request, WholeWork(model, outputs)))


async def in_thread(
    state: ServerState,
    request: Request,
    function: Callable[[], T],
    model: ServedModel,
    threads: ThreadPoolExecutor | None = None,
) -> T:
    """The result of a function that runs in a worker thread (of ``threads``, else of those that encode).

    A time limit ends the waiting, not the thread. An exception of a plugin's code becomes the `ApiError` that names it.
    """

    def run() -> T:
        try:
            return function()
        except (ApiError, UserError, ClientDisconnect):
            raise
        except BaseException as error:  # SystemExit, too, which would end the server
            if isinstance(model, ServedRun):
                raise plugin_error(error, model) from error
            raise

    async with asyncio.timeout(record_of(request).seconds_left):
        return await asyncio.get_running_loop().run_in_executor(threads or state.threads, run)
