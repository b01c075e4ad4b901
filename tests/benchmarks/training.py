"""Training speed: sentiment against the stock and the tuned Trainer; QA and summarization against the tuned one.

Quality is measured when a side has learned from the examples once (in the round that is not counted).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import reference
from harness import FULL, Result, alternate, matrix_peak, training_flops
from ours import Training, labelled, options

HALF = "tuning.top=0.5"  # adapters in the upper half of the layers


def run(tier: str) -> list[Result]:
    """Examples/s on SST-2 sentences, tokens/s on SQuAD questions and DialogSum dialogues."""
    qa = sequences("xquad_en", "QA", tier, ["tuning=lora"], "task.answer=generate")
    return [*sentiment(tier), *qa, *sequences("dialogsum", "summarization", tier, ["", HALF])]


def sentiment(tier: str) -> list[Result]:
    """All in turn on the same sentences; quality is accuracy on the test split."""
    count, tested, rounds = (480, 872, 3) if tier == FULL else (128, 128, 1)
    limits = f"data.limit.train={count}", f"data.limit.test={tested}"
    sides = {name: Training(options("sst2", *limits, *filter(None, [name]))) for name in ("", HALF)}
    ours = sides[""]
    labels = ours.config.task.labels
    texts, numbers = labelled(ours.examples, labels)
    tuned = reference.classifier(ours.location, labels, lora=True)
    stock = reference.classifier(ours.location, labels)
    folder = Path(tempfile.mkdtemp())

    def train_ours(side: Training) -> float:
        side.epoch(folder)
        return len(texts)

    def train_reference(model: object, settings: dict[str, object]) -> float:
        reference.classification(model, ours.location, texts, numbers, **settings).train()
        return len(texts)

    quality: dict[str, float] = {}

    def check() -> None:
        for name, side in sides.items():
            side.test(folder)
            quality[name] = side.accuracy()
        dev = labelled(ours.data.examples("test"), labels)
        for name, model in (("tuned", tuned), ("stock", stock)):
            quality[name] = reference.accuracy(model, ours.location, *dev)

    rates = alternate(
        {name: lambda side=side: train_ours(side) for name, side in sides.items()}
        | {
            "tuned": lambda: train_reference(tuned, reference.TUNED),
            "stock": lambda: train_reference(stock, reference.STOCK),
        },
        rounds,
        check,
    )
    peak = matrix_peak()

    def note(name: str, side: Training) -> str:
        speed = max(rates[name]) * side.tokens / len(texts)
        share = speed * training_flops(side.module.backbone.model, side.config.tuning.top) / 1e9 / peak
        return f"{speed:.0f} tokens/s, {100 * share:.0f}% of the matrix peak {peak:.0f} GFLOP/s"

    return [
        Result(
            f"sentiment training {name}".strip(), "examples/s", rates[name], rates[other], f"{other} Trainer", least,
            quality=(quality[name], quality[other]), note=note(name, side),
        )
        for name, side in sides.items()
        for other, least in (("stock", 6.0), ("tuned", 2.5))
    ]  # fmt: skip


def sequences(experiment: str, name: str, tier: str, tunings: list[str], *more: str) -> list[Result]:
    """Tokens/s of prompts and targets, with each of the tunings.

    All sides read the same ids, those of gptask's first batches. Quality is how likely the targets of the validation
    split become (a geometric mean, in percent).
    """
    count, tested, rounds = (8, 64, 3) if tier == FULL else (4, 16, 1)
    sides = {tuning: Training(options(experiment, *more, *filter(None, [tuning]))) for tuning in tunings}
    ours = sides[tunings[0]]
    items, held = ours.data.items("train"), ours.data.items("validation")
    batches = list(ours.data.train_dataloader().batch_sampler)[:count]
    pairs = _pairs(items, [row for batch in batches for row in batch])
    held_pairs = _pairs(held, range(min(tested, len(held))))
    tokens = sum(len(prompt) + len(target) for prompt, target in pairs)
    folder = Path(tempfile.mkdtemp())
    settings = reference.TUNED | {"per_device_train_batch_size": 8}
    model = reference.generator(ours.location)  # loaded before the clock starts, as gptask's is

    def train_ours(side: Training) -> float:
        side.epoch(folder, limit_train_batches=count)
        return tokens

    def train_reference() -> float:
        reference.sequence_trainer(model, ours.location, pairs, **settings).train()
        return tokens

    quality: dict[str, float] = {}

    def check() -> None:
        models = {tuning: side.module.backbone.model for tuning, side in sides.items()} | {"tuned": model}
        quality.update({side: reference.certainty(each, held_pairs) for side, each in models.items()})

    rates = alternate(
        {tuning: lambda side=side: train_ours(side) for tuning, side in sides.items()} | {"tuned": train_reference},
        rounds,
        check,
    )
    return [
        Result(
            f"{name} training {tuning}".strip(), "tokens/s", rates[tuning], rates["tuned"], "tuned Trainer", 4.0,
            quality=(quality[tuning], quality["tuned"]),
        )
        for tuning in tunings
    ]  # fmt: skip


def _pairs(items: Any, rows: Iterable[int]) -> list[tuple[list[int], list[int]]]:
    """Ids of prompts and of their targets."""
    return [(items[row]["ids"], items[row]["target"]) for row in rows]
