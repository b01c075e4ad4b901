"""gptask's side of a comparison: the configs of the shipped experiments, run by gptask's code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import DATA

SAMPLES = {"sst2": "sentiment", "multi30k": "translation", "dialogsum": "summarization", "xquad_en": "qa"}


def options(experiment: str, *more: str) -> list[str]:
    """Overrides for an experiment: on the real data if it is there, otherwise on the task's sample."""
    if DATA.is_dir():
        return [f"experiment={experiment}", f"data.root={DATA}", *more]
    return [f"task={SAMPLES[experiment]}", *more]


def config(verb: str, overrides: list[str]) -> Any:
    """The config of a command line."""
    from gptask.cli.hydra.launch import launch

    configs: list[Any] = []
    if code := launch(verb, overrides, lambda config, command: configs.append(config)):
        raise SystemExit(code)
    return configs[0]


def labelled(examples: Iterable[Any], labels: list[str]) -> tuple[list[str], list[int]]:
    """Texts, and the numbers of their labels."""
    pairs = [(example["text"], labels.index(example["label"])) for example in examples]
    return [text for text, _ in pairs], [number for _, number in pairs]


class Training:
    """A training that can be run for one epoch again and again, without validation."""

    def __init__(self, overrides: list[str]) -> None:
        from gptask.training import builder
        from gptask.training.train import build_module

        self.config = config("train", overrides)
        self.module, self.data = build_module(self.config, builder.build_corpora(self.config))
        self.examples = [dict(example) for example in self.data.examples("train")]
        self.tokens = int(self.data.items("train").column("length").sum())

    def fit(self, folder: Path, epochs: int = 1, callbacks: Any = (), **settings: Any) -> None:
        """Train."""
        from gptask.training.trainer import build_trainer, gc_frozen

        options = (
            self.config.trainer
            | {
                "max_epochs": epochs,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
            }
            | settings
        )
        trainer = build_trainer(folder, options, logger=False, callbacks=list(callbacks))
        with gc_frozen():
            trainer.fit(self.module, datamodule=self.data)

    def epoch(self, folder: Path, **settings: Any) -> None:
        """Train one epoch without validation and without states that an earlier one cached."""
        for cache in filter(None, self.module.runtimes[0].activation_caches.values()):
            cache.done.zero_()
        self.fit(folder, limit_val_batches=0, **settings)

    def test(self, folder: Path) -> int:
        """Run the test split; return how many examples it has."""
        from gptask.training.trainer import build_trainer

        build_trainer(folder, {}, logger=False).test(self.module, datamodule=self.data, verbose=False)
        return len(self.data.examples("test"))

    def accuracy(self) -> float:
        """Accuracy, in percent, of the last test."""
        examples, predictions = self.module.runtimes[0].predictions("test")
        correct = sum(p.value == example["label"] for p, example in zip(predictions, examples, strict=True))
        return 100 * correct / len(examples)

    @property
    def location(self) -> str:
        """The backbone's folder, which the reference loads too."""
        return str(self.module.backbone.origin.location)
