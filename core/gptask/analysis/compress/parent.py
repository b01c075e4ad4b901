"""What all methods of `gptask compress` have in common: they start from a finished run, and are compared with it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.compression import Compress
from gptask.runs.config_file import read_config
from gptask.runs.folder import verified_model
from gptask.runs.saved_model import kept_layers, load_head
from gptask.training.variation import Variation

if TYPE_CHECKING:
    from gptask.training.module import GPTModule


class FromParent(Variation):
    """A training that starts from a finished run; of several runs, the parent is the first.

    Raises `UserError` where it is unfinished, damaged or without a model.
    """

    def __init__(self, config: Compress) -> None:
        self.parent = Path(config.parents[0])
        self.values = read_config(self.parent)
        self.model = verified_model(self.parent)  # the folder of its model

    def parent_of(self, task: str | None) -> str | None:
        """See `Variation`."""
        return str(self.parent / task if task else self.parent)

    @cached_property
    def layers(self) -> list[int]:
        """The numbers of the parent's layers, in the backbone that it is on."""
        return kept_layers(self.model)

    def load_heads(self, module: GPTModule) -> None:
        """Let the heads of a module begin with the parent's weights."""
        saved_name: Any = self.values.get("task_name")  # of a parent that is one of several tasks
        for runtime in module.runtimes:
            load_head(runtime.head, self.model, saved_name if runtime.single_task else runtime.name)
