"""`gptask explain`: the explanations for a file or standard input, written as they are made.

A file for a file is written as a `PartFile`, from which the same command goes on after it was stopped.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from gptask.analysis.explain.chosen_examples import CHOICES, ReferencedRow, chosen_examples
from gptask.analysis.explain.explain_page import explain_page
from gptask.analysis.explain.explanation import Explanation, Faithfulness, read_lines
from gptask.analysis.explain.faithfulness import summarize
from gptask.analysis.explain.page_of_run import EXPLAIN_PAGE
from gptask.config.engine import refuse_openvino
from gptask.config.explain_options import Explain, ExplainMethod
from gptask.config.schemas import BadRowPolicy
from gptask.data.column_lookup import trained_columns
from gptask.data.columns import Columns
from gptask.data.documents import options_for_task
from gptask.data.reading import read, read_stream
from gptask.data.rows import Source, stdin
from gptask.errors import DataError, UserError, visible
from gptask.runs.atomic_write import write_text
from gptask.runs.part_file import PartFile
from gptask.runs.predict_file import file_to_replace
from gptask.runs.prediction_identity import run_digest, run_identity
from gptask.runs.predictor import Predictor, read_inputs
from gptask.runs.run import Run, load_run

if TYPE_CHECKING:
    from gptask.analysis.explain.explainer import Explainer

log = logging.getLogger("gptask")
PAGE = ".html"
ENDINGS = (PAGE, ".jsonl")
NO_REASON = "attention rollout shows where information can have come from; it is no reason for a prediction"


def explain_file(config: Explain) -> Faithfulness | None:
    """Write an explanation for each row of ``config.input`` to ``config.output``, then how faithful the method is.

    ``input`` may be ``worst`` or ``surprising``: test examples of the run (see `chosen_examples`). Returns how faithful
    the method is, None where no row could be measured. Raises `UserError` where a file can't be read or written
    and where the run has nothing to explain, `DataError` for a bad row (unless data.on_bad=skip).
    """
    refuse_openvino(config.engine, "explain")
    steps = config.check()
    config = _with_output(config)
    chosen, order = list[ReferencedRow](), ""
    if config.input in CHOICES:
        chosen, order = chosen_examples(Path(config.run), config.input, config.examples)
        log.info("input=%s: %s", config.input, order)
    source = _input_file(config)
    run = load_run(config.run, config.task, engine=config.engine)
    explainer = explainer_of(run, config, steps)
    log.info("%s", run.backbone.engine.summary())
    if config.method is ExplainMethod.attention:
        log.warning("%s", NO_REASON)
    inputs = _inputs(config, source, run, chosen)
    if config.output == "-":
        return _write_stream(config, explainer, inputs())
    return _write_file(config, explainer, inputs, run, order)


def _with_output(config: Explain) -> Explain:
    """The config with the output that is left open, and with the attention of every head where a page is to show it."""
    in_run = str(Path(config.run) / EXPLAIN_PAGE)
    output = config.output or (in_run if config.input in CHOICES else "-")
    shows_heads = output.lower().endswith(PAGE) and config.method is ExplainMethod.attention
    return replace(config, output=output, attention_maps=config.attention_maps or shows_heads)


def explainer_of(run: Run, config: Explain, steps: int | None) -> Explainer:
    """What explains a run's predictions, checked against the run, on the device that the machine has."""
    import torch

    from gptask.analysis.explain.explainer import Explainer

    predictor = Predictor(run.task, run.backbone, run.head, config.data)
    explainer = Explainer(
        predictor,
        config.method,
        config.against,
        steps,
        config.places,
        config.other_classes,
        config.attention_maps,
    )
    explainer.check()
    for module in (run.backbone, run.head):
        module.to("cuda" if torch.cuda.is_available() else "cpu")
    return explainer


def _input_file(config: Explain) -> Source | None:
    """The file to read, None for standard input and for chosen examples.

    Raises `UserError` where input and output can't be right.
    """
    target = Path(str(config.output))
    if config.output == "-" and sys.__stdout__ is None:
        raise UserError("standard output is closed; name a file for the explanations: output=why.jsonl")
    if config.input == "-" and sys.__stdin__ is None:
        raise UserError("standard input is closed; name a file to read: input=<file>")
    if config.output != "-" and target.suffix.lower() not in ENDINGS:
        raise UserError(f"output={config.output}: explain writes {' and '.join(ENDINGS)}; choose such a name")
    source = None if config.input in ("-", *CHOICES) else Source.parse(config.input, config.data.root)
    if config.output != "-" and source and target.exists() and target.samefile(source.path):
        raise UserError(f"output={target} is the input; choose another file")
    return source


