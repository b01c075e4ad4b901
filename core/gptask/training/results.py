"""What a finished run writes: metrics.json, predictions.jsonl, the test's scores in its loggers, README.md."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.config.conversion import to_plain
from gptask.config.schemas import Train
from gptask.data.cache import digest
from gptask.data.corpus import SPLITS, count_overlap
from gptask.errors import listing
from gptask.plugins.discovery import plugin_of
from gptask.plugins.metric import score_all
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Prediction
from gptask.runs.atomic_write import write_json, write_text, written_whole
from gptask.runs.cards.model_card import ModelCard
from gptask.runs.cards.multitask_card import multitask_card
from gptask.runs.manifest import read_splits, write_manifest
from gptask.runs.predictions_file import write_predictions
from gptask.runs.provenance import git_commit, peak_memory_mb, versions
from gptask.training import loggers
from gptask.training.baseline import baseline_metric, baseline_scores
from gptask.training.context import RunContext

if TYPE_CHECKING:
    from torch import nn

    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.training.module import GPTModule
    from gptask.training.task_runtime import TaskRuntime

log = logging.getLogger("gptask")


def write_run_results(context: RunContext[Train], module: GPTModule) -> None:
    """Write the test results of a training; each of several tasks gets a run folder of its own in the run's."""
    results = {}
    for runtime in module.runtimes:
        of_task = task_context(context, runtime)
        if not runtime.single_task:
            of_task.folder.mkdir(exist_ok=True)
            of_task.write_config()
        results[runtime.name] = write_results(of_task, module, runtime, "test")
    if not module.runtimes[0].single_task:
        write_multitask_results(context, module, results)


def task_context(context: RunContext[Train], runtime: TaskRuntime) -> RunContext[Train]:
    """The context of a task of a trained run: the run's, or that of one of several tasks, whose folder lies in it."""
    config, name = context.config, runtime.name
    if runtime.single_task:
        return context
    return replace(
        context,
        config=replace(config, task=config.tasks[name].task, data=config.tasks[name].data, tasks={}),
        command=context.reproduce_command,
        corpora={name: context.corpora[name]},
        folder=context.folder / name,
        extra={"task_name": name, "tuned_options": runtime.tuned_options, "together": _companions(config)},
    )


def _companions(config: Train) -> dict[str, Any]:
    """What distinguishes a task's training from one alone, with other tasks, or with another mixing."""
    plain = {name: value for name, value in to_plain(config).items() if name in ("tasks", "mixing")}
    plugin_names = {name: plugin_of(one.task).name for name, one in config.tasks.items()}
    return {"tasks": plugin_names, "mixing": plain["mixing"], "digest": digest(json.dumps(plain, default=str))}


def write_results(context: RunContext[Any], module: GPTModule, runtime: TaskRuntime, split: str) -> dict[str, Any]:
    """Score the module's predictions for a task's split, write them down, return what metrics.json holds.

    ``context`` is that of the task alone.
    """
    plugin, task, data = context.plugin, runtime.task, runtime.data
    examples, predictions = runtime.predictions(split)
    if not examples:
        log.warning("%s: no example was scored (trainer.limit_test_batches=0?), so there are no metrics", split)
    else:
        predictions = list(task.annotate_predictions(predictions, examples))
    scores, statistics = score_all(task.metrics(), predictions, examples) if examples else ([], [])
    _warn_of_one_answer(predictions, examples, task)
    write_predictions(context.folder / "predictions.jsonl", task, examples, predictions, statistics)
    trains, variation = isinstance(context.config, Train), context.variation
    splits = {name: data.examples(name).digests for name in (SPLITS if trains else (split,))}
    parent = variation.parent_of(None if runtime.single_task else runtime.name) if trains else context.extra["parent"]
    trained_on = splits if trains else read_splits(parent) if parent else {}
    result = {
        "fingerprint": context.fingerprint,
        "task": plugin.name,
        "plugin": plugin.origin,
        "split": split,
        "n": len(examples),
        "metrics": {score.name: score.to_dict() for score in scores},
        "baselines": _baselines(context, runtime, examples, statistics),
        "details": task.details(predictions, examples) if examples else {},
        "test_data_hash": data.examples(split).hash,
        "overlap": count_overlap(splits[split], trained_on),
        "seed": context.config.seed,
        **parameter_counts(module.backbone, runtime.head),
        **run_cost(module, context),
        **variation.results(module, runtime, examples, statistics),
    }
    for name, file in variation.files(runtime).items():
        with written_whole(context.folder / name) as partial:
            shutil.copyfile(file, partial)
    write_json(context.folder / "metrics.json", result)
    logged = {f"test/{runtime.prefix}{name}": score["value"] for name, score in result["metrics"].items()}
    if undefined := [one.name for one in scores if not math.isfinite(one.value)]:
        log.warning("%s: %s could not be computed; metrics.json holds null", split, listing(undefined))
    loggers.log_scores(module.trainer.loggers, logged, module.trainer.global_step)
    write_card(context, module.backbone, runtime, result)
    method, weight_format = variation.method if trains else "evaluate", module.backbone.weight_format
    write_manifest(context.folder, context.fingerprint, method, splits, parent, weight_format)
    return result


