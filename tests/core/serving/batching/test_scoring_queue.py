"""Runs of every kind on one backbone: what is computed together equals what each run computes alone."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from gptask import GenerationOptions
from gptask.config.conversion import from_plain
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Lora
from gptask.data.rows import Row
from gptask.model.backbone.backbone import load_or_build_backbone
from gptask.model.generation.generate import decoding_rows, generated_texts
from gptask.runs.predictor import InputRow
from gptask.runs.run import load_run, load_run_onto
from gptask.runs.saved_model import locate_backbone
from gptask.serving.batching.batcher import Batcher
from gptask.serving.batching.work import ScoringWork, Work, WritingWork
from gptask.serving.models.served_run import ServedRun
from gptask.serving.prometheus import ServerMetrics
from gptask_tasks.classification import Classification
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.summarization import Summarization
from gptask_tasks.token_tagging import Context, TokenTagging

from tests.support.tiny_models import TEXT

WORDS = TEXT.split()


class Alone(NamedTuple):
    """A run, encoded items of it, and what it computes of each of them alone."""

    folder: Any
    items: list[dict[str, Any]]
    outputs: list[Any]


def texts(draw: random.Random, count: int) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 25))) for _ in range(count)]


@pytest.fixture(scope="module")
def runs(random_run: Callable[..., Any]) -> dict[str, Alone]:
    draw, generation = random.Random(0), GenerationOptions(max_new_tokens=9)
    tasks: dict[str, tuple[Any, list[dict[str, Any]]]] = {
        "two": (Sentiment(labels=["negative", "positive"]), [{"text": text} for text in texts(draw, 6)]),
        "six": (Classification(labels=list("abcdef")), [{"text": text} for text in texts(draw, 6)]),
        "tags": (
            TokenTagging(types=["LOC", "PER"], context=Context.bidirectional),
            [{"tokens": text.split()} for text in texts(draw, 4)],
        ),
        "spans": (
            QuestionAnswering(answer=AnswerForm.span, stride=8),
            [{"question": "who is it?", "context": text} for text in texts(draw, 4)],
        ),
        "summary": (Summarization(generation=generation), [{"document": text} for text in texts(draw, 4)]),
    }
    alone = {}
    for seed, (name, (task, examples)) in enumerate(tasks.items()):
        run = load_run(random_run(task, "llama", Lora(rank=2), seed=seed).folder)
        predictor = ServedRun(name, run.backbone, run).predictor
        items = predictor.encode([InputRow(Row(n, example), example) for n, example in enumerate(examples)]).items
        outputs = [predictor._predict_items([item | {"row": 0}])[0] for item in items]
        alone[name] = Alone(run.folder, items, outputs)
    return alone


def numbers(output: Any) -> list[float]:
    """All numbers in an output, in their order."""
    if isinstance(output, list | tuple):
        return [number for part in output for number in numbers(part)]
    return [float(output)] if isinstance(output, int | float) else numbers([*vars(output).values()])


def work_on(model: ServedRun, items: list[dict[str, Any]]) -> Work:
    head: Any = model.run.head
    if not head.decodes:
        return ScoringWork(model, items, head)
    return WritingWork(model, decoding_rows(model.backbone, [item["ids"] for item in items], head.options))


@pytest.mark.parametrize("engine", [Fast(), Reference()], ids=["fast", "reference"])
def test_mixed_work_equals_each_alone(runs: dict[str, Alone], engine: Any) -> None:
    options = from_plain("backbone", load_run(runs["two"].folder).config["backbone"])
    backbone = load_or_build_backbone(options, locate_backbone(options), list, engine).eval()
    models = {}
    for name, alone in runs.items():
        run = load_run_onto(backbone, alone.folder)
        models[name] = ServedRun(name, run.backbone, run)
    draw = random.Random(1)
    batcher = Batcher(ServerMetrics())
    pieces: list[tuple[str, list[int], Work]] = []
    for name, alone in [*runs.items()] * 3:
        places = draw.sample(range(len(alone.items)), draw.randint(1, len(alone.items)))
        pieces.append((name, places, work_on(models[name], [alone.items[place] for place in places])))
    draw.shuffle(pieces)
    for _, _, work in pieces:
        batcher.submit(work)
    batcher.start()
    for name, places, work in pieces:
        outputs = work.future.result(60)
        expected = [runs[name].outputs[place] for place in places]
        if name == "summary":
            got = generated_texts(models[name].backbone, outputs, models[name].run.head.options)  # type: ignore[attr-defined]
            assert [text.text for text in got] == [text.text for text in expected]
            assert [text.score for text in got] == pytest.approx([text.score for text in expected], abs=1e-5)
        else:
            assert numbers(outputs) == pytest.approx(numbers(expected), abs=1e-5, rel=1e-5)
    assert batcher.drain(60)
    metrics = batcher.metrics.exposition().decode()
    assert 'gptask_tokens_read_total{run="six"}' in metrics
    assert 'gptask_tokens_written_total{run="summary"}' in metrics
