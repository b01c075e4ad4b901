"""`gptask train`: fine-tune, keep the checkpoint that is best on validation, test that one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import validated_copy
from gptask.config.engine import refuse_openvino
from gptask.config.schemas import HeadOnly, Lora, Scratch, Train
from gptask.config.trainer_options import TRAINING_LIMITS, check_trainer_options
from gptask.data.corpus import SPLITS
from gptask.data.label_report import log_labels
from gptask.errors import UserError, listing
from gptask.runs import run, saved_model
from gptask.runs.folder import claim_run_folder, is_main_process, logged_into, resume_hint, run_title
from gptask.runs.saved_model import locate_backbone
from gptask.training import builder, loggers, resume, resume_folder
from gptask.training.checkpoint_content import restoring
from gptask.training.checkpoint_files import LAST, load_checkpoint, remove_partial_files, remove_unneeded
from gptask.training.context import RunContext
from gptask.training.interrupts import (
    forget_signals,
    hold_signals,
    interruptible,
    interrupts_of_lightning,
    release_signals,
)
from gptask.training.process_watch import set_hint, watched
from gptask.training.resolve import Resolved, log_chosen, prepare_tasks, resolve_options, resolve_schedule
from gptask.training.results import task_context, write_run_results
from gptask.training.task_runtime import TaskRuntime
from gptask.training.variation import Variation

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from gptask.data.corpus import CachedCorpus
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.training.module import GPTModule

log = logging.getLogger("gptask")
MIN_HINTED_EPOCHS = 4  # of a training whose best epoch is looked at
FULL_PRECISIONS = (None, "32-true", "32", 32)  # with these the trainer keeps the backbone's own number format


def train(config: Train, callbacks: Sequence[pl.Callback] = (), command: str | None = None) -> run.Run:
    """Train one task from a config, which is not changed; return the run with its best model loaded.

    ``callbacks`` are Lightning callbacks beside gptask's own; an exception in a callback aborts training.
    ``command`` is the command line that the config comes from, if any. Raises `UserError` for whatever the user can
    fix.
    """
    if config.tasks:
        raise UserError(f"train() takes one task and got {listing(config.tasks)}: gptask.train_tasks trains them")
    (only_run,) = train_tasks(config, callbacks, command).tasks.values()
    return only_run


def train_tasks(
    config: Train,
    callbacks: Sequence[pl.Callback] = (),
    command: str | None = None,
    variation: Variation | None = None,
) -> run.Runs:
    """`train` for any number of tasks: one backbone, whose tuning they share, and a head each.

    A ``variation`` is a training that is no plain one.
    """
    config = validated_copy(config)
    refuse_openvino(config.engine, "train")
    check_trainer_options(config.trainer)
    _check_minutes(config.checkpoint.minutes)
    _refuse_random_weights_that_stay(config)
    loggers.require_logger(config.logger)
    folder = None
    with interruptible(), watched(resumable=True):
        try:
            existing = resume_folder.folder_to_resume(config)
            start = None if existing else resume.new_start(config)  # before a folder is made
            title = "" if existing else run_title(config)
            hold_signals()
            with claim_run_folder(config.outputs, title, config.folder, existing, may_resume=True) as folder:
                release_signals()  # from here on a folder in which nothing is written is removed again
                start = start or resume_folder.start_in_folder(folder, config)
                if start is None:
                    classes = {name: type(one.task) for name, one in builder.task_configs(config).items()}
                    return run.load_runs(folder, classes, engine=config.engine)
                set_hint(partial(resume_hint, folder))
                with logged_into(folder):
                    context = RunContext(start.config, command, start.corpora, start.fingerprint, folder)
                    context = replace(context, variation=variation or Variation())
                    return _train(context, start, callbacks)
        except KeyboardInterrupt as stop:
            hint = resume_hint(folder) if folder else "Nothing is written yet: the same command begins again."
            raise type(stop)(f"{str(stop) or 'stopped'}. {hint}") from stop
        finally:
            forget_signals()


def _check_minutes(minutes: float | None) -> None:
    if minutes is not None and not minutes >= 0:
        raise UserError(f"checkpoint.minutes={minutes}: expected minutes (0: after each step), or null for never")


def _refuse_random_weights_that_stay(config: Train) -> None:
    """Raise `UserError` for a backbone from scratch that the options leave as it is drawn."""
    if not isinstance(config.backbone, Scratch):
        return
    if isinstance(config.tuning, Lora | HeadOnly):
        kind = "lora" if isinstance(config.tuning, Lora) else "head"
        raise UserError(
            f"tuning={kind} keeps the weights of the backbone, and those of backbone=nano are random: set tuning=full, "
            "or take a pretrained backbone, such as backbone=smollm2 or a run folder (backbone.source=)"
        )
    for option in TRAINING_LIMITS:
        if config.trainer.get(option) == 0:
            raise UserError(f"trainer.{option}=0 trains nothing, and the weights of backbone=nano are random: raise it")


def _train(context: RunContext[Train], start: resume.Start, callbacks: Sequence[pl.Callback]) -> run.Runs:
    corpora = context.variation.training_corpora(context.config, context.corpora)
    module, data, config = build_module(context.config, corpora, context.variation)
    context = replace(context, config=config, corpora=corpora)
    record = resume.start_record(start.given, config, context.corpora, module.backbone.origin.weights_hash)

    from gptask.training.cost_probe import probe_cost
    from gptask.training.process_start import start_processes
    from gptask.training.trainer import build_training_trainer

    writes = is_main_process()
    started_from = {"started_from": record["start"]} if record["start"] else {}
    trainer = build_training_trainer(context.folder, config, callbacks, record)
    with loggers.tracking(trainer, config, context.folder):
        if writes:
            replace(context, extra={"given": start.given} | started_from).write_config()
            loggers.set_aside_curves(context.folder)
            if config.probe and not config.resume:
                probe_cost(module, trainer, context.folder, data.passes() if config.tasks else (1.0,))
        start_processes(trainer)
        _fit(trainer, module, data, context, start.checkpoint)
        _load_best(trainer, module)
        context = context.with_tasks({runtime.name: runtime.task for runtime in module.runtimes})
        context = replace(context, extra={"tuned_options": module.tuned_options} | started_from)
        if writes:
            context.write_config()  # again, with what validation chose
            tasks = {runtime.name if config.tasks else "": (runtime.task, runtime.head) for runtime in module.runtimes}
            saved_model.save_model(context.folder, module.backbone, tasks, config.tuning)
        context = replace(context, fit_seconds=time.time() - context.started)
        for runtime in module.runtimes:
            runtime.outputs = {}  # of validation, and a test of no batch would leave them
        with interrupts_of_lightning():
            trainer.test(module, datamodule=data, verbose=False)
        if writes:
            write_run_results(context, module)
    module.eval()
    return _finished_runs(context, module)


def build_module(
    config: Train, corpora: Mapping[str, CachedCorpus], variation: Variation | None = None
) -> tuple[GPTModule, Any, Train]:
    """Return the module to train, its data module, and the config with the options that were left open chosen.

    No file is written yet.
    """
    variation = variation or Variation()
    config, chosen_start = variation.choose_options(config, corpora)
    origin = locate_backbone(config.backbone)
    given_tasks, (config, chosen) = builder.task_configs(config), prepare_tasks(config, corpora)
    for name, corpus in corpora.items():
        corpus.warn_overlap()
        if is_main_process():
            log_labels(given_tasks[name].task, corpus, SPLITS, builder.option_prefix(config, name))

    import pytorch_lightning as pl

    from gptask.data.mixture import Mixture
    from gptask.model.backbone import tuning
    from gptask.model.backbone.backbone import load_or_build_backbone
    from gptask.training.batch_trial import fit_batches
    from gptask.training.process_start import expect_processes

    def texts() -> Iterator[str]:
        for corpus in corpora.values():
            yield from builder.training_texts(corpus.task, corpus)

    processes = expect_processes(config.trainer)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    backbone = load_or_build_backbone(config.backbone, origin, texts, config.engine)
    resolved = resolve_options(config, corpora, backbone)
    config, runtimes = resolved.config, _build_runtimes(resolved, corpora, backbone)
    tuning.drop_upper_layers(backbone, config.tuning)
    backbone.set_model(tuning.apply_tuning(backbone.peft, config.tuning))
    if config.compile:
        backbone.compile()
    log.info("%s", backbone.engine.summary())
    data = runtimes[0].data
    if config.tasks:
        data = Mixture({runtime.name: runtime.data for runtime in runtimes}, config.mixing, config.seed)
    module = variation.build_module(backbone, runtimes, config)
    if origin:
        _cache_activations(module, config)
    config, chosen_tokens = fit_batches(config, module)
    config, chosen_schedule = resolve_schedule(config, data, processes)
    log_chosen([*chosen_start, *chosen, *resolved.chosen, *chosen_tokens, *chosen_schedule])
    return module, data, config


def _build_runtimes(
    resolved: Resolved, corpora: Mapping[str, CachedCorpus], backbone: GPTBackbone
) -> list[TaskRuntime]:
    """Build the data module of each task beside its head; a compiled backbone computes no shared prefixes."""
    config, runtimes = resolved.config, []
    for name, one in builder.task_configs(config).items():
        data = builder.build_data(one.task, corpora[name], one.data, backbone, config.seed)
        data.shares_prefixes = data.shares_prefixes and not config.compile
        head, single_task = resolved.heads[name], not config.tasks
        runtimes.append(TaskRuntime(name, one.task, head, data, one.weight, single_task))
    return runtimes


def _cache_activations(module: GPTModule, config: Train) -> None:
    """Let hidden states that are the same in every epoch be read from disk, for data in core's own data module."""
    from gptask.data.datamodule import DataModule
    from gptask.model.engine.activation_cache import activation_cache_for, cacheable_layers

    if config.trainer.get("precision") not in FULL_PRECISIONS:
        return  # the trainer would compute them in another number format
    frozen = isinstance(config.tuning, HeadOnly)
    several_epochs = config.trainer.get("max_epochs") != 1 and not config.compile
    layers = cacheable_layers(module.backbone) if several_epochs and not frozen else []
    if not module.backbone.engine.caches_activations or not (layers or frozen):
        return
    for runtime in module.runtimes:
        if isinstance(runtime.data, DataModule):
            runtime.activation_caches = {
                split: activation_cache_for(runtime.data, split, module.backbone, runtime.head, layers)
                for split in ("train", "validation")
            }


