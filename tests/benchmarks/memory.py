"""Peak memory of LoRA training, each side in a process of its own that trains on the same sentences."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from harness import FULL, Result, subprocess_rate


def run(tier: str) -> list[Result]:
    """Peak megabytes in resident memory."""
    count = 320 if tier == FULL else 96
    results = []
    for experiment in ("sst2", "dialogsum") if tier == FULL else ("sst2",):
        peaks = {side: subprocess_rate(__file__, side, experiment, str(count))["mb"] for side in ("ours", "tuned")}
        name = f"peak memory of LoRA training, {experiment}"
        peaks_of = [peaks["ours"]], [peaks["tuned"]]
        results.append(Result(f"memory_{experiment}", name, "MB", *peaks_of, "tuned Trainer", lower=True))
    return results


def train(side: str, experiment: str, count: int) -> float:
    """Train one epoch of a side; return its peak in MB."""
    from gptask.runs.provenance import peak_memory_mb
    from ours import Training, options

    overrides = options(experiment, f"data.limit.train={count if experiment == 'sst2' else count // 4}")
    if side == "ours":
        Training(overrides).epoch(Path(tempfile.mkdtemp()))
    else:
        train_reference(overrides)
    return peak_memory_mb()


def train_reference(overrides: list[str]) -> None:
    """Train the reference for one epoch; gptask's model is never loaded beside it."""
    import reference
    from gptask.model.backbone.locate import locate
    from gptask.training import builder
    from ours import config, labelled

    options = config("train", overrides)
    corpus, task = builder.build_corpus(options.task, options.data, options.seed), options.task
    location = str(locate(options.backbone).location)
    if hasattr(task, "labels"):
        model = reference.classifier(location, task.labels, lora=True)
        rows = labelled(corpus.split("train"), task.labels)
        reference.classification(model, location, *rows, **reference.TUNED).train()
        return
    pairs = reference.pairs(reference.tokenizer(location), "summarization", list(corpus.split("train")))
    reference.sequence_trainer(reference.generator(location), location, pairs, **reference.TUNED_LM).train()


if __name__ == "__main__":
    print(json.dumps({"mb": round(train(sys.argv[1], sys.argv[2], int(sys.argv[3])))}))
