"""The facts about a finished run that the text and the hub metadata of its model card share."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.schemas import Data, Hub
from gptask.plugins.discovery import Plugin
from gptask.runs.folder import model_folder
from gptask.runs.saved_model import has_full_weights

if TYPE_CHECKING:
    from gptask.data.corpus import CachedCorpus
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.plugins.protocols import TaskHead


@dataclass
class CardFacts:
    """A finished run, or one task of it; ``result`` is the content of metrics.json."""

    folder: Path
    plugin: Plugin
    backbone: GPTBackbone
    head: TaskHead
    data: Any  # the task's data module
    config: Any
    result: dict[str, Any]
    command: str  # repeats the run
    single_task: bool = True  # False for one of several tasks on one backbone

    @property
    def auto_class(self) -> str | None:
        """The transformers auto class that does what the head does, None where there is none."""
        return self.head.export_class

    @property
    def base_model(self) -> str | None:
        """The backbone's id on the hub, None where it does not come from there."""
        return hub_id(self.config.backbone.source) if self.backbone.origin.kind.startswith("hub ") else None

    @property
    def model(self) -> Path:
        """The folder of the model; an evaluation has none there."""
        return model_folder(self.folder)

    @property
    def corpus(self) -> CachedCorpus | None:
        """The data files as gptask reads them, None where a plugin's data module reads its own."""
        return getattr(self.data, "corpus", None)

    @property
    def options(self) -> Data:
        """The data's options; for a bundled sample, with the values that the task sets."""
        return self.corpus.options if self.corpus else self.config.data

    @property
    def license(self) -> str | None:
        """The backbone's licence, None where it is not known."""
        return getattr(self.config.backbone, "license", None)

    @property
    def trained(self) -> bool:
        """Whether this run has a model; an evaluation has none."""
        return self.model.is_dir()

    @property
    def tuning(self) -> str | None:
        """The kind of tuning (lora, full, headonly), None in an evaluation."""
        return type(self.config.tuning).__name__.lower() if self.trained else None

    @property
    def library(self) -> str | None:
        """The library that loads model/, None where only gptask does."""
        if (self.model / "adapter_config.json").exists():
            return "peft"
        return "transformers" if has_full_weights(self.model) else None

    def files(self, split: str) -> dict[str, str]:
        """The source files (or the hub split) of a split, each with a hash of its content."""
        return self.corpus.sources(split) if self.corpus else {}

    def hub_dataset(self, split: str) -> str | None:
        """The hub id of the data set that a split comes from, None where it comes from elsewhere."""
        if not isinstance(self.options, Hub):
            return None
        path = str(self.options.path)
        from_hub = any(name.startswith(f"{path}[") for name in self.files(split))
        return hub_id(path) if from_hub and not os.path.exists(path) else None  # unlike Path, of a name of any length


def hub_id(name: str) -> str | None:
    """The name if the hub would accept it as an id, else None."""
    return name if re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", name, re.ASCII) else None
