"""Distillation: a smaller model learns the tasks of finished runs from what these make of the training data.

Sources: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), for tasks whose heads
have scores; Kim & Rush 2016, "Sequence-Level Knowledge Distillation" (arXiv 1606.07947), for tasks that write text.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gptask.analysis.compress.parent import FromParent
from gptask.analysis.compress.prune import Pruning
from gptask.config.compression import Compress
from gptask.config.engine import EngineOptions
from gptask.config.schemas import Train
from gptask.data.corpus import CachedCorpus
from gptask.data.rows import Source
from gptask.errors import UserError, listing, nearest
from gptask.plugins.discovery import plugin_of
from gptask.runs.folder import verified_model
from gptask.runs.run import Runs, load_run
from gptask.runs.saved_model import base_weights_hash
from gptask.training.builder import task_configs
from gptask.training.resolve import ChosenOption
from gptask.training.task_runtime import TaskRuntime

if TYPE_CHECKING:
    from gptask.analysis.compress.teacher import Teacher
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.training.module import GPTModule

log = logging.getLogger("gptask")
TEXTS = "teacher.jsonl"  # in the run folder: the texts that a teacher has written


class Distilling(FromParent):
    """A training whose teachers are finished runs: one run, of one task or of several, or a run for each task.

    The student is made of some layers of its teacher, whose adapter and heads it begins with (``keep``), or it is
    another backbone with new heads (``student``). Of several runs on one backbone, it begins with that backbone's
    layers. Raises `UserError` for options that don't fit together.
    """

    method = "distil"

    def __init__(self, config: Compress) -> None:
        super().__init__(config)
        self.folders = self._teachers(config)
        for folder in self.folders.values():
            verified_model(folder)
        self.texts: dict[str, Path] = {}
        if not 0 < config.temperature < float("inf"):
            raise UserError(f"temperature={config.temperature} must be above 0 (1 leaves the scores as they are)")
        if not 0 <= config.weight <= 1:
            raise UserError(f"weight={config.weight} must lie between 0 (labels alone) and 1 (the run's scores alone)")
        if (config.keep is None) == (config.student is None):
            both = ", not both; student.keep=[...] chooses layers of that backbone" if config.student else ""
            raise UserError(
                "method=distil needs a student: keep=<how many layers of the run stay>, or student=<another backbone, "
                f"such as nano>{both}"
            )
        self.inputs = self._checked_inputs(config)
        self.starts = [] if config.student else self._starts(config)
        if len({(base_weights_hash(start.model), tuple(start.layers)) for start in self.starts}) > 1:
            raise UserError(
                f"keep= takes layers of one backbone, and {listing(config.parents)} are on different ones: choose "
                "student=<a backbone>"
            )

    def _teachers(self, config: Compress) -> dict[str, str]:
        """The run folder that teaches each task."""
        names = [*task_configs(config)]
        if len(config.parents) == 1:
            return {name: str(self.parent / name if config.tasks else self.parent) for name in names}
        if len(names) != len(config.parents):
            raise UserError(f"run= names {len(config.parents)} teachers for {len(names)} tasks: {listing(names)}")
        return dict(zip(names, config.parents, strict=True))

    def _starts(self, config: Compress) -> list[Pruning]:
        """The start of a student with some of the layers: of one parent all of it, of several one for each task."""
        if len(config.parents) == 1:
            return [Pruning(config)]
        return [
            Pruning(replace(config, run=folder, task=one.task, data=one.data, tasks={}))
            for folder, one in zip(config.parents, config.tasks.values(), strict=True)
        ]

    def _checked_inputs(self, config: Compress) -> dict[str, str]:
        """The files of ``input``, by task; raises `UserError` where one is missing, or is of no task."""
        names = [*config.tasks] or [""]
        for name, file in config.input_files.items():
            if name not in names:
                form = "{task: file}, of " + listing(names) if config.tasks else "a file"
                raise UserError(f"input={config.input}: expected {form}.{nearest(name, names) if config.tasks else ''}")
            Source.parse(file)
        return config.input_files

    @cached_property
    def teachers(self) -> dict[str, Teacher]:
        """The teacher of each task."""
        from gptask.analysis.compress.teacher import Teacher

        return {name: Teacher(folder, self.config.engine) for name, folder in self.folders.items()}

    def parent_of(self, task: str | None) -> str | None:
        """See `Variation`; a run with several teachers has none as a whole."""
        if task is not None:
            return self.folders[task]
        return str(self.parent) if len(self.config.parents) == 1 else None

    def load_parent(self, engine: EngineOptions) -> Runs:
        """Load the teachers."""
        tasks = task_configs(self.config)
        runs = {name: load_run(folder, type(tasks[name].task), engine=engine) for name, folder in self.folders.items()}
        return Runs(self.parent, runs)

    def training_corpora(self, config: Train, corpora: Mapping[str, CachedCorpus]) -> Mapping[str, CachedCorpus]:
        """See `Variation`; raises `UserError` where a teacher has another task or other labels."""
        for name, one in task_configs(config).items():
            self.teachers[name].require_task(one.task)
        return super().training_corpora(config, corpora)

    def choose_options(self, config: Train, corpora: Mapping[str, CachedCorpus]) -> tuple[Train, list[ChosenOption]]:
        """See `Variation`: of several teachers, the layers that are most important to all of them stay."""
        if len(self.starts) < 2:
            return self.starts[0].choose_options(config, corpora) if self.starts else (config, [])
        keep, present = self.starts[0].keep, getattr(config.backbone, "keep", None)
        if isinstance(keep, int):
            if present is not None and len(present) == keep:
                return config, []  # chosen before the run was stopped
            keep = self._most_important(corpora, keep)
        chosen = ChosenOption("backbone.keep", keep, "the layers that change the states of the teachers most")
        return replace(config, backbone=replace(config.backbone, keep=keep)), [chosen]

    def _most_important(self, corpora: Mapping[str, CachedCorpus], keep: int) -> list[int]:
        """The layers with the highest influence, summed over the teachers."""
        total: dict[int, float] = {}
        for start, corpus in zip(self.starts, corpora.values(), strict=True):
            influence = start.influence(start.config, {plugin_of(start.config.task).name: corpus})
            total = {number: total.get(number, 0.0) + value for number, value in influence.items()}
        return sorted(sorted(total, key=total.__getitem__)[-keep:])

    def build_module(self, backbone: GPTBackbone, runtimes: Sequence[TaskRuntime], config: Train) -> GPTModule:
        """See `Variation`: the losses, or the examples, of the module are its teachers'."""
        from pytorch_lightning.utilities.seed import isolate_rng

        from gptask.analysis.compress.teacher import teach

        build = self.starts[0].build_module if len(self.starts) == 1 else super().build_module
        module, options = build(backbone, runtimes, config), self.config
        with isolate_rng():  # the training is the same whether the teacher works or its work is in the cache
            for runtime in runtimes:
                unlabelled = self.inputs.get("" if runtime.single_task else runtime.name)
                texts = teach(runtime, self.teachers[runtime.name], options.temperature, options.weight, unlabelled)
                if texts:
                    self.texts[runtime.name] = texts
        return module

    def files(self, runtime: TaskRuntime) -> dict[str, Path]:
        """See `Variation`: what the teacher has written."""
        return {TEXTS: self.texts[runtime.name]} if runtime.name in self.texts else {}
