"""`gptask evaluate`: score a run folder or the bare backbone on a split, without training."""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gptask.config.conversion import validated_copy
from gptask.config.schemas import Evaluate
from gptask.config.trainer_options import check_trainer_options
from gptask.data.corpus import CachedCorpus
from gptask.data.label_report import log_labels
from gptask.errors import UserError
from gptask.plugins.task import Task
from gptask.plugins.text_tokenizer import text_tokenizer
from gptask.runs import run
from gptask.runs.folder import is_main_process, open_run_folder, run_title
from gptask.runs.saved_model import locate_backbone
from gptask.training import builder
from gptask.training.context import RunContext
from gptask.training.fingerprint import run_fingerprint
from gptask.training.resolve import ChosenOption, log_chosen, prepare_tasks, resolve_data
from gptask.training.results import write_results

log = logging.getLogger("gptask")


def evaluate(config: Evaluate, command: str | None = None) -> Path:
    """Evaluate from a config, which is not changed; return the new run folder, which names its parent.

    ``command`` is the command line that the config comes from, if any.
    """
    config = validated_copy(config)
    check_trainer_options(config.trainer)
    if config.run and config.shots:
        raise UserError("shots=k is for the bare backbone (run=null); a fine-tuned run has learned its task")
    corpora = builder.build_corpora(config)
    fingerprint = run_fingerprint(config, corpora)
    with open_run_folder(config.outputs, run_title(config), config.folder) as folder:
        _evaluate(RunContext(config, command, corpora, fingerprint, folder, extra={"parent": config.run}))
    return folder


def _evaluate(context: RunContext[Evaluate]) -> None:
    config = context.config
    ((name, corpus),) = context.corpora.items()
    corpus.split(config.split)  # a missing split is an error before a model is loaded
    given_task = config.task
    chosen: list[ChosenOption] = []
    if config.run:
        trained_run = run.load_run(config.run, config.task, engine=config.engine)
        backbone, head = trained_run.backbone, trained_run.head
    else:
        from gptask.model.backbone.backbone import load_or_build_backbone

        origin = locate_backbone(config.backbone)
        config, chosen = prepare_tasks(config, context.corpora)
        backbone = load_or_build_backbone(
            config.backbone, origin, lambda: builder.training_texts(corpus.task, corpus), config.engine
        )
        head = config.task.head(backbone)
    config, chosen_data = resolve_data(config, backbone)
    if is_main_process():
        log_labels(given_task, corpus, [config.split])
    log_chosen([*chosen, *chosen_data])
    log.info("%s", backbone.engine.summary())

    from gptask.training.module import GPTModule
    from gptask.training.task_runtime import TaskRuntime
    from gptask.training.trainer import build_trainer

    task: Task = copy(config.task)
    task.demonstrations = demonstrations(task, corpus, config.shots, config.seed, backbone.tokenizer)  # type: ignore[misc]
    data = builder.build_data(task, corpus, config.data, backbone, config.seed)
    runtime = TaskRuntime(name, task, head, data)
    module = GPTModule(backbone, [runtime]).requires_grad_(False)
    trainer = build_trainer(context.folder, config.trainer, logger=False)
    trainer.test(module, dataloaders=data.eval_dataloader(config.split), verbose=False)
    if is_main_process():
        context = replace(context, config=config)
        context.write_config()
        write_results(context, module, runtime, config.split)


def demonstrations(task: Task, corpus: CachedCorpus, shots: int, seed: int, tokenizer: Any) -> str:
    """``shots`` solved training examples as text, drawn by the seed; control strings of the data are marked as such."""
    if shots < 0:
        raise UserError(f"shots={shots} must be 0 or more")
    if not shots:
        return ""
    examples, mark = corpus.split("train"), text_tokenizer(tokenizer).mark
    drawn_rows = np.random.default_rng(seed).permutation(len(examples))[:shots]
    return "".join(f"{task.demonstrate(mark(examples[row]))}\n\n" for row in drawn_rows)
