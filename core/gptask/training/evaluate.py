"""`gptask evaluate`: score a run folder or the bare backbone on a split, without training."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from gptask.config.conversion import validated_copy
from gptask.config.schemas import Evaluate
from gptask.config.trainer_options import check_trainer_options
from gptask.data.corpus import CachedCorpus
from gptask.errors import UserError
from gptask.plugins.discovery import Plugin, plugin_of
from gptask.plugins.task import Task
from gptask.runs import run
from gptask.runs.config_file import command_line, write_config
from gptask.runs.folder import is_main_process, open_run_folder
from gptask.runs.saved_model import locate_backbone
from gptask.training import builder
from gptask.training.fingerprint import run_fingerprint
from gptask.training.results import write_results


def evaluate(config: Evaluate, command: str | None = None) -> Path:
    """Evaluate from a config; return the new run folder, which names its parent and the ``command`` line."""
    config = validated_copy(config)
    check_trainer_options(config.trainer)
    if config.run and config.shots:
        raise UserError("shots=k is for the bare backbone (run=null); a fine-tuned run has learned its task")
    plugin = plugin_of(config.task)
    corpora = builder.build_corpora(config)
    fingerprint = run_fingerprint(config, corpora)
    token = command_line.set(command)
    try:
        with open_run_folder(config.outputs, plugin.name, config.folder) as folder:
            _evaluate(config, plugin, corpora[plugin.name], folder, fingerprint)
    finally:
        command_line.reset(token)
    return folder


def _evaluate(config: Evaluate, plugin: Plugin, corpus: CachedCorpus, folder: Path, fingerprint: str) -> None:
    started = time.time()
    task: Task = config.task
    corpus.split(config.split)  # a missing split is an error before a model is loaded
    trained_run = run.load_run(config.run, task) if config.run else None
    if trained_run:
        backbone = trained_run.backbone
    else:
        from gptask.model.backbone.backbone import load_or_build_backbone

        origin = locate_backbone(config.backbone)
        task.prepare(corpus.all_rows("train" if corpus.split_source("train") else config.split))
        backbone = load_or_build_backbone(config.backbone, origin, lambda: builder.training_texts(task, corpus))
        task.demonstrations = demonstrations(task, corpus, config.shots, config.seed)  # type: ignore[misc]
    from gptask.training.module import GPTModule
    from gptask.training.task_runtime import TaskRuntime
    from gptask.training.trainer import build_trainer

    parts = builder.build_parts(task, corpus, config.data, backbone, config.seed)
    runtime = TaskRuntime(plugin.name, task, trained_run.head if trained_run else parts.head, parts.data)
    module = GPTModule(backbone, [runtime]).requires_grad_(False)
    trainer = build_trainer(folder, config.trainer, logger=False)
    trainer.test(module, dataloaders=parts.data.eval_dataloader(config.split), verbose=False)
    if not is_main_process():
        return
    write_config(folder, config, plugin, parent=config.run)
    write_results(folder, module, runtime, config.split, config, started, 0.0, fingerprint)


def demonstrations(task: Task, corpus: CachedCorpus, shots: int, seed: int) -> str:
    """``shots`` solved training examples as text, drawn by the seed."""
    if shots < 0:
        raise UserError(f"shots={shots} must be 0 or more")
    if not shots:
        return ""
    examples = corpus.split("train")
    drawn_rows = np.random.default_rng(seed).permutation(len(examples))[:shots]
    return "".join(f"{task.demonstrate(examples[row])}\n\n" for row in drawn_rows)
