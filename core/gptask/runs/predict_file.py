"""`gptask predict`: a run's predictions for a file or standard input, written as they are made."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from pathlib import Path

from gptask.config.schemas import BadRowPolicy, Predict
from gptask.data.columns import Columns
from gptask.data.documents import options_for_task
from gptask.data.reading import read, read_stream
from gptask.data.rows import Source, stdin
from gptask.errors import DataError, UserError
from gptask.plugins.types import Example, Prediction
from gptask.runs.atomic_write import json_text
from gptask.runs.predictions_file import prediction_fields
from gptask.runs.predictor import Predictor, read_examples
from gptask.runs.run import load_run

log = logging.getLogger("gptask")


def predict(config: Predict) -> None:
    """Write a JSON line to ``config.output`` for each row of ``config.input``, in order.

    Raises `UserError` where a file can't be read or written, `DataError` for a bad row (unless on_error=skip).
    """
    source = None if config.input == "-" else Source.parse(config.input, config.data.root)
    target = None if config.output == "-" else Path(config.output)
    if target and source and target.exists() and target.samefile(source.path):
        raise UserError(f"output={target} is the input; choose another file")
    run = load_run(config.run, config.task, engine=config.engine)
    log.info("%s", run.backbone.engine.summary())
    columns = Columns(run.task, config.data, run.task.inputs())
    options = options_for_task(config.data, run.task)
    rows = read(source, options, columns.header_names) if source else read_stream(stdin(), options)
    predictor = Predictor(run.task, run.backbone, run.head, config.data)
    examples = read_examples(rows, columns, str(source.path) if source else "<stdin>")
    try:
        with target.open("w", encoding="utf-8") if target else nullcontext(sys.stdout) as stream:
            for example, prediction in predictor.predict_each(examples):
                stream.write(_json_line(example, prediction, config.on_error) + "\n")
                stream.flush()
    except BrokenPipeError:  # `gptask predict ... | head`
        sys.stdout = None
    except OSError as error:
        raise UserError(f"{config.output} can't be written: {error.strerror}") from error


def _json_line(example: Example | DataError, prediction: Prediction | DataError, on_error: BadRowPolicy) -> str:
    if isinstance(prediction, DataError):
        if on_error is BadRowPolicy.stop:
            raise DataError(f"{prediction} (on_error=skip writes the error in place of the row and continues)")
        return json_text({"error": str(prediction)})
    assert isinstance(example, dict)
    return json_text(example | prediction_fields(prediction))
