"""`POST /v1/predict/<run>`: a task's own fields in, its predictions out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from gptask.config.schemas import Data
from gptask.data.columns import Columns
from gptask.errors import DataError
from gptask.model.generation.generate import decoding_rows, generated_texts
from gptask.runs.predictions_file import prediction_fields
from gptask.runs.predictor import EncodedChunk, read_inputs
from gptask.runs.rows_in_memory import rows_in_memory
from gptask.serving.compute import computed
from gptask.serving.served_run import ServedRun
from gptask.serving.state import ServerState
from gptask.serving.work import ScoringWork, WholeWork, WritingWork


def predict_router(state: ServerState) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/predict/{name}")
    async def predict(name: str, request: Request) -> Any:
        model = state.registry.get(name)
        assert isinstance(model, ServedRun)
        examples = await request.json()
        columns = Columns(model.run.task, Data(labels=None), model.run.task.inputs())
        chunk = model.predictor.encode([*read_inputs(rows_in_memory(examples, columns), columns, "example")])
        outputs = dict(enumerate(await outputs_of(state, request, model, chunk)))
        answers = []
        for prediction in model.predictor.results(chunk, outputs):
            if isinstance(prediction, DataError):
                raise prediction
            answers.append(prediction_fields(prediction))
        return answers

    return router


async def outputs_of(state: ServerState, request: Request, model: ServedRun, chunk: EncodedChunk) -> list[Any]:
    """The head's output for each encoded item of a run's examples."""
    from gptask.data.datamodule import collate

    head: Any = model.run.head
    if not head.decodes:
        return list(await computed(state, request, ScoringWork(model, chunk.items, head)))
    batch = collate(chunk.items)
    if not model.decodes_in_batches:
        return list(await computed(state, request, WholeWork(model, lambda: head.predict(None, batch))))
    rows = decoding_rows(model.backbone, batch.prompts(), head.options)
    await computed(state, request, WritingWork(model, rows))
    return list(head.outputs(generated_texts(model.backbone, rows, head.options), batch))
