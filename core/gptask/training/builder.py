"""Builds the parts of a run: corpora, data modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from gptask.config import multitask
from gptask.config.schemas import Data, Evaluate, TaskConfig, Train
from gptask.data.corpus import CachedCorpus
from gptask.errors import UserError
from gptask.plugins.discovery import plugin_of
from gptask.plugins.task import Task
from gptask.plugins.types import Kind

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone

Config = TypeVar("Config", Train, Evaluate)


def task_configs(config: Train | Evaluate) -> dict[str, TaskConfig]:
    """The tasks of a run by name: several, or the one under its plugin's name."""
    if isinstance(config, Train) and config.tasks:
        return config.tasks
    return {plugin_of(config.task).name: TaskConfig(config.task, config.data)}


def with_task_configs(config: Config, tasks: dict[str, TaskConfig]) -> Config:
    """The config with other values of its tasks, which have the names that `task_configs` gives them."""
    changes: dict[str, Any] = {"tasks": tasks}
    if not (isinstance(config, Train) and config.tasks):
        (only,) = tasks.values()
        changes = {"task": only.task, "data": only.data}
    return replace(config, **changes)


def option_prefix(config: Train | Evaluate, task: str) -> str:
    """What stands before the names of a task's options on the command line."""
    return f"tasks.{task}." if isinstance(config, Train) and config.tasks else ""


def build_corpora(config: Train | Evaluate) -> dict[str, CachedCorpus]:
    """Build the corpus of each task by name, after a check of the tasks' options.

    Raises `UserError` for no task, for one task beside several, for an option out of range, for a missing file, and for
    a training without training data.
    """
    tasks = config.tasks if isinstance(config, Train) else {}
    if bool(tasks) == (config.task is not None):
        raise UserError(f"a run has one task or several: set task=<name> or tasks=[...]{', not both' * bool(tasks)}")
    if isinstance(config, Train) and tasks:
        multitask.check_tasks(tasks, config.mixing)
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


def build_data(task: Task, corpus: CachedCorpus, options: Data, backbone: GPTBackbone, seed: int) -> Any:
    """Build the data module of a task on a loaded backbone: the task's own, else gptask's."""
    from gptask.data.datamodule import DataModule

    data = task.datamodule(corpus, backbone.tokenizer, options, seed)
    if data is None:
        data = DataModule(task, corpus, backbone.tokenizer, options, seed)
    data.shares_prefixes = backbone.engine.can_pack(options.max_tokens)
    return data
