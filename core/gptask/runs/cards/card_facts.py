"""What a card tells of a finished run, gathered once for its text and its hub metadata."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.schemas import Data, Hub
from gptask.plugins.discovery import Plugin
from gptask.runs.folder import model_folder

if TYPE_CHECKING:
    from gptask.data.corpus import CachedCorpus
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.plugins.protocols import TaskHead


@dataclass
class CardFacts:
    """What a finished run says of itself, or of one of its tasks; ``result`` is what metrics.json holds."""

    folder: Path
    plugin: Plugin
    backbone: GPTBackbone
    head: TaskHead
    data: Any  # the task's data module
    config: Any
    result: dict[str, Any]
    alone: bool = True  # False: one of several tasks on one backbone

    @property
    def auto(self) -> str | None:
        """The transformers class for what the head does."""
        return self.head.export_class

    @property
    def base(self) -> str | None:
        """The backbone's id on the hub, where it comes from there."""
        return hub_id(self.config.backbone.source) if self.backbone.origin.kind.startswith("hub ") else None

    @property
    def model(self) -> Path:
        """Where the model lies, or would."""
        return model_folder(self.folder)

    @property
    def corpus(self) -> CachedCorpus | None:
        """The data as it was read, None where a plugin has a way of its own."""
        return getattr(self.data, "corpus", None)

    @property
    def options(self) -> Data:
        """The data's options; of a bundled sample those that the task gives."""
        return self.corpus.options if self.corpus else self.config.data

    @property
    def license(self) -> str | None:
        """The backbone's licence, where it is known."""
        return getattr(self.config.backbone, "license", None)

    @property
    def trained(self) -> bool:
        """Whether this folder holds a model: an evaluation's does not."""
        return self.model.is_dir()

    @property
    def tuning(self) -> str | None:
        """How the backbone was tuned, None in an evaluation."""
        return type(self.config.tuning).__name__.lower() if self.trained else None

    @property
    def library(self) -> str | None:
        """The library that reads model/."""
        files = {"adapter_config.json": "peft", "config.json": "transformers"}
        return next((name for file, name in files.items() if (self.model / file).exists()), None)

    def files(self, split: str) -> dict[str, str]:
        """Files (or the hub split) that a split came from, each with a hash of its content."""
        return self.corpus.sources(split) if self.corpus else {}

    def hub(self, split: str) -> str | None:
        """The id of the hub's data set that a split came from, if it came from there."""
        path = str(getattr(self.options, "path", ""))
        found = isinstance(self.options, Hub) and any(name.startswith(f"{path}[") for name in self.files(split))
        return hub_id(path) if found and not Path(path).exists() else None


def hub_id(name: str) -> str | None:
    """A name, if it is one the hub could have."""
    return name if re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", name, re.ASCII) else None
