"""What a finished run writes: metrics.json, predictions.jsonl, the test's scores in its loggers, README.md."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.plugins.discovery import plugin_of
from gptask.plugins.metric import score_all
from gptask.runs.atomic_write import write_json, write_text
from gptask.runs.cards.model_card import ModelCard
from gptask.runs.cards.multitask_card import multitask_card
from gptask.runs.predictions_file import write_predictions
from gptask.runs.provenance import git_commit, peak_memory_mb, versions
from gptask.training import loggers

if TYPE_CHECKING:
    from gptask.training.module import GPTModule
    from gptask.training.task_runtime import TaskRuntime

log = logging.getLogger("gptask")


def write_results(
    folder: Path,
    module: GPTModule,
    seat: TaskRuntime,
    split: str,
    config: Any,
    started: float,
    fit_seconds: float,
    job: str,
) -> dict[str, Any]:
    """Score what the module said about a task's split, and write it down; ``job`` says what it is the result of.

    ``config`` is that of the task alone.
    """
    plugin, task, data = plugin_of(config.task), seat.task, seat.data
    examples, predictions = seat.predictions(split)
    if not examples:
        log.warning("%s: no example was scored (trainer.limit_test_batches=0?), so there are no metrics", split)
    else:
        predictions = list(task.annotate_predictions(predictions, examples))
    scores, statistics = score_all(task.metrics(), predictions, examples) if examples else ([], [])
    write_predictions(folder / "predictions.jsonl", task, examples, predictions, statistics)
    result = {
        "job": job,
        "task": plugin.name,
        "plugin": plugin.origin,
        "split": split,
        "n": len(examples),
        "metrics": {score.name: score.to_dict() for score in scores},
        "details": task.details(predictions, examples) if examples else {},
        "test_data_hash": data.examples(split).hash,
        "seed": config.seed,
        **parameter_counts(module.backbone, seat.head),
        **run_cost(module, started, fit_seconds),
    }
    write_json(folder / "metrics.json", result)
    tested = {f"test/{seat.prefix}{name}": score["value"] for name, score in result["metrics"].items()}
    loggers.log_scores(module.trainer.loggers, tested, module.trainer.global_step)
    write_card(ModelCard(folder, plugin, module.backbone, seat.head, data, config, result, seat.alone))
    return result


def write_multitask_results(
    folder: Path, module: GPTModule, config: Any, started: float, fit_seconds: float, job: str, results: dict[str, Any]
) -> None:
    """Write what a run of several tasks is as a whole: README.md, metrics.json.

    ``results`` are what `write_results` wrote for each task into its folder; here stand their main metrics.
    """
    tasks = {}
    for name, result in results.items():
        tasks[name] = {"task": result["task"], "n": result["n"], "metrics": dict(list(result["metrics"].items())[:1])}
    whole = {
        "job": job,
        "tasks": tasks,
        "split": "test",
        "seed": config.seed,
        **parameter_counts(module),
        **run_cost(module, started, fit_seconds),
    }
    write_text(folder / "README.md", multitask_card(folder, config, whole))
    write_json(folder / "metrics.json", whole)


def parameter_counts(*parts: Any) -> dict[str, int]:
    """How many parameters learned and how many there are, each counted once."""
    found = {id(p): p for part in parts for p in part.parameters()}.values()
    learned = sum(p.numel() for p in found if p.requires_grad)
    return {"trainable_parameters": learned, "parameters": sum(p.numel() for p in found)}


def run_cost(module: GPTModule, started: float, fit_seconds: float) -> dict[str, Any]:
    """What a run took and on what it ran; ``started`` is a time in seconds."""
    from gptask.training.callbacks import Speed

    return {
        "backbone": module.backbone.origin.kind,
        "weights_hash": module.backbone.origin.weights_hash,
        "wall_seconds": round(time.time() - started, 2),
        "fit_seconds": round(fit_seconds, 2),
        "train_tokens_per_second": Speed.of(module.trainer),
        "peak_memory_mb": peak_memory_mb(),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def write_card(card: ModelCard) -> None:
    """Write README.md; the run is finished and kept whatever comes of that."""
    try:
        card.write()
    except Exception as error:  # a plugin's text, a full disk
        log.warning("README.md could not be written: %s: %s", type(error).__name__, error)