def _fit(
    trainer: pl.Trainer, module: GPTModule, data: Any, context: RunContext[Train], checkpoint: Path | None
) -> None:
    """Train, from a checkpoint if there is one, and remove the checkpoints that nothing goes on from any more."""
    from gptask.training.batch_trial import memory_advice
    from gptask.training.divergence import Diverged, with_advice
    from gptask.training.trainer import gc_frozen

    config, folder = context.config, context.folder
    if checkpoint:
        log.info("resuming from %s", checkpoint)
        if is_main_process():
            remove_partial_files(checkpoint.parent)
    try:
        with memory_advice(trainer, config, folder), gc_frozen(), interrupts_of_lightning(), restoring(checkpoint):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except Diverged as diverged:
        raise with_advice(diverged, config) from diverged
    except KeyboardInterrupt as stop:
        raise type(stop)(f"{str(stop) or 'stopped'} at step {trainer.global_step}") from stop
    _keep_best_and_last(trainer, folder / "checkpoints")
    if not trainer.global_step:
        limits = [f"trainer.{name}=0" for name in TRAINING_LIMITS if config.trainer.get(name) == 0]
        log.warning("nothing was trained (%s): backbone and heads are tested as they are",
                    listing(limits) or "no optimizer step")  # fmt: skip


def _keep_best_and_last(trainer: pl.Trainer, checkpoints: Path) -> None:
    """Leave two checkpoints of a training that has ended, also where an earlier start was killed before the last."""
    callback: Any = trainer.checkpoint_callback
    last = checkpoints / LAST
    if callback and trainer.global_step and trainer.strategy.broadcast(not last.exists()):
        trainer.save_checkpoint(last)
    if is_main_process():
        remove_unneeded(checkpoints, Path(callback.best_model_path).name if callback else "")


