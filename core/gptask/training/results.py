"""What a finished run writes: metrics.json, predictions.jsonl, the test's scores in its loggers, README.md."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.plugins.metric import score_all
from gptask.plugins.task import Example, Prediction, Task
from gptask.runs import run
from gptask.runs.cards.model_card import Card
from gptask.runs.cards.multitask_card import cover
from gptask.training import loggers

if TYPE_CHECKING:
    from gptask.training.module import GPTModule
    from gptask.training.task_runtime import Seat

log = logging.getLogger("gptask")
PACKAGES = (
    "gptask",
    "torch",
    "transformers",
    "pytorch-lightning",
    "peft",
    "sacrebleu",
    "rouge-score",
    "scikit-learn",
)


def finish(
    folder: Path,
    module: GPTModule,
    seat: Seat,
    split: str,
    config: Any,
    started: float,
    fit_seconds: float,
    job: str,
) -> dict[str, Any]:
    """Score what the module said about a task's split, and write it down; ``job`` says what it is the result of.

    ``config`` is that of the task alone.
    """
    plugin, task, data = run.plugin_of(config.task), seat.task, seat.data
    examples, predictions = seat.predictions(split)
    if not examples:
        log.warning("%s: no example was scored (trainer.limit_test_batches=0?), so there are no metrics", split)
    else:
        predictions = list(task.review(predictions, examples))
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
        **parameters(module.backbone, seat.head),
        **cost(module, started, fit_seconds),
    }
    run.write_json(folder / "metrics.json", result)
    tested = {f"test/{seat.prefix}{name}": score["value"] for name, score in result["metrics"].items()}
    loggers.log_scores(module.trainer.loggers, tested, module.trainer.global_step)
    write_card(Card(folder, plugin, module.backbone, seat, config, result))
    return result


def finish_all(
    folder: Path, module: GPTModule, config: Any, started: float, fit_seconds: float, job: str, results: dict[str, Any]
) -> None:
    """Write what a run of several tasks is as a whole: README.md, metrics.json.

    ``results`` are what `finish` wrote for each task into its folder; here stand their main metrics.
    """
    tasks = {}
    for name, result in results.items():
        tasks[name] = {"task": result["task"], "n": result["n"], "metrics": dict(list(result["metrics"].items())[:1])}
    whole = {
        "job": job,
        "tasks": tasks,
        "split": "test",
        "seed": config.seed,
        **parameters(module),
        **cost(module, started, fit_seconds),
    }
    run.write_text(folder / "README.md", cover(folder, config, whole))
    run.write_json(folder / "metrics.json", whole)


def parameters(*parts: Any) -> dict[str, int]:
    """How many parameters learned and how many there are, each counted once."""
    found = {id(p): p for part in parts for p in part.parameters()}.values()
    learned = sum(p.numel() for p in found if p.requires_grad)
    return {"trainable_parameters": learned, "parameters": sum(p.numel() for p in found)}


def cost(module: GPTModule, started: float, fit_seconds: float) -> dict[str, Any]:
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


def write_card(card: Card) -> None:
    """Write README.md; the run is finished and kept whatever comes of that."""
    try:
        card.write()
    except Exception as error:  # a plugin's text, a full disk
        log.warning("README.md could not be written: %s: %s", type(error).__name__, error)


def peak_memory_mb() -> int:
    """Most memory this process held: on the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss would count the process that started this one
        return next(int(line.split()[1]) >> 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


def write_predictions(
    path: Path,
    task: Task,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    statistics: Sequence[dict[str, list[float]]],
) -> None:
    """One line per test example: id, input fields, digest, prediction, references, probabilities, statistics."""
    with path.open("w", encoding="utf-8") as stream:
        for example, prediction, numbers in zip(examples, predictions, statistics, strict=True):
            line = {
                "id": example["id"],
                "digest": f"{example['digest'] + 2**63:016x}",
                "group": f"{example['group'] + 2**63:016x}",
                **{f.name: example[f.name] for f in task.inputs()},
                "references": {f.name: example[f.name] for f in task.targets()},
                **prediction_fields(prediction),
                "statistics": numbers,
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def prediction_fields(prediction: Prediction) -> dict[str, Any]:
    """A prediction as it stands in a JSON line."""
    fields: dict[str, Any] = {"prediction": prediction.value}
    if prediction.score is not None:
        fields["score"] = round(prediction.score, 6)
    if prediction.samples is not None:
        fields["samples"] = prediction.samples
    if prediction.probabilities is not None:
        fields["probabilities"] = {name: round(p, 6) for name, p in prediction.probabilities.items()}
    if prediction.extra:
        fields["extra"] = prediction.extra
    return fields


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(touching: bool = False) -> str | None:
    """The commit gptask's own code is at, where it runs from a checkout; ``touching``: the last that changed it."""
    asked = ["log", "-1", "--format=%H", "--", "."] if touching else ["rev-parse", "HEAD"]
    command = ["git", "-C", str(Path(__file__).parent), *asked]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
