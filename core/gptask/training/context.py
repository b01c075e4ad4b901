"""What the steps of a run hand on to one another, so that none reads it back from disk or from a global."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

from gptask.data.corpus import CachedCorpus
from gptask.plugins.discovery import Plugin, plugin_of
from gptask.plugins.task import Task
from gptask.runs.config_file import config_values, write_config
from gptask.runs.reproduce import reproduce_command
from gptask.training.builder import Config, task_configs, with_task_configs
from gptask.training.variation import Variation


@dataclass
class RunContext(Generic[Config]):
    """A training or an evaluation on its way from the config to the run folder, or one of its several tasks."""

    config: Config  # valid; once the module is built, with all its options chosen
    command: str | None  # the command line that started the run, None for a run from Python
    corpora: Mapping[str, CachedCorpus]  # by the name of the task
    fingerprint: str
    folder: Path
    started: float = field(default_factory=time.time)  # seconds since the epoch
    fit_seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)  # entries of config.yaml besides the config
    variation: Variation = field(default_factory=Variation)  # of a training

    @property
    def plugin(self) -> Plugin:
        """The plugin of the only task."""
        return plugin_of(self.config.task)

    @property
    def values(self) -> dict[str, Any]:
        """What config.yaml holds."""
        return config_values(self.config, command=self.command, **self.extra)

    @property
    def reproduce_command(self) -> str:
        """The command line that repeats the run."""
        return reproduce_command(self.values)

    def write_config(self) -> None:
        """Write config.yaml into the folder."""
        write_config(self.folder, self.config, command=self.command, **self.extra)

    def with_tasks(self, tasks: Mapping[str, Task]) -> RunContext[Config]:
        """The same run with other options of its tasks."""
        configs = {name: replace(old, task=tasks[name]) for name, old in task_configs(self.config).items()}
        return replace(self, config=with_task_configs(self.config, configs))
