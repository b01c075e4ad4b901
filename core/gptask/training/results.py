"""What a finished run writes: metrics.json, predictions.jsonl, the test's scores in its loggers, README.md."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import to_plain
from gptask.config.schemas import Evaluate, Train
from gptask.data.cache import digest
from gptask.data.corpus import SPLITS
from gptask.plugins.discovery import plugin_of
from gptask.plugins.metric import score_all
from gptask.runs.atomic_write import write_json, write_text
from gptask.runs.cards.model_card import ModelCard
from gptask.runs.cards.multitask_card import multitask_card
from gptask.runs.config_file import read_config, write_config
from gptask.runs.manifest import write_manifest
from gptask.runs.predictions_file import write_predictions
from gptask.runs.provenance import git_commit, peak_memory_mb, versions
from gptask.runs.reproduce import reproduce_command
from gptask.training import loggers

if TYPE_CHECKING:
    from torch import nn

    from gptask.training.module import GPTModule
    from gptask.training.task_runtime import TaskRuntime

log = logging.getLogger("gptask")


def write_run_results(
    folder: Path, module: GPTModule, config: Train, started: float, fit_seconds: float, fingerprint: str
) -> None:
    """Write the test results of a training; each of several tasks gets a run folder of its own in the run's."""
    if not config.tasks:
        write_results(folder, module, module.runtimes[0], "test", config, started, fit_seconds, fingerprint)
        return
    shared: dict[str, Any] = {"command": reproduce_command(read_config(folder)), "together": _companions(config)}
    results = {}
    for runtime in module.runtimes:
        task_folder, task_config = folder / runtime.name, single_task_config(config, runtime.name)
        task_folder.mkdir(exist_ok=True)
        write_config(task_folder, task_config, task_name=runtime.name, tuned_options=runtime.tuned_options, **shared)
        results[runtime.name] = write_results(
            task_folder, module, runtime, "test", task_config, started, fit_seconds, fingerprint
        )
    write_multitask_results(folder, module, config, started, fit_seconds, fingerprint, results)


def _companions(config: Train) -> dict[str, Any]:
    """What distinguishes a task's training from one alone, with other tasks, or with another mixing."""
    plain = {name: value for name, value in to_plain(config).items() if name in ("tasks", "mixing")}
    plugin_names = {name: plugin_of(task_config.task).name for name, task_config in config.tasks.items()}
    return {"tasks": plugin_names, "mixing": plain["mixing"], "digest": digest(json.dumps(plain, default=str))}


def single_task_config(config: Train, name: str) -> Train:
    """The config of one of several tasks."""
    return replace(config, task=config.tasks[name].task, data=config.tasks[name].data, tasks={})


def write_results(
    folder: Path,
    module: GPTModule,
    runtime: TaskRuntime,
    split: str,
    config: Train | Evaluate,
    started: float,
    fit_seconds: float,
    fingerprint: str,
) -> dict[str, Any]:
    """Score the module's predictions for a task's split, write them down, return what metrics.json holds.

    ``config`` is that of the task alone; ``fingerprint`` is that of the run.
    """
    plugin, task, data = plugin_of(config.task), runtime.task, runtime.data
    examples, predictions = runtime.predictions(split)
    if not examples:
        log.warning("%s: no example was scored (trainer.limit_test_batches=0?), so there are no metrics", split)
    else:
        predictions = list(task.annotate_predictions(predictions, examples))
    scores, statistics = score_all(task.metrics(), predictions, examples) if examples else ([], [])
    write_predictions(folder / "predictions.jsonl", task, examples, predictions, statistics)
    result = {
        "fingerprint": fingerprint,
        "task": plugin.name,
        "plugin": plugin.origin,
        "split": split,
        "n": len(examples),
        "metrics": {score.name: score.to_dict() for score in scores},
        "details": task.details(predictions, examples) if examples else {},
        "test_data_hash": data.examples(split).hash,
        "seed": config.seed,
        **parameter_counts(module.backbone, runtime.head),
        **run_cost(module, started, fit_seconds),
    }
    write_json(folder / "metrics.json", result)
    logged = {f"test/{runtime.prefix}{name}": score["value"] for name, score in result["metrics"].items()}
    loggers.log_scores(module.trainer.loggers, logged, module.trainer.global_step)
    write_card(ModelCard(folder, plugin, module.backbone, runtime.head, data, config, result, runtime.single_task))
    method, names, parent = ("train", SPLITS, None) if isinstance(config, Train) else ("evaluate", (split,), config.run)
    splits = {name: data.examples(name).digests for name in names}
    write_manifest(folder, fingerprint, method, splits, parent)
    return result


def write_multitask_results(
    folder: Path,
    module: GPTModule,
    config: Train,
    started: float,
    fit_seconds: float,
    fingerprint: str,
    results: dict[str, dict[str, Any]],
) -> None:
    """Write README.md and metrics.json of a run of several tasks as a whole.

    ``results`` are the tasks' own, as `write_results` returned them; the whole run's repeat only their main metrics.
    """
    tasks = {}
    for name, result in results.items():
        tasks[name] = {"task": result["task"], "n": result["n"], "metrics": dict(list(result["metrics"].items())[:1])}
    run_result = {
        "fingerprint": fingerprint,
        "tasks": tasks,
        "split": "test",
        "seed": config.seed,
        **parameter_counts(module),
        **run_cost(module, started, fit_seconds),
    }
    write_text(folder / "README.md", multitask_card(folder, config, run_result))
    write_json(folder / "metrics.json", run_result)
    write_manifest(folder, fingerprint, "train", {})


def parameter_counts(*modules: nn.Module) -> dict[str, int]:
    """How many parameters learned and how many there are, each counted once."""
    parameters = {id(p): p for module in modules for p in module.parameters()}.values()
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return {"trainable_parameters": trainable, "parameters": sum(p.numel() for p in parameters)}


def run_cost(module: GPTModule, started: float, fit_seconds: float) -> dict[str, Any]:
    """What a run took and what it ran on; ``started`` is a time in seconds since the epoch."""
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
    """Write README.md; an error is logged, since the run is finished and stays valid without it."""
    try:
        card.write()
    except Exception as error:  # a plugin's text, a full disk
        log.warning("README.md could not be written: %s: %s", type(error).__name__, error)
