"""What a training from a parent run does in another way: its options, its examples, its start, its loss, its ending."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.schemas import Train
from gptask.data.corpus import CachedCorpus
from gptask.plugins.types import Example
from gptask.training.resolve import ChosenOption
from gptask.training.task_runtime import TaskRuntime

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.training.module import GPTModule


class Variation:
    """A plain training; `gptask compress` has a subclass for each of its methods."""

    method = "train"  # of the manifest

    def parent_of(self, task: str | None) -> str | None:
        """The run folder that the run comes from, or that of one of its several tasks; None for a plain training."""
        return None

    def training_corpora(self, config: Train, corpora: Mapping[str, CachedCorpus]) -> Mapping[str, CachedCorpus]:
        """The data to train and test on, by task, from what the config's files hold."""
        return corpora

    def choose_options(self, config: Train, corpora: Mapping[str, CachedCorpus]) -> tuple[Train, list[ChosenOption]]:
        """Choose options from the parent and the data, before the backbone is loaded; return the new config.

        A run that goes on has the options that it chose at its start.
        """
        return config, []

    def build_module(self, backbone: GPTBackbone, runtimes: Sequence[TaskRuntime], config: Train) -> GPTModule:
        """Build the module to train, with the weights it starts from.

        It is the last step that may change what is learned: the examples of a data module, `TaskRuntime.student_loss`.
        """
        from gptask.training.module import GPTModule

        return GPTModule(backbone, runtimes, config.optimizer, config.schedule)

    def files(self, runtime: TaskRuntime) -> dict[str, Path]:
        """The files by name of which a task's run folder gets a copy."""
        return {}

    def results(
        self,
        module: GPTModule,
        runtime: TaskRuntime,
        examples: Sequence[Example],
        statistics: Sequence[dict[str, list[float]]],
    ) -> dict[str, Any]:
        """More entries of a task's metrics.json, from its N test ``examples`` and each one's ``statistics``."""
        return {}
