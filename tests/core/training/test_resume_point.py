"""A training that is stopped anywhere and goes on ends with the weights, metrics and predictions of one that is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gptask import train
from gptask.config.schemas import Full, Limit, Sample, Scratch
from gptask.training.module import GPTModule

from tests.support.configs import small_config

TIMES = ("wall_seconds", "fit_seconds", "train_tokens_per_second", "peak_memory_mb", "fingerprint", "git_commit")
DROPOUT = Scratch(n_layer=1, n_head=2, n_embd=16, context=128, vocab_size=300, dropout=0.3)


class Stop(Exception):
    """Stands for a kill: the process ends without writing anything."""


def configure(outputs: Path, data: dict[str, Any] | None = None, **trainer: Any) -> Any:
    options = {"limit": Limit(train=40, validation=8, test=10), "max_tokens": 128, "batch_size": 8} | (data or {})
    settings = {"max_epochs": 2, "accelerator": "cpu", "accumulate_grad_batches": 1, "gradient_clip_val": 1.0}
    return small_config(
        outputs, backbone=DROPOUT, tuning=Full(lr=3e-3), data=Sample(**options), trainer=settings | trainer
    )


def outcome(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "weights": {path.name: path.read_bytes() for path in sorted((folder / "model").rglob("*.safetensors"))},
        "predictions": (folder / "predictions.jsonl").read_bytes(),
        "metrics": {name: value for name, value in metrics.items() if name not in TIMES},
    }


def stop_at(
    monkeypatch: pytest.MonkeyPatch, hook: str, call: int, error: type[BaseException], after: bool = False
) -> None:
    """Raise an error in a method of the module when it is called for the n-th time, at its start or its end."""
    original, calls = getattr(GPTModule, hook), []

    def stopping(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == call and not after:
            raise error
        result = original(self, *args)
        if len(calls) == call:
            raise error
        return result

    monkeypatch.setattr(GPTModule, hook, stopping)


def stop_and_resume(
    config: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch, *stop: Any
) -> dict[str, Any]:
    with monkeypatch.context() as changed:
        stop_at(changed, *stop)
        with pytest.raises((KeyboardInterrupt, Stop)):
            train(config(folder=str(folder)))
    return outcome(train(config(resume=str(folder))).folder)


CASES = {
    "ctrl-c in the first epoch": ({}, ("training_step", 3, KeyboardInterrupt)),
    "ctrl-c in a later epoch": ({}, ("training_step", 9, KeyboardInterrupt, True)),
    "ctrl-c in validation": ({}, ("validation_step", 1, KeyboardInterrupt)),
    "ctrl-c behind validation": ({}, ("on_validation_epoch_end", 1, KeyboardInterrupt, True)),
    "ctrl-c between accumulated batches": ({"accumulate_grad_batches": 2}, ("training_step", 4, KeyboardInterrupt)),
    "a kill behind a validation": ({"val_check_interval": 2}, ("training_step", 4, Stop)),
    "a kill at the last validation of an epoch": ({"val_check_interval": 5}, ("training_step", 6, Stop)),
    "a kill in the second epoch": ({"val_check_interval": 0.5}, ("training_step", 9, Stop)),
    "ctrl-c with a limit of steps": ({"max_steps": 8}, ("training_step", 7, KeyboardInterrupt)),
    "ctrl-c in the validation of the last step": ({"max_steps": 8}, ("validation_step", 2, KeyboardInterrupt)),
    "a kill with limits of epochs and steps": ({"max_epochs": 3, "max_steps": 12}, ("training_step", 6, Stop)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_training_ends_as_one_that_was_not_stopped(name, tmp_path, monkeypatch):
    trainer, stop = CASES[name]
    whole = outcome(train(configure(tmp_path, **trainer)).folder)

    def config(**changes: Any) -> Any:
        made = configure(tmp_path, **trainer)
        for key, value in changes.items():
            setattr(made, key, value)
        return made

    assert stop_and_resume(config, tmp_path / "run", monkeypatch, *stop) == whole
