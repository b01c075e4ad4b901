"""`gptask train`: fine-tune, keep the checkpoint that is best on validation, test that one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import validated_copy
from gptask.config.schemas import Full, HeadOnly, TaskConfig, Train
from gptask.config.trainer_options import check_trainer_options
from gptask.errors import UserError, listing
from gptask.plugins.discovery import plugin_of
from gptask.runs import run, saved_model
from gptask.runs.config_file import command_line, read_config, write_config
from gptask.runs.folder import is_main_process, open_run_folder, resume_hint, run_title
from gptask.runs.saved_model import locate_backbone
from gptask.training import builder, loggers
from gptask.training.fingerprint import run_fingerprint
from gptask.training.resolve import resolve_schedule, resolve_tuning
from gptask.training.results import write_run_results
from gptask.training.task_runtime import TaskRuntime

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from gptask.data.corpus import CachedCorpus
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.training.module import GPTModule

log = logging.getLogger("gptask")
FULL_PRECISIONS = (None, "32-true", "32", 32)  # with these the trainer keeps the backbone's own number format


def train(config: Train, callbacks: Sequence[pl.Callback] = (), command: str | None = None) -> run.Run:
    """Train one task from a config, which is not changed; return the run with its best model loaded.

    ``callbacks`` are Lightning callbacks beside gptask's own; an exception in a callback aborts training.
    ``command`` is the command line that asked for the run; it is recorded in config.yaml.
    Raises `UserError` for whatever the user can fix.
    """
    if config.tasks:
        raise UserError(f"train() takes one task and got {listing(config.tasks)}: gptask.train_tasks trains them")
    (only_run,) = train_tasks(config, callbacks, command).tasks.values()
    return only_run


def train_tasks(config: Train, callbacks: Sequence[pl.Callback] = (), command: str | None = None) -> run.Runs:
    """`train` for any number of tasks: one backbone, whose tuning they share, and a head each."""
    config = validated_copy(config)
    check_trainer_options(config.trainer)
    loggers.require_logger(config.logger)
    corpora = builder.build_corpora(config)
    fingerprint = run_fingerprint(config, corpora)  # before the training fills in the options that are left open
    token = command_line.set(command)
    try:
        with open_run_folder(config.outputs, run_title(config), config.folder, config.resume) as folder:
            return _train(config, corpora, folder, fingerprint, callbacks)
    finally:
        command_line.reset(token)


def _train(
    config: Train,
    corpora: dict[str, CachedCorpus],
    folder: Path,
    fingerprint: str,
    callbacks: Sequence[pl.Callback],
) -> run.Runs:
    started = time.time()
    module, data = build_module(config, corpora)
    config.trainer = resolve_schedule(config.trainer, data, full=isinstance(config.tuning, Full))

    from gptask.training.cost_probe import probe_cost
    from gptask.training.trainer import build_training_trainer

    writes = is_main_process()
    trainer = build_training_trainer(folder, config, callbacks)
    with loggers.tracking(trainer, config, folder):
        if writes:
            write_config(folder, config)
            if config.probe and not config.resume:
                probe_cost(module, trainer, data.passes() if config.tasks else (1.0,))
        _fit(trainer, module, data, folder, config.resume)
        _load_best(trainer, module)
        if writes:
            write_config(folder, config, tuned_options=module.tuned_options)  # again, with what validation chose
            heads = {runtime.name if config.tasks else "": runtime.head for runtime in module.runtimes}
            saved_model.save_model(folder, module.backbone, heads, config.tuning)
        fit_seconds = time.time() - started
        trainer.test(module, datamodule=data, verbose=False)
        if writes:
            write_run_results(folder, module, config, started, fit_seconds, fingerprint)
    module.eval()
    return _loaded_runs(folder, module, config)


def build_module(config: Train, corpora: dict[str, CachedCorpus]) -> tuple[GPTModule, Any]:
    """Return the module to train and its data module; no file is written yet."""
    origin = locate_backbone(config.backbone)
    task_configs = builder.task_configs(config)
    for name, corpus in corpora.items():
        task_configs[name].task.prepare(corpus.all_rows("train"))
        corpus.warn_overlap()

    import pytorch_lightning as pl

    from gptask.data.mixture import Mixture
    from gptask.model.backbone.backbone import load_or_build_backbone
    from gptask.training.module import GPTModule

    def texts() -> Iterator[str]:
        for name, corpus in corpora.items():
            yield from builder.training_texts(task_configs[name].task, corpus)

    pl.seed_everything(config.seed, workers=True, verbose=False)
    backbone = load_or_build_backbone(config.backbone, origin, texts)
    runtimes = [_build_runtime(config, name, task_configs[name], corpora[name], backbone) for name in task_configs]
    _tune(config, backbone, runtimes)
    optimizer = config.optimizer
    if optimizer.lr is None:
        optimizer = replace(optimizer, lr=config.tuning.lr)
    module = GPTModule(backbone, runtimes, optimizer, config.schedule)
    if origin:
        _cache_activations(module, config)
    if not config.tasks:
        return module, runtimes[0].data
    return module, Mixture({runtime.name: runtime.data for runtime in runtimes}, config.mixing, config.seed)


def _build_runtime(
    config: Train, name: str, task_config: TaskConfig, corpus: CachedCorpus, backbone: GPTBackbone
) -> TaskRuntime:
    from gptask.data.datamodule import DataModule
    from gptask.model.heads import GenerationHead

    data_options = task_config.data
    parts = builder.build_parts(task_config.task, corpus, data_options, backbone, config.seed)
    if isinstance(parts.head, GenerationHead) and isinstance(parts.data, DataModule):
        parts.head.options.resolve_max_new_tokens(parts.data.items("train").lengths("target"), data_options.max_tokens)
    return TaskRuntime(name, parts.task, parts.head, parts.data, task_config.weight, single_task=not config.tasks)


def _tune(config: Train, backbone: GPTBackbone, runtimes: Sequence[TaskRuntime]) -> None:
    """Leave in the backbone the layers that are used, mark the weights that learn, compile it if the config says so."""
    from gptask.model.backbone import tuning

    tuning.drop_upper_layers(backbone, config.tuning)
    resolve_tuning(config.tuning, [runtime.head for runtime in runtimes], backbone)
    backbone.peft = tuning.apply_tuning(backbone.peft, config.tuning)
    if config.compile:
        backbone.compile()
        for runtime in runtimes:
            runtime.data.shares_prefixes = False


def _cache_activations(module: GPTModule, config: Train) -> None:
    """Let hidden states that are the same in every epoch be read from disk, for data in core's own data module."""
    from gptask.data.datamodule import DataModule
    from gptask.model.engine.activation_cache import activation_cache_for, cacheable_layers

    if config.trainer.get("precision") not in FULL_PRECISIONS:
        return  # the trainer would compute them in another number format
    frozen = isinstance(config.tuning, HeadOnly)
    several_epochs = config.trainer.get("max_epochs") != 1 and not config.compile
    layers = cacheable_layers(module.backbone) if several_epochs and not frozen else []
    if not (layers or frozen):
        return
    for runtime in module.runtimes:
        if isinstance(runtime.data, DataModule):
            runtime.activation_caches = {
                split: activation_cache_for(runtime.data, split, module.backbone, runtime.head, layers)
                for split in ("train", "validation")
            }


