"""Training speed: sentiment against the stock and the tuned Trainer; QA and summarization against the tuned one.

Both sides learn from the same examples, each by its own prompt. Quality is measured when a side has learned from them
once (in the round that is not counted).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import reference
from harness import FULL, Result, alternate, matrix_peak, matrix_weights, vocabulary_weights
from ours import Training, labelled, options

STOCK_SHARE = 4  # the stock Trainer gets one example in four: its rate is as certain, and it takes most of the time


def run(tier: str) -> list[Result]:
    """Examples/s on SST-2 sentences, SQuAD questions and DialogSum dialogues."""
    qa = sequences("xquad_en", "qa", "question answering", tier, "tuning=lora", "task.answer=generate")
    return [*sentiment(tier), qa, sequences("dialogsum", "summarization", "summarization", tier)]


def sentiment(tier: str) -> list[Result]:
    """All in turn on the same sentences; quality is accuracy on the test split."""
    count, tested, rounds = (960, 872, 3) if tier == FULL else (128, 128, 1)
    ours = Training(options("sst2", f"data.limit.train={count}", f"data.limit.test={tested}"))
    labels = ours.config.task.labels
    texts, numbers = labelled(ours.examples, labels)
    models = {"stock": reference.classifier(ours.location, labels)}
    models["tuned"] = reference.classifier(ours.location, labels, lora=True)
    settings = {"stock": reference.STOCK, "tuned": reference.TUNED}
    counts = {"ours": count, "stock": count // STOCK_SHARE, "tuned": count}
    folder, quality = Path(tempfile.mkdtemp()), dict[str, float]()

    def train_ours() -> float:
        ours.epoch(folder)
        return counts["ours"]

    def train_reference(name: str) -> float:
        part = slice(counts[name])
        trainer = reference.classification(models[name], ours.location, texts[part], numbers[part], **settings[name])
        trainer.train()
        return counts[name]

    def check() -> None:
        ours.test(folder)
        quality["ours"] = ours.accuracy()
        dev = labelled(ours.data.examples("test"), labels)
        quality.update({name: reference.accuracy(model, ours.location, *dev) for name, model in models.items()})

    sides = {"ours": train_ours} | {name: lambda name=name: train_reference(name) for name in models}
    rates = alternate(sides, rounds, check)
    peak, words = matrix_peak(), reference.tokenizer(ours.location)
    raw_tokens = sum(len(ids) for ids in words(texts)["input_ids"]) / count
    weights = matrix_weights(models["stock"])
    operations = {  # per example: forward, gradients of the states and, in the stock Trainer, of the weights
        "ours": 4.0 * matrix_weights(ours.module.backbone.model) * ours.tokens / count,
        "stock": 6.0 * weights * raw_tokens,
        "tuned": 4.0 * weights * raw_tokens,
    }
    shares = {name: max(rates[name]) * operations[name] / 1e9 / peak for name in sides}
    note = f"{ours.tokens / count:.1f} tokens a sentence with our prompt, {raw_tokens:.1f} without"
    return [
        Result(
            f"sentiment_training_{name}", "sentiment training, SST-2, preset", "examples/s", rates["ours"],
            rates[name], f"{name} Trainer", quality=(quality["ours"], quality[name]),
            shares=(shares["ours"], shares[name]), note=note,
        )
        for name in models
    ]  # fmt: skip


def sequences(experiment: str, task_name: str, measure: str, tier: str, *more: str) -> Result:
    """Examples/s of prompts and targets, those of gptask's first batches.

    Quality is how likely the targets of the validation split become (a geometric mean, in percent).
    """
    from gptask.model.engine.packing import split_prefixes

    count, tested, rounds = (8, 64, 3) if tier == FULL else (4, 16, 1)
    ours = Training(options(experiment, *more))
    items, held = ours.data.items("train"), ours.data.items("validation")
    batches = list(ours.data.train_dataloader().batch_sampler)[:count]
    rows = [row for batch in batches for row in batch]
    examples = [ours.examples[int(items[row]["example"])] for row in rows]
    words = reference.tokenizer(ours.location)
    pairs = reference.pairs(words, task_name, examples)
    held_rows = range(min(tested, len(held)))
    held_examples = [dict(ours.data.examples("validation")[int(held[row]["example"])]) for row in held_rows]
    folder, model = Path(tempfile.mkdtemp()), reference.generator(ours.location)  # loaded before the clock, as ours is
    quality: list[float] = []

    def train_ours() -> float:
        ours.epoch(folder, limit_train_batches=count)
        return len(rows)

    def train_reference() -> float:
        reference.sequence_trainer(model, ours.location, pairs, **reference.TUNED_LM).train()
        return len(rows)

    def check() -> None:
        ours_held = [(held[row]["ids"], held[row]["target"]) for row in held_rows]
        quality.append(reference.certainty(ours.module.backbone.model, ours_held))
        with reference.autocast(model):
            quality.append(reference.certainty(model, reference.pairs(words, task_name, held_examples)))

    rates = alternate({"ours": train_ours, "tuned": train_reference}, rounds, check)
    peak = matrix_peak()
    layers, vocabulary = matrix_weights(ours.module.backbone.model), vocabulary_weights(ours.module.backbone.model)
    ours_tokens = sum(
        split_prefixes([items[row]["ids"] + items[row]["target"] for row in batch]).size for batch in batches
    ) / len(rows)  # what examples have in common at their start is computed once
    targets = sum(len(items[row]["target"]) for row in rows) / len(rows)
    tokens = sum(len(prompt) + len(target) for prompt, target in pairs) / len(pairs)
    operations = {  # per example; the Trainer scores the vocabulary at every token, gptask where there is a target
        "ours": 4.0 * (layers * ours_tokens + vocabulary * targets),
        "tuned": 4.0 * (layers + vocabulary) * tokens,
    }
    shares = [max(rates[name]) * operations[name] / 1e9 / peak for name in ("ours", "tuned")]
    note = f"{ours_tokens:.0f} tokens an example (shared ones once), {tokens:.0f} with the user's prompt"
    return Result(
        f"{task_name}_training_tuned", f"{measure} training, {experiment}", "examples/s", rates["ours"], rates["tuned"],
        "tuned Trainer", quality=(quality[0], quality[1]), shares=(shares[0], shares[1]), note=note,
    )  # fmt: skip
