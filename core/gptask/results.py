"""What a finished run writes: metrics.json and predictions.jsonl."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask import run
from gptask.metric import score_all

if TYPE_CHECKING:
    from gptask.module import GPTModule


def finish(
    folder: Path,
    plugin: run.Plugin,
    module: GPTModule,
    data: Any,
    split: str,
    config: Any,
    started: float,
    fit_seconds: float,
) -> dict[str, Any]:
    """Score what the module said about a split, and write it down."""
    from gptask.progress import Speed

    examples, predictions = module.predictions(data, split)
    scores, statistics = score_all(module.task.metrics(), predictions, examples)
    run.write_predictions(folder / "predictions.jsonl", module.task, examples, predictions, statistics)
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    result = {
        "task": plugin.name,
        "plugin": plugin.origin,
        "split": split,
        "n": len(examples),
        "metrics": {score.name: score.to_dict() for score in scores},
        "details": module.task.details(predictions, examples),
        "test_data_hash": data.examples(split).hash,
        "seed": config.seed,
        "backbone": module.backbone.origin.kind,
        "weights_hash": module.backbone.origin.weights_hash,
        "trainable_parameters": learning,
        "parameters": sum(p.numel() for p in module.parameters()),
        "wall_seconds": round(time.time() - started, 2),
        "fit_seconds": round(fit_seconds, 2),
        "train_tokens_per_second": Speed.of(module.trainer),
        "peak_memory_mb": peak_memory_mb(),
        "versions": run.versions(),
        "git_commit": run.git_commit(),
    }
    run.write_json(folder / "metrics.json", result)
    return result


def peak_memory_mb() -> int:
    """Most memory this process held: on the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)