def _fit(trainer: pl.Trainer, module: GPTModule, data: Any, folder: Path, resume: str | None) -> None:
    """Train, from the latest checkpoint in ``folder`` where ``resume`` is set."""
    from gptask.training.trainer import gc_frozen

    checkpoint = None
    if resume:
        checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        if not checkpoints:
            raise UserError(f"{folder} has no checkpoint to go on from; start again without resume")
        checkpoint = str(checkpoints[-1])
        log.info("resuming from %s", checkpoint)
    try:
        with gc_frozen():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except SystemExit as stop:  # Lightning turns Ctrl-C into exit(1)
        raise KeyboardInterrupt(f"stopped at step {trainer.global_step}. {resume_hint(folder)}") from stop
    (folder / "checkpoints" / "interrupted.ckpt").unlink(missing_ok=True)


def _load_best(trainer: pl.Trainer, module: GPTModule) -> None:
    import torch

    callback: Any = trainer.checkpoint_callback
    if not callback or not callback.best_model_path:
        log.warning("no validation ran, so there is no best checkpoint: the last weights are kept and tested")
        return
    checkpoint = torch.load(callback.best_model_path, map_location=module.device, weights_only=True)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    module.set_tuned_options(checkpoint["tuned_options"])
    score = callback.best_model_score
    log.info("best checkpoint: %s (%s %.4f)", Path(callback.best_model_path).name, callback.monitor, float(score))


def _loaded_runs(folder: Path, module: GPTModule, config: Train) -> run.Runs:
    """Return the finished run as `gptask.load_runs` would load it."""
    runs = {}
    for runtime in module.runtimes:
        task_folder = folder / runtime.name if config.tasks else folder
        plugin, values = plugin_of(runtime.task), read_config(task_folder)
        runs[runtime.name] = run.Run(task_folder, plugin, runtime.task, module.backbone, runtime.head, values)
    return run.Runs(folder, runs)
