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
    count, rounds = (872, 3) if tier == FULL else (128, 1)
    limits = "data.limit.train=16", f"data.limit.test={count}"
    ours = Training(options("sst2", "tuning=lora", *limits))  # all layers, as in the pipeline
    head = ours.module.head
    examples = [dict(example) for example in ours.data.examples("test")]
    model = reference.classifier(ours.location, head.labels)
    model.score.weight.data.copy_(head.linear.weight.data)
    words = reference.tokenizer(ours.location)
    classify = pipeline("text-classification", model=model, tokenizer=words, batch_size=32)
    folder = Path(tempfile.mkdtemp())

    def run_pipeline() -> float:
        classify([example["text"] for example in examples])
        return len(examples)

    rates = alternate({"ours": lambda: ours.test(folder), "pipeline": run_pipeline}, rounds)
    prompted = classify([ours.config.task.format_prompt(example) for example in examples])
    correct = sum(output["label"] == example["label"] for output, example in zip(prompted, examples, strict=True))
    quality = (ours.accuracy(), 100 * correct / len(examples))
    against = "pipeline, batch 32"
    return [
        Result(
            "classification inference", "examples/s", rates["ours"], rates["pipeline"], against, 4.0, quality=quality
        )
    ]
