"""The parts of a run, put together: corpus, backbone, data module, head (one way through the code)."""

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
    """What a trainer needs."""

    task: Task
    backbone: GPTBackbone
    head: Head
    data: DataModule


def task_configs(config: Train | Evaluate) -> dict[str, TaskConfig]:
    """The tasks of a run by name: several, or the one under its plugin's name; raises `UserError` for none or both."""
    found: dict[str, TaskConfig] = getattr(config, "tasks", {})
    if bool(found) == (config.task is not None):
        raise UserError(f"a run has one task or several: set task=<name> or tasks=[...]{', not both' * bool(found)}")
    if not found:
        return {plugin_of(config.task).name: TaskConfig(config.task, config.data)}
    multitask.check_tasks(found, config.mixing)  # type: ignore[union-attr]
    return found


def build_corpora(config: Train | Evaluate) -> dict[str, CachedCorpus]:
    """The data of each task, after its options were checked; for a training there must be some to train on."""
    found = {}
    for name, member in task_configs(config).items():
        try:
            found[name] = build_corpus(member.task, member.data, config.seed)
            if isinstance(config, Train):
                found[name].require("train")
        except UserError as error:
            if not getattr(config, "tasks", {}):
                raise
            raise type(error)(f"tasks.{name}: {error}") from error
    return found


def build_corpus(task: Task, data: Data, seed: int) -> CachedCorpus:
    """Check the task's options and the data's, without reading more than file names."""
    task.validate()
    for name in ("max_tokens", "batch_size", "batch_tokens", "eval_batch_size"):
        if getattr(data, name) < 1:
            raise UserError(f"data.{name}={getattr(data, name)} must be at least 1")
    return CachedCorpus(task, data, seed if data.seed is None else data.seed)


def training_texts(task: Task, examples: CachedCorpus) -> Iterator[str]:
    """All text of the training split, for a tokenizer to be trained on."""
    named = [f for f in task.fields() if f.kind in (Kind.TEXT, Kind.TEXTS)]
    for example in examples.split("train"):
        prompt, target = task.render(example)
        yield prompt if target is None else prompt + target
        for f in named:
            if f.target:
                yield from example[f.name] if f.kind is Kind.TEXTS else [example[f.name]]


def build_parts(task: Task, examples: CachedCorpus, options: Data, backbone: GPTBackbone, seed: int) -> Parts:
    """Build data module and head on a loaded backbone."""
    from gptask.data.datamodule import DataModule

    if options.max_tokens > backbone.context:
        log.warning("data.max_tokens=%d is cut to the backbone's context %d", options.max_tokens, backbone.context)
        options.max_tokens = backbone.context
    own = task.datamodule(examples, backbone.tokenizer, options, seed)
    data = own if own is not None else DataModule(task, examples, backbone.tokenizer, options, seed)
    data.shares = backbone.can_pack(options.max_tokens)
    return Parts(task, backbone, cast("Head", task.head(backbone)), data)
