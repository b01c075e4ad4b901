"""Peak memory of LoRA training, each side in a process of its own that trains on the same sentences."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from harness import FULL, Result, subprocess_rate


def run(tier: str) -> list[Result]:
    """Megabytes resident at most."""
    count = 320 if tier == FULL else 96
    results = []
    for experiment in ("sst2", "dialogsum") if tier == FULL else ("sst2",):
        used = {side: subprocess_rate(__file__, side, experiment, str(count))["mb"] for side in ("ours", "tuned")}
        name = f"peak memory of LoRA training, {experiment}"
        results.append(Result(name, "MB", [used["ours"]], [used["tuned"]], "tuned Trainer", 1.25, lower=True))
    return results


def train(side: str, experiment: str, count: int) -> float:
    """One epoch of a side; its peak in MB."""
    import reference
    from gptask.results import peak_memory_mb
    from ours import Training, options

    if experiment != "sst2":
        count //= 4
    ours = Training(options(experiment, f"data.limit.train={count}"))
    if side == "ours":
        ours.epoch(Path(tempfile.mkdtemp()), 0)
        return peak_memory_mb()
    location, task = ours.location, ours.config.task
    batch = 32 if experiment == "sst2" else 8
    settings = reference.TUNED | {"per_device_train_batch_size": batch}
    if experiment == "sst2":
        numbers = [task.labels.index(e["label"]) for e in ours.examples]
        texts = [e["text"] for e in ours.examples]
        model = reference.classifier(location, task.labels, lora=True)
        del ours
        reference.classification(model, location, texts, numbers, **settings).train()
    else:
        pairs = [(item["ids"], item["target"]) for item in ours.data.items("train")]
        del ours
        reference.sequence_trainer(location, pairs, **settings).train()
    return peak_memory_mb()


if __name__ == "__main__":
    print(json.dumps({"mb": round(train(sys.argv[1], sys.argv[2], int(sys.argv[3])))}))