def _inputs(
    config: Explain, source: Source | None, run: Run, chosen: Sequence[ReferencedRow]
) -> Callable[[], Iterator[ReferencedRow]]:
    """What reads the rows, once for standard input; ``chosen`` ones are there."""
    if chosen:
        return lambda: iter(chosen)
    columns = Columns(
        run.task, config.data, run.task.inputs(), trained_columns=trained_columns(run.config.get("data") or {})
    )
    options, names = options_for_task(config.data, run.task), columns.header_names

    def inputs() -> Iterator[ReferencedRow]:
        rows = read(source, options, names) if source else read_stream(stdin(), options, names)
        for entry in read_inputs(rows, columns, str(source.path) if source else "<stdin>"):
            yield ReferencedRow(entry, None)

    return inputs


class _Explained:
    """Explains rows one by one, and counts those that are blank or bad."""

    def __init__(self, config: Explain, explainer: Explainer) -> None:
        self.config, self.explainer, self.counts = config, explainer, Counter[str]()

    def explanation(self, row: ReferencedRow) -> Explanation | None:
        """The explanation of a row; None for one that is left out.

        Raises `DataError` for a bad one unless data.on_bad=skip.
        """
        entry = row.entry
        try:
            if isinstance(entry.example, DataError):
                raise entry.example
            if entry.example is None:
                self.counts["blank"] += 1
                return None
            return self.explainer.explain(entry, row.reference)
        except DataError as error:
            if self.config.data.on_bad is BadRowPolicy.stop:
                raise DataError(f"{error} (data.on_bad=skip leaves such rows out)") from error
            self.counts["bad"] += 1
            log.warning("left out: %s", error)
            return None

    def log(self, count: int, name: str) -> None:
        """Log how many rows were explained, and left out."""
        left_out = ", ".join(f"{number:,} {kind}" for kind, number in self.counts.items())
        log.info("%s %s explained in %s%s", f"{count:,}", "row is" if count == 1 else "rows are", name,
                 f" ({left_out} left out)" if left_out else "")  # fmt: skip


def _write_stream(config: Explain, explainer: Explainer, inputs: Iterator[ReferencedRow]) -> Faithfulness | None:
    """Write each line to standard output as soon as it is there."""
    explained, explanations = _Explained(config, explainer), list[Explanation]()
    for row in inputs:
        if (explanation := explained.explanation(row)) is not None:
            explanations.append(explanation)
            sys.stdout.write(f"{visible(explanation.to_json())}\n")
            sys.stdout.flush()
    summary = summarize(config.method.value, explanations)
    if summary:
        sys.stdout.write(f"{visible(summary.to_json())}\n")
    explained.log(len(explanations), "standard output")
    return summary


def _write_file(
    config: Explain, explainer: Explainer, inputs: Callable[[], Iterator[ReferencedRow]], run: Run, order: str
) -> Faithfulness | None:
    """Write a file that appears under its name once it is complete, and goes on where an earlier start ended.

    A page is made of the lines once they are all there.
    """
    options = {name: str(value) for name, value in vars(config).items() if name not in ("task", "engine", "data")}
    identity = options | {f"data.{name}": value for name, value in asdict(config.data).items()} | run_identity(run)
    output = str(config.output)
    target = file_to_replace(output) or Path(output)
    explained = _Explained(config, explainer)
    try:
        with PartFile(target, identity) as part:
            done = int(part.state.get("rows", 0))
            explained.counts.update(part.state.get("counts", {}))
            if done:
                log.info("%s rows are taken over from %s", f"{done:,}", part.path)
            for number, row in enumerate(islice(inputs(), done, None), done + 1):
                if (explanation := explained.explanation(row)) is not None:
                    part.write(f"{explanation.to_json()}\n".encode())
                part.end_window({"rows": number, "counts": dict(explained.counts)})
            explanations = _explanations(part.path)
            summary, page = summarize(config.method.value, explanations), None
            if target.suffix.lower() == PAGE:
                page = target.with_name(f"{target.name}.page")
                source = {"method": config.method.value, "run": config.run, "run_digest": run_digest(run.folder)}
                write_text(page, explain_page(explanations, summary, order=order, **source))
            elif summary:
                part.write(f"{summary.to_json()}\n".encode())
            part.flush()
            part.publish(made_of_it=page)
    except OSError as error:
        raise UserError(f"{output} can't be written: {error.strerror}") from error
    explained.log(len(explanations), output)
    return summary


def _explanations(path: Path) -> list[Explanation]:
    with path.open(encoding="utf-8") as lines:
        return [line for line in read_lines(lines) if isinstance(line, Explanation)]