def _load_best(trainer: pl.Trainer, module: GPTModule) -> None:
    callback: Any = trainer.checkpoint_callback
    if not callback or not callback.best_model_path:
        log.warning("no validation ran, so there is no best checkpoint: the last weights are kept and tested")
        return
    checkpoint = load_checkpoint(Path(callback.best_model_path), module.device)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    module.set_tuned_options(checkpoint["tuned_options"])
    score = callback.best_model_score  # None where the run was resumed after its last epoch
    value = "" if score is None else f" ({callback.monitor} {float(score):.4f})"
    log.info("best checkpoint: %s%s", Path(callback.best_model_path).name, value)
    best_epoch, epochs = int(checkpoint["epoch"]) + 1, trainer.current_epoch
    if epochs >= MIN_HINTED_EPOCHS and 2 * best_epoch <= epochs:
        log.info(
            "validation was best after epoch %d of %d; the epochs behind it gained nothing. early_stopping.patience=2 "
            "stops such a training, and a lower learning rate or fewer epochs may do better", best_epoch, epochs,
        )  # fmt: skip


def _finished_runs(context: RunContext[Train], module: GPTModule) -> run.Runs:
    """Return the finished run as `gptask.load_runs` would load it."""
    runs = {}
    for runtime in module.runtimes:
        task = task_context(context, runtime)
        runs[runtime.name] = run.Run(task.folder, task.plugin, runtime.task, module.backbone, runtime.head, task.values)
    return run.Runs(context.folder, runs)
