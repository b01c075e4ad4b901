"""Training speed: sentiment against the stock and the tuned Trainer; QA and summarization against the tuned one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import reference
from harness import FULL, Result, alternate, matrix_peak, training_flops
from ours import Training, options


def run(tier: str) -> list[Result]:
    """Examples/s on SST-2 sentences, tokens/s on SQuAD questions and DialogSum dialogues."""
    qa = sequences("xquad_en", "QA", tier, "task.answer=generate", "tuning=lora")
    return [*sentiment(tier), *qa, *sequences("dialogsum", "summarization", tier)]


def sentiment(tier: str) -> list[Result]:
    """All three in turn on the same sentences."""
    count, rounds = (480, 3) if tier == FULL else (128, 1)
    ours = Training(options("sst2", f"data.limit.train={count}"))
    labels = ours.config.task.labels
    texts = [example["text"] for example in ours.examples]
    numbers = [labels.index(example["label"]) for example in ours.examples]
    stock = reference.classifier(ours.location, labels)
    tuned = reference.classifier(ours.location, labels, lora=True)
    folder = Path(tempfile.mkdtemp())

    def train(model: object, settings: dict[str, object]) -> float:
        reference.classification(model, ours.location, texts, numbers, **settings).train()
        return len(texts)

    rates = alternate(
        {
            "ours": lambda: ours.epoch(folder, len(texts)),
            "tuned": lambda: train(tuned, reference.TUNED),
            "stock": lambda: train(stock, reference.STOCK),
        },
        rounds,
    )
    speed = max(rates["ours"]) * ours.tokens / len(texts)
    flops = training_flops(ours.module.backbone.model, ours.config.tuning.top)
    peak = matrix_peak()
    note = f"{speed:.0f} tokens/s, {100 * speed * flops / 1e9 / peak:.0f}% of the matrix peak {peak:.0f} GFLOP/s"
    return [
        Result("sentiment training", "examples/s", rates["ours"], rates[name], against, least, note=note)
        for name, against, least in (("stock", "stock Trainer", 6.0), ("tuned", "tuned Trainer", 2.5))
    ]


def sequences(experiment: str, name: str, tier: str, *more: str) -> list[Result]:
    """Tokens/s of prompts and targets; both sides read the very same ids, those of our first batches."""
    count, rounds = (8, 3) if tier == FULL else (4, 1)
    ours = Training(options(experiment, *more))
    items = ours.data.items("train")
    batches = list(ours.data.train_dataloader().batch_sampler)[:count]
    pairs = [(items[row]["ids"], items[row]["target"]) for batch in batches for row in batch]
    tokens = sum(len(prompt) + len(target) for prompt, target in pairs)
    folder = Path(tempfile.mkdtemp())
    settings = reference.TUNED | {"per_device_train_batch_size": 8}
    model = reference.generator(ours.location)  # loaded before the clock starts, as ours is

    def mine() -> float:
        ours.fit(folder, limit_val_batches=0, limit_train_batches=count)
        return tokens

    def theirs() -> float:
        reference.sequence_trainer(model, ours.location, pairs, **settings).train()
        return tokens

    rates = alternate({"ours": mine, "tuned": theirs}, rounds)
    return [Result(f"{name} training", "tokens/s", rates["ours"], rates["tuned"], "tuned Trainer", 4.0)]
