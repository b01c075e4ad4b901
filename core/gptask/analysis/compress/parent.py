"""What all methods of `gptask compress` have in common: they start from a finished run, and are compared with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.analysis.compare.records import RunRecord, read_run
from gptask.analysis.compress.against_parent import against_parent, quality, tested_rows
from gptask.config.compression import Compress
from gptask.config.engine import EngineOptions
from gptask.config.schemas import Train
from gptask.data.corpus import CachedCorpus
from gptask.errors import UserError
from gptask.plugins.discovery import plugin_of
from gptask.plugins.types import Example
from gptask.runs.config_file import read_config
from gptask.runs.folder import verified_model
from gptask.runs.manifest import manifest_digest
from gptask.runs.run import Run, Runs, load_runs
from gptask.runs.saved_model import kept_layers, load_head
from gptask.training.builder import option_prefix, task_configs
from gptask.training.task_runtime import TaskRuntime
from gptask.training.variation import Variation

if TYPE_CHECKING:
    from gptask.training.module import GPTModule


class FromParent(Variation):
    """A training that starts from a finished run; of several runs, the parent is the first.

    Raises `UserError` where it is unfinished, damaged or without a model.
    """

    def __init__(self, config: Compress) -> None:
        self.config = config
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

    def training_corpora(self, config: Train, corpora: Mapping[str, CachedCorpus]) -> Mapping[str, CachedCorpus]:
        """See `Variation`; raises `UserError` where the test data are not those of the parent."""
        for name, one in task_configs(config).items():
            prefix = option_prefix(config, name)
            tested_rows(self._record(name if prefix else None), one.task, corpora[name].split("test"))
        return corpora

    def _record(self, task: str | None) -> RunRecord:
        """The record of the parent, or of one of its several tasks; raises `UserError` where it can't be compared."""
        record = read_run(Path(str(self.parent_of(task))))
        if record.problem:
            raise UserError(f"{record.folder}: {record.problem}")
        return record

    def load_parent(self, engine: EngineOptions) -> Runs:
        """Load the parent's tasks."""
        tasks = {name: type(one.task) for name, one in task_configs(self.config).items()}
        return load_runs(self.parent, tasks, engine=engine)

    @cached_property
    def compared_parent(self) -> Runs:
        """The parent's tasks in memory, once the run is tested."""
        return self.load_parent(self.config.engine)

    def results(
        self,
        module: GPTModule,
        runtime: TaskRuntime,
        examples: Sequence[Example],
        statistics: Sequence[dict[str, list[float]]],
    ) -> dict[str, Any]:
        """See `Variation`: ``against_parent``."""
        record = self._record(None if runtime.single_task else runtime.name)
        result: dict[str, Any] = {"folder": str(record.folder), "manifest": manifest_digest(record.folder)}
        if not examples:
            return {"against_parent": result}
        module.eval()
        parent_rows = tested_rows(record, runtime.task, examples)
        metrics = [metric for metric in runtime.task.metrics() if metric.name in record.metrics]
        compared = quality(parent_rows, metrics, examples, statistics)
        parent = self.compared_parent.tasks[runtime.name]
        run = Run(record.folder, plugin_of(runtime.task), runtime.task, module.backbone, runtime.head, parent.config)
        return {"against_parent": result | against_parent(run, parent, compared, examples)}
