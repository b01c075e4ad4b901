"""What the stock and the tuned Trainer reach on the test split of an experiment in the minutes that gptask took.

    python tests/benchmarks/recipes.py sst2 stock 8 [learning rate]

Splits, metrics and (for generation) prompts are those of the experiment. Only training counts for the minutes: at most
three epochs, with the schedule cut to the steps that fit, as the time of some steps predicts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import reference
import torch
from harness import bf16
from ours import config, options
from transformers import Trainer, TrainerCallback

EPOCHS = 3
WARMUP_STEPS, TIMED_STEPS = 5, 20  # steps that do not count, and steps whose time predicts how many fit
TRIAL_STEPS = WARMUP_STEPS + TIMED_STEPS


class Deadline(TrainerCallback):
    """Records when each step ended, and stops a training that takes longer than predicted."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds
        self.steps: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(time.perf_counter())
        if self.steps[-1] > self.end:
            control.should_training_stop = True


def train(build_trainer: Callable[..., Trainer], settings: dict[str, Any], seconds: float) -> str:
    """Train for these seconds and describe how far it came.

    ``build_trainer`` makes a Trainer of a fresh model from its settings.
    """
    trial, clock = build_trainer(**settings | {"max_steps": TRIAL_STEPS}), Deadline(seconds)
    trial.add_callback(clock)
    trial.train()
    if len(clock.steps) < TRIAL_STEPS:
        raise SystemExit(f"{seconds / 60:g} minutes are too few: the first {TRIAL_STEPS} steps took longer")
    fitting = int(seconds * TIMED_STEPS / (clock.steps[-1] - clock.steps[WARMUP_STEPS - 1]))
    epoch_steps = len(trial.get_train_dataloader())
    steps = min(fitting, EPOCHS * epoch_steps)
    trainer = build_trainer(**settings | {"max_steps": steps})
    start = time.perf_counter()
    trainer.add_callback(Deadline(seconds))
    trainer.train()
    done = trainer.state.global_step
    return (
        f"{done} of {steps} steps, {done / epoch_steps:.2f} epochs in {(time.perf_counter() - start) / 60:.1f} minutes"
    )


def score(experiment: str, kind: str, minutes: float, rate: float | None) -> str:
    """The experiment's main metric, with its interval."""
    from gptask.model.backbone.locate import locate
    from gptask.plugins.metric import score_all
    from gptask.training import builder

    experiment_config = config("train", options(experiment))
    corpus = builder.build_corpus(experiment_config.task, experiment_config.data, experiment_config.seed)
    task = replace(corpus.task, **corpus.task.prepare(corpus.all_rows("train")))
    rows, test = list(corpus.split("train")), list(corpus.split("test"))
    origin = locate(experiment_config.backbone)
    assert origin is not None
    tuned = kind == "tuned"
    settings = reference.TUNED if tuned else reference.STOCK
    if rate:
        settings = settings | {"learning_rate": rate}
    side = sequences if hasattr(task, "generation") else classes
    predictions, progress = side(task, rows, test, str(origin.location), tuned, settings, 60 * minutes)
    main = score_all(task.metrics()[:1], predictions, test)[0][0]
    reached = f"{main.name} {main.value:.1f} ({main.low:.1f} to {main.high:.1f})"
    return f"{experiment}, {kind}, learning rate {settings['learning_rate']:g}: {reached}, {progress}"


def classes(task: Any, rows: Any, test: Any, location: str, tuned: bool, settings: Any, seconds: float) -> Any:
    """Predictions of a sequence classifier on the bare texts."""
    texts, labels = [row["text"] for row in rows], [task.labels.index(row["label"]) for row in rows]
    models: list[Any] = []

    def build_trainer(**settings: Any) -> Trainer:
        torch.manual_seed(13)
        models[:] = [reference.classifier(location, task.labels, lora=tuned)]
        return reference.classification(models[0], location, texts, labels, **settings)

    progress = train(build_trainer, settings, seconds)
    table = reference.classified(models[0], location, [example["text"] for example in test])
    return [task.prediction(example, [row]) for example, row in zip(test, table, strict=True)], progress


def sequences(task: Any, rows: Any, test: Any, location: str, tuned: bool, settings: Any, seconds: float) -> Any:
    """Predictions of a causal language model on the task's prompts, decoded greedily."""
    from gptask.model.generation.generate import GeneratedText

    words, limit = reference.tokenizer(location), 512
    encoded = [task.encode(row, words, limit) for row in rows]
    pairs = [(item.ids, [*item.target, words.eos_token_id]) for item in encoded]
    models: list[Any] = []

    def build_trainer(**settings: Any) -> Trainer:
        torch.manual_seed(13)
        models[:] = [reference.generator(location, lora=tuned)]
        return reference.sequence_trainer(models[0], location, pairs, **settings)

    progress = train(build_trainer, settings, seconds)
    model = models[0].merge_and_unload() if tuned else models[0]
    writer = reference.Generator(location, torch.bfloat16 if bf16() else torch.float32, model.eval())
    prompts = [task.encode(example, words, limit).ids for example in test]
    texts = writer(prompts, 32, task.generation.max_new_tokens, task.generation.stop)
    return [
        task.prediction(example, [GeneratedText(text, None)]) for example, text in zip(test, texts, strict=True)
    ], progress


if __name__ == "__main__":
    name, kind, minutes, *rest = sys.argv[1:]
    print(score(name, kind, float(minutes), float(rest[0]) if rest else None), flush=True)
