"""Classification of texts: gptask's evaluation loop against pipeline("text-classification"), stock and tuned."""

from __future__ import annotations

import tempfile
from pathlib import Path

import reference
import torch
from harness import FULL, Result, alternate, bf16, matrix_peak, matrix_weights
from ours import Training, options
from transformers import AutoModelForSequenceClassification, pipeline


def run(tier: str) -> list[Result]:
    """Examples/s on the test split. The pipelines read the bare texts, gptask its prompt around them too.

    The note says how often both sides choose the same label where they read the same: weights and prompts.
    """
    count, rounds = (512, 3) if tier == FULL else (128, 1)
    limits = "data.limit.train=16", f"data.limit.test={count}"
    ours = Training(options("sst2", "tuning=lora", *limits))  # all layers, as in the pipelines
    head = ours.module.head
    examples = [dict(example) for example in ours.data.examples("test")]
    texts = [example["text"] for example in examples]
    words = reference.tokenizer(ours.location)
    names = dict(enumerate(head.labels))

    def build_pipeline(dtype: torch.dtype, attention: str) -> object:
        model = AutoModelForSequenceClassification.from_pretrained(
            ours.location, dtype=dtype, attn_implementation=attention, id2label=names,
            label2id={name: n for n, name in names.items()}, pad_token_id=words.pad_token_id,
        )  # fmt: skip
        model.score.weight.data.copy_(head.linear.weight.data)
        return pipeline("text-classification", model=model, tokenizer=words, batch_size=32)

    pipelines = {"float32": build_pipeline(torch.float32, "sdpa")}
    if bf16():
        pipelines["bfloat16, sorted"] = build_pipeline(torch.bfloat16, "eager")
    folder = Path(tempfile.mkdtemp())

    def run_pipeline(name: str) -> float:
        pipelines[name](sorted(texts, key=len) if "sorted" in name else texts)
        return len(texts)

    sides = {"ours": lambda: ours.test(folder)}
    sides |= {name: lambda name=name: run_pipeline(name) for name in pipelines}
    rates = alternate(sides, rounds)
    prompted = pipelines["float32"]([ours.config.task.format_prompt(example) for example in examples])
    ours_labels = [prediction.value for prediction in ours.module.runtimes[0].predictions("test")[1]]
    same = sum(output["label"] == label for output, label in zip(prompted, ours_labels, strict=True))
    note = f"{same} of {count} labels are those of float32 weights behind the same prompts"
    peak, weights = matrix_peak(), matrix_weights(ours.module.backbone.model)
    tokens = {"ours": float(ours.data.items("test").column("length").mean())}
    raw_tokens = sum(map(len, words(texts)["input_ids"])) / len(texts)
    shares = {name: max(rates[name]) * 2.0 * weights * tokens.get(name, raw_tokens) / 1e9 / peak for name in rates}
    return [
        Result(
            f"classification_{'float32' if name == 'float32' else 'bfloat16'}", "classification, SST-2", "examples/s",
            rates["ours"], rates[name], f"pipeline(), {name}, batch 32",
            shares=(shares["ours"], shares[name]), note=note,
        )
        for name in pipelines
    ]  # fmt: skip
