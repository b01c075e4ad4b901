"""The configuration of `gptask compress`: a training that starts from a run, and what it takes over from that run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from gptask.config.multitask import TASK_NAME
from gptask.config.option import option
from gptask.config.schemas import Train

CHOSEN_BY_BACKBONE = ("precision", "max_epochs", "accumulate_grad_batches")  # options of the trainer


class CompressionMethod(Enum):
    """How a run is made smaller: layers are taken out and the others trained on, or a smaller model learns from it."""

    prune = "prune"
    distil = "distil"


@dataclass
class Compress(Train):
    """`gptask compress`: a training that starts from the run ``run``, and is compared with it in the end."""

    run: Any = option(
        MISSING, "the run folder that is made smaller, of one task or of several; distil: also [several], one a task"
    )
    method: CompressionMethod = option(
        MISSING, "prune: drop layers, then train the others with LoRA; distil: let a smaller model learn from the run"
    )
    keep: Any = option(None, "how many layers stay (the least important go), or a list of those that stay, from 0")
    student: Any = option(
        None, "distil: another backbone in place of keep, as backbone= takes it: nano; student.source=<folder>"
    )
    temperature: float = option(2.0, "distil: what softens the scores of run and student, for tasks with scores")
    weight: float = option(0.5, "distil: share of the run's scores in the loss; the labels have the rest")
    input: Any = option(None, "distil: a file of inputs without labels to learn, too; of several tasks {task: file}")

    @property
    def parents(self) -> list[str]:
        """The run folders that it starts from."""
        return [named_run(str(run))[1] for run in (self.run if isinstance(self.run, list) else [self.run])]

    @property
    def input_files(self) -> dict[str, str]:
        """The files of ``input``, by task; the only task has the empty name."""
        files = self.input if isinstance(self.input, dict) else {"": self.input}
        return {str(task): str(file) for task, file in files.items() if file is not None}


def named_run(text: str) -> tuple[str, str]:
    """The name, empty if there is none, and the folder in ``name:folder``; a folder may have colons of its own."""
    name, _, folder = text.partition(":")
    return (name, folder) if folder and TASK_NAME.fullmatch(name) and not Path(text).exists() else ("", text)


OWN_OPTIONS = tuple(sorted({f.name for f in fields(Compress)} - {f.name for f in fields(Train)}))


def untuned(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config.yaml with the options of its tasks that validation chose, which a new training sets anew.

    They were unset before, and are again.
    """
    tasks = {name: dict(task) for name, task in values.get("tasks", {}).items()}
    changed = values | ({"tasks": tasks} if tasks else {})
    for path in values.get("tuned_options") or {}:
        name, _, option_name = path.rpartition("/")
        holder = tasks.get(name, changed)
        holder["task"] = holder["task"] | {option_name: None}
    return changed


def values_to_compress(folder: str, values: dict[str, Any], student: bool = False) -> dict[str, Any]:
    """The values that a compression starts with, from the config.yaml of its parent in ``folder``.

    They are the parent's, trained by LoRA: layers are kept by ``backbone.keep`` and not by ``tuning.layers``. A parent
    with full weights is the backbone itself, in the number format it predicts in, and was the only one to choose a
    precision of its own. A ``student`` with a backbone of its own is trained as that backbone is by default.
    """
    values = untuned(values)
    if student:
        changes = {"optimizer": dict(values["optimizer"]) | {"lr": None}}
        changes["trainer"] = {name: v for name, v in values["trainer"].items() if name not in CHOSEN_BY_BACKBONE}
        return {name: v for name, v in values.items() if name not in ("backbone", "tuning")} | changes
    tuning, optimizer = dict(values["tuning"]), dict(values["optimizer"])
    if optimizer.get("lr") == tuning.get("lr"):
        optimizer["lr"] = None  # it was chosen to be tuning.lr
    changes = {"optimizer": optimizer}
    if tuning.get("kind") == "lora_schema":
        changes["tuning"] = tuning | {"layers": 1.0}
        return values | changes
    changes["tuning"] = {"kind": "lora_schema"}
    if tuning.get("kind") == "full_schema":
        license_ = values["backbone"].get("license")
        changes["backbone"] = {"kind": "pretrained", "source": folder, "license": license_, "dtype": "float32"}
        changes["trainer"] = {name: v for name, v in values["trainer"].items() if name != "precision"}
    return values | changes
