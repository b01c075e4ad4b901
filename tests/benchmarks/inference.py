"""Classification of texts: gptask's evaluation loop against pipeline("text-classification", batch_size=32)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import reference
from harness import FULL, Result, alternate
from ours import Training, options
from transformers import pipeline


def run(tier: str) -> list[Result]:
    """Examples/s on the test split. The pipeline reads the bare texts, gptask its prompt around them too.

    Quality: accuracy without any training, ours against the same weights in float32 on the same prompts.
    """
    from gptask.lightning import trainer_for

    count, rounds = (872, 3) if tier == FULL else (128, 1)
    limits = "data.limit.train=16", f"data.limit.test={count}"
    ours = Training(options("sst2", "tuning=lora", *limits))  # all layers, as the pipeline
    module, data = ours.module, ours.data
    examples = [dict(example) for example in data.examples("test")]
    model = reference.classifier(ours.location, module.head.labels)
    model.score.weight.data.copy_(module.head.linear.weight.data)
    words = reference.tokenizer(ours.location)
    classify = pipeline("text-classification", model=model, tokenizer=words, batch_size=32)
    folder = Path(tempfile.mkdtemp())

    def mine() -> float:
        trainer_for(folder, {}, logger=False).test(module, datamodule=data, verbose=False)
        return len(examples)

    def theirs() -> float:
        classify([example["text"] for example in examples])
        return len(examples)

    rates = alternate({"ours": mine, "pipeline": theirs}, rounds)
    seen, predictions = module.seats[0].predictions("test")
    right = sum(p.value == e["label"] for p, e in zip(predictions, seen, strict=True))
    prompted = classify([ours.config.task.filled(example) for example in examples])
    same = sum(said["label"] == example["label"] for said, example in zip(prompted, examples, strict=True))
    quality = (100 * right / len(seen), 100 * same / len(examples))
    against = "pipeline, batch 32"
    return [
        Result(
            "classification inference", "examples/s", rates["ours"], rates["pipeline"], against, 4.0, quality=quality
        )
    ]
