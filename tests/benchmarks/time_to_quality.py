"""Seconds from the command to the tuned Trainer's best score on a validation split (full tier only).

Each side is a process of its own, and its whole time counts: imports, loading, tokenising, training, validating. The
Trainer validates after each epoch, and with the better one of its learning rates; a side that writes texts, after
training. gptask runs the experiment's preset and validates several times an epoch, until it has reached that score.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import DATA, FULL, ROOT, Result

RATES = (5e-4, 1e-3)  # of the Trainer on 2,000 sentences; the better one is taken for all of SST-2 and for TREC
REACHED = 0.005  # scores are compared as they are printed, with two decimals


@dataclass(frozen=True)
class Race:
    """An experiment, its part of the data, how long the Trainer learns, and how often gptask validates an epoch."""

    id: str
    name: str
    overrides: tuple[str, ...]
    rates: tuple[float, ...] = ()
    epochs: int = 1
    checks: int = 4


DEV = "data.validation=sentiment/sst2/dev.tsv"
RACES = (
    Race("sst2_2000", "SST-2, 2,000 sentences", ("experiment=sst2", DEV, "data.limit.train=2000"), RATES, 3, 2),
    Race("sst2_all", "SST-2, all sentences", ("experiment=sst2", DEV), epochs=3),
    Race("trec", "TREC", ("experiment=trec",), epochs=3, checks=2),
    Race(
        "multi30k", "Multi30k, 6,000 pairs",
        ("experiment=multi30k", "data.limit.train=6000", "data.limit.validation=400"), (1e-3,),
    ),
    Race(
        "xquad", "SQuAD, 1,000 questions",
        ("experiment=xquad_en", "data.limit.train=1000", "data.limit.validation=300"), (1e-3,),
    ),
)  # fmt: skip


def run(tier: str, *names: str) -> list[Result]:
    """One result per race, or those of the named races."""
    if tier != FULL or not DATA.is_dir():
        return []
    results, best_rate = [], RATES[-1]
    for race in RACES:
        if names and race.id not in names:
            continue
        result, rate = measure(race, race.rates or (best_rate,))
        best_rate = rate if race.rates == RATES else best_rate
        results.append(result)
    return results


def measure(race: Race, rates: Sequence[float]) -> tuple[Result, float]:
    """The result of a race, and the Trainer's better learning rate."""
    from gptask.model.backbone.locate import locate
    from gptask.training import builder
    from ours import config

    overrides = [*race.overrides, f"data.root={DATA}"]
    settings = config("train", overrides)
    corpus = builder.build_corpus(settings.task, settings.data, settings.seed)
    origin = locate(settings.backbone)
    assert origin is not None
    folder = Path(tempfile.mkdtemp())
    splits = {name: [dict(example) for example in corpus.split(name)] for name in ("train", "validation")}
    job = {"task": task_name(settings.task), "location": str(origin.location), "epochs": race.epochs, "splits": splits}
    job["new"] = getattr(getattr(settings.task, "generation", None), "max_new_tokens", None)
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    curves: dict[float, list[tuple[float, float]]] = {}
    for rate in rates:
        points = child("reference", str(folder / "job.json"), str(rate))
        curves[rate] = [
            (point["seconds"], score(settings.task, splits["validation"], point["predictions"])) for point in points
        ]
    rate = max(curves, key=lambda rate: max(value for _, value in curves[rate]))
    seconds, target = max(curves[rate], key=lambda point: (point[1], -point[0]))
    main = settings.task.metrics()[0].name
    checks = [f"trainer.val_check_interval={1 / race.checks}", "data.limit.test=8", f"folder={folder / 'run'}"]
    ours = [(p["seconds"], p["value"]) for p in child("ours", str(target), main, *overrides, *checks)]
    reached = [point for point in ours if point[1] >= target - REACHED]
    top = max(value for _, value in ours)
    note = f"the Trainer's best {target:.1f} (learning rate {rate:g}, {race.epochs} epochs); gptask then at {top:.1f}"
    extra = {"ours": ours, "reference": {str(rate): curve for rate, curve in curves.items()}}
    mine = reached[0][0] if reached else ours[-1][0]
    result = Result(
        f"time_{race.id}", f"seconds to the Trainer's best {main}, {race.name}", "s", [mine], [seconds],
        "tuned Trainer", lower=True, quality=(top, target), note=note, extra=extra,
    )  # fmt: skip
    return result, rate


def task_name(task: Any) -> str:
    """Which kind of Trainer learns the task."""
    kinds = {"Translation": "translation", "QuestionAnswering": "qa"}
    return kinds.get(type(task).__name__, "classification")


def score(task: Any, examples: list[dict[str, Any]], predictions: list[str]) -> float:
    """The task's main metric."""
    from gptask import Prediction
    from gptask.plugins.metric import score_all

    metric = task.metrics()[0]
    return score_all([metric], [Prediction(value, 1.0) for value in predictions], examples)[0][0].value


def child(*arguments: str) -> list[dict[str, Any]]:
    """Run this file in a process of its own; return the points that it prints as lines of JSON."""
    command = [sys.executable, __file__, *arguments, str(time.time())]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{process.stdout[-2000:]}\n{process.stderr[-2000:]}")
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"seconds"')]


def run_ours(target: float, main: str, overrides: list[str], started: float) -> None:
    """Train with gptask until the target is reached."""
    import gptask
    import pytorch_lightning as pl
    from ours import config

    class Clock(pl.Callback):
        """Prints the score of each validation, and ends a training that has reached the target."""

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            value = float(trainer.callback_metrics[f"val/{main}"])
            print(json.dumps({"seconds": time.time() - started, "value": value}), flush=True)
            trainer.should_stop = trainer.should_stop or value >= target - REACHED

    gptask.train(config("train", overrides), callbacks=[Clock()])


def run_reference(job: dict[str, Any], rate: float, started: float) -> None:
    """Train with the tuned Trainer, and print predictions of the validation split."""
    import reference

    location, splits, name = job["location"], job["splits"], job["task"]
    settings = {"learning_rate": rate, "num_train_epochs": job["epochs"]}

    def report(predictions: list[str]) -> None:
        print(json.dumps({"seconds": time.time() - started, "predictions": predictions}), flush=True)

    if name != "classification":
        words = reference.tokenizer(location)
        model = reference.generator(location)
        pairs = reference.pairs(words, name, splits["train"])
        reference.sequence_trainer(model, location, pairs, **reference.TUNED_LM | settings).train()
        writer = reference.Generator(location, model.dtype, model.merge_and_unload())
        prompts = [reference.prompt_ids(words, name, example) for example in splits["validation"]]
        report([text.strip() for text in writer(prompts, 32, job["new"], ["\n"])])
        return

    from transformers import TrainerCallback

    labels = sorted({example["label"] for example in splits["train"]})
    texts = {split: [example["text"] for example in examples] for split, examples in splits.items()}
    model = reference.classifier(location, labels, lora=True)

    class Validation(TrainerCallback):
        """Prints the predictions after each epoch."""

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            table = reference.classified(model, location, texts["validation"])
            report([labels[row.index(max(row))] for row in table])

    numbers = [labels.index(example["label"]) for example in splits["train"]]
    trainer = reference.classification(model, location, texts["train"], numbers, **reference.TUNED | settings)
    trainer.add_callback(Validation())
    trainer.train()


if __name__ == "__main__":
    side, *rest, start = sys.argv[1:]
    if side == "ours":
        run_ours(float(rest[0]), rest[1], rest[2:], float(start))
    else:
        run_reference(json.loads(Path(rest[0]).read_text(encoding="utf-8")), float(rest[1]), float(start))