def _warn_of_one_answer(predictions: Sequence[Prediction], examples: Sequence[Example], task: Task) -> None:
    """Warn where all predictions are alike though the references are not."""
    targets = [field.name for field in task.targets()]
    references = [[example.get(name) for name in targets] for example in examples]
    alike = len(predictions) > 1 and all(prediction.value == predictions[0].value for prediction in predictions)
    if alike and any(reference != references[0] for reference in references):
        log.warning("all %d predictions are the same: %r", len(predictions), str(predictions[0].value)[:60])


def _baselines(
    context: RunContext[Any], runtime: TaskRuntime, examples: Sequence[Example], statistics: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The baselines of the main metric; none without training data, or with ``baseline=false``.

    They learn from and are tuned on no example that they are scored on, as where a run is evaluated on a split it was
    trained or selected on, or on a file that its data is cut from.
    """
    (corpus,) = context.corpora.values()
    task = runtime.task
    metric = baseline_metric(task)
    if not (context.config.baseline and examples and metric and corpus.split_source("train") is not None):
        return {}
    rows = np.asarray([row[metric.name] for row in statistics])
    tested = [example["digest"] for example in examples]
    splits = {name: corpus.split(name).without(tested) for name in ("train", "validation")}
    if not len(splits["train"]):
        return {}
    return baseline_scores(task, metric, rows, examples, splits)


def write_multitask_results(context: RunContext[Train], module: GPTModule, results: dict[str, dict[str, Any]]) -> None:
    """Write README.md and metrics.json of a run of several tasks as a whole.

    ``results`` are the tasks' own, as `write_results` returned them; the whole run's repeat only their main metrics.
    """
    tasks = {}
    for name, result in results.items():
        tasks[name] = {"task": result["task"], "n": result["n"], "metrics": dict(list(result["metrics"].items())[:1])}
    run_result = {
        "fingerprint": context.fingerprint,
        "tasks": tasks,
        "split": "test",
        "seed": context.config.seed,
        **parameter_counts(module),
        **run_cost(module, context),
    }
    card = multitask_card(context.folder, context.config, run_result, context.reproduce_command)
    write_text(context.folder / "README.md", card)
    write_json(context.folder / "metrics.json", run_result)
    variation = context.variation
    write_manifest(context.folder, context.fingerprint, variation.method, {}, variation.parent_of(None))


def parameter_counts(*modules: nn.Module) -> dict[str, int]:
    """How many parameters learned and how many there are, each counted once."""
    parameters = {id(p): p for module in modules for p in module.parameters()}.values()
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return {"trainable_parameters": trainable, "parameters": sum(p.numel() for p in parameters)}


def run_cost(module: GPTModule, context: RunContext[Any]) -> dict[str, Any]:
    """What a run took and what it ran on."""
    from gptask.training.callbacks import Speed

    return {
        "backbone": module.backbone.origin.kind,
        "engine": module.backbone.engine.describe(),
        "weights_hash": module.backbone.origin.weights_hash,
        "wall_seconds": round(time.time() - context.started, 2),
        "fit_seconds": round(context.fit_seconds, 2),
        "train_tokens_per_second": Speed.of(module.trainer),
        "peak_memory_mb": peak_memory_mb(),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def write_card(context: RunContext[Any], backbone: GPTBackbone, runtime: TaskRuntime, result: dict[str, Any]) -> None:
    """Write README.md; an error is logged, since the run is finished and stays valid without it."""
    facts = (context.folder, context.plugin, backbone, runtime.head, runtime.data, context.config, result)
    try:
        ModelCard(*facts, command=context.reproduce_command, single_task=runtime.single_task).write()
    except Exception as error:  # a plugin's text, a full disk
        log.warning("README.md could not be written: %s: %s", type(error).__name__, error)
