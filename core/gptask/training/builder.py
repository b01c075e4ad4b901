"""Builds the parts of a run: corpus, data module, head."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from gptask.config import multitask
from gptask.config.schemas import Data, Evaluate, TaskConfig, Train
from gptask.data.corpus import CachedCorpus
from gptask.errors import UserError
from gptask.plugins.discovery import plugin_of
from gptask.plugins.task import Task
from gptask.plugins.types import Kind

if TYPE_CHECKING:
    from gptask.data.datamodule import DataModule
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

log = logging.getLogger("gptask")


@dataclass
class Parts:
    """The parts of one task's run."""

    task: Task
    backbone: GPTBackbone
    head: Head
    data: DataModule


def task_configs(config: Train | Evaluate) -> dict[str, TaskConfig]:
    """The tasks of a run by name: several, or the one under its plugin's name; raises `UserError` for none or both."""
    tasks = config.tasks if isinstance(config, Train) else {}
    if bool(tasks) == (config.task is not None):
        raise UserError(f"a run has one task or several: set task=<name> or tasks=[...]{', not both' * bool(tasks)}")
    if isinstance(config, Train) and tasks:
        multitask.check_tasks(tasks, config.mixing)
        return tasks
    return {plugin_of(config.task).name: TaskConfig(config.task, config.data)}


def build_corpora(config: Train | Evaluate) -> dict[str, CachedCorpus]:
    """Build the corpus of each task by name, from checked options.

    Raises `UserError` for an option out of range, for a missing file, and for a training without training data.
    """
    corpora = {}
    for name, task_config in task_configs(config).items():
        try:
            corpora[name] = build_corpus(task_config.task, task_config.data, config.seed)
            if isinstance(config, Train):
                corpora[name].require_split("train")
        except UserError as error:
            if isinstance(config, Train) and config.tasks:
                raise type(error)(f"tasks.{name}: {error}") from error
            raise
    return corpora


def build_corpus(task: Task, data: Data, seed: int) -> CachedCorpus:
    """Build a task's corpus from checked options; no data is read yet."""
    task.validate()
    for name in ("max_tokens", "batch_size", "batch_tokens", "eval_batch_size"):
        if getattr(data, name) < 1:
            raise UserError(f"data.{name}={getattr(data, name)} must be at least 1")
    return CachedCorpus(task, data, seed if data.seed is None else data.seed)


def training_texts(task: Task, corpus: CachedCorpus) -> Iterator[str]:
    """All text of the training split, to train a tokenizer on."""
    text_targets = [f for f in task.fields() if f.target and f.kind in (Kind.TEXT, Kind.TEXTS)]
    for example in corpus.split("train"):
        prompt, target = task.render(example)
        yield prompt if target is None else prompt + target
        for field in text_targets:
            yield from example[field.name] if field.kind is Kind.TEXTS else [example[field.name]]


def build_parts(task: Task, corpus: CachedCorpus, options: Data, backbone: GPTBackbone, seed: int) -> Parts:
    """Build data module and head on a loaded backbone; lowers ``options.max_tokens`` to the backbone's context."""
    from gptask.data.datamodule import DataModule

    if options.max_tokens > backbone.context:
        log.warning("data.max_tokens=%d is cut to the backbone's context %d", options.max_tokens, backbone.context)
        options.max_tokens = backbone.context
    data = task.datamodule(corpus, backbone.tokenizer, options, seed)
    if data is None:
        data = DataModule(task, corpus, backbone.tokenizer, options, seed)
    data.shares_prefixes = backbone.engine.can_pack(options.max_tokens)
    return Parts(task, backbone, cast("Head", task.head(backbone)), data)
