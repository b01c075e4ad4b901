"""`gptask train`: fine-tune, keep the checkpoint that is best on validation, test that one."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import to_plain, validated_config
from gptask.config.schemas import DType, Full, Lora, TaskConfig, Train
from gptask.config.schemas import HeadOnly as FrozenTuning
from gptask.config.trainer_options import check_trainer_options
from gptask.data.cache import digest
from gptask.errors import UserError, listing
from gptask.plugins.discovery import plugin_of
from gptask.runs import run, saved_model
from gptask.runs.config_file import read_config, write_config
from gptask.runs.folder import main_process, resume_hint, run_folder, run_title
from gptask.runs.reproduce import reproduce_command
from gptask.runs.saved_model import locate_backbone
from gptask.training import builder, loggers
from gptask.training.fingerprint import run_fingerprint
from gptask.training.results import write_multitask_results, write_results
from gptask.training.task_runtime import TaskRuntime

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from gptask.data.corpus import CachedCorpus
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head
    from gptask.training.module import GPTModule

log = logging.getLogger("gptask")
MIN_TOTAL_BATCHES = 400  # in all, below which a training set is gone through more often than LEAST times
MIN_EPOCHS, MAX_EPOCHS = 2, 8  # epochs
FULL_PRECISIONS = ("32-true", "32", 32)  # precisions that leave weights and states as the backbone has them
SCRATCH_LR, PRETRAINED_LR = 1e-3, 5e-5  # learning rates of weights that start anywhere, and of those that have learned


def train(config: Train, callbacks: Sequence[pl.Callback] = ()) -> run.Run:
    """Run a training of one task from a config, which is not changed; return the run with its best model loaded.

    ``callbacks`` of Lightning's watch it beside our own; what they raise ends it.
    Raises `UserError` for whatever the user can mend.
    """
    if config.tasks:
        raise UserError(f"train() takes one task and got {listing(config.tasks)}: gptask.train_tasks trains them")
    (one,) = train_tasks(config, callbacks).tasks.values()
    return one


def train_tasks(config: Train, callbacks: Sequence[pl.Callback] = ()) -> run.Runs:
    """`train` for any number of tasks: one backbone, whose tuning they share, and a head each."""
    config = validated_config(config)
    check_trainer_options(config.trainer)
    loggers.require_logger(config.logger)
    corpora = builder.build_corpora(config)
    job = run_fingerprint(config, corpora)  # of the config as given: the training settles what that left open
    with run_folder(config.outputs, run_title(config), config.folder, config.resume) as folder:
        return _train(config, corpora, folder, job, callbacks)


def build_module(config: Train, corpora: dict[str, CachedCorpus]) -> tuple[GPTModule, Any]:
    """The module to train and its data module; nothing is written yet."""
    origin = locate_backbone(config.backbone)
    members = builder.task_configs(config)
    for name, corpus in corpora.items():
        members[name].task.prepare(corpus.whole("train"))
        corpus.warn_overlap()

    import pytorch_lightning as pl

    from gptask.data.mixture import Mixture
    from gptask.model.backbone import backbone as backbones
    from gptask.model.backbone import tuning
    from gptask.training.module import GPTModule

    pl.seed_everything(config.seed, workers=True, verbose=False)
    texts = [partial(builder.training_texts, members[name].task, corpus) for name, corpus in corpora.items()]
    backbone = backbones.load_backbone_from(
        config.backbone, origin, lambda: chain.from_iterable(text() for text in texts)
    )
    seats = [_seat(config, name, member, corpora[name], backbone) for name, member in members.items()]
    tuning.drop_upper_layers(backbone, config.tuning)
    _resolve_tuning(config.tuning, [seat.head for seat in seats], backbone)
    backbone.peft = tuning.apply_tuning(backbone.peft, config.tuning)
    if config.compile:
        backbone.compile()
        for seat in seats:
            seat.data.shares = False
    optimizer = config.optimizer
    if optimizer.lr is None:
        optimizer = replace(optimizer, lr=config.tuning.lr)
    module = GPTModule(backbone, seats, optimizer, config.schedule)
    if origin:
        _keep_states(module, config)
    if not config.tasks:
        return module, seats[0].data
    return module, Mixture({seat.name: seat.data for seat in seats}, config.mixing, config.seed)


def _seat(config: Train, name: str, member: TaskConfig, corpus: CachedCorpus, backbone: GPTBackbone) -> TaskRuntime:
    from gptask.data.datamodule import DataModule
    from gptask.model.heads import GenerationHead

    parts = builder.build_parts(member.task, corpus, member.data, backbone, config.seed)
    if isinstance(parts.head, GenerationHead) and isinstance(parts.data, DataModule):
        parts.head.options.resolve_max_new_tokens(parts.data.items("train").lengths("target"), member.data.max_tokens)
    return TaskRuntime(name, parts.task, parts.head, parts.data, member.weight, alone=not config.tasks)


def _keep_states(module: GPTModule, config: Train) -> None:
    """Let states that are the same in every epoch be read from disk, where the data is core's."""
    from gptask.data.datamodule import DataModule
    from gptask.model.engine.activation_cache import activation_cache_for, cacheable_layers

    if config.trainer.get("precision") not in (None, *FULL_PRECISIONS):
        return  # the states would be those of another number format
    frozen = isinstance(config.tuning, FrozenTuning)
    again = config.trainer.get("max_epochs") != 1 and not config.compile
    lower = cacheable_layers(module.backbone) if again and not frozen else []
    if not (lower or frozen):
        return
    for seat in module.seats:
        if isinstance(seat.data, DataModule):
            splits = ("train", "validation")
            seat.states = {s: activation_cache_for(seat.data, s, module.backbone, seat.head, lower) for s in splits}


def _resolve_tuning(options: Any, heads: Sequence[Head], backbone: GPTBackbone) -> None:
    """Fill in what the config left to the model and to the heads: of several, the deepest and the most careful one."""
    from gptask.model.backbone.tuning import scaled_lora_lr

    if isinstance(options, Full) and options.lr is None:
        options.lr = SCRATCH_LR if backbone.origin.kind == "scratch" else PRETRAINED_LR
    if not isinstance(options, Lora):
        return
    options.top = max(head.lora_top_fraction for head in heads) if options.top is None else options.top
    if options.lr is None:
        family = backbone.config.model_type
        options.lr = scaled_lora_lr(min(head.lora_lr for head in heads), family, backbone.channels)


def _train(
    config: Train, corpora: dict[str, CachedCorpus], folder: Path, job: str, callbacks: Sequence[pl.Callback]
) -> run.Runs:
    started = time.time()
    module, data = build_module(config, corpora)
    config.trainer = resolve_schedule(config.trainer, data, full=isinstance(config.tuning, Full))
    writing = main_process()
    trainer = _trainer(config, folder, callbacks)
    with loggers.tracked(trainer, config, folder):
        if writing:
            write_config(folder, config)
        if config.probe and writing and not config.resume:
            from gptask.training.cost_probe import probe_cost

            probe_cost(module, trainer, data.passes() if config.tasks else (1.0,))
        _fit(trainer, module, data, folder, config.resume)
        _load_best(trainer, module)
        if writing:
            write_config(folder, config, adjusted=module.tuned_options)  # with what validation chose
            heads = {seat.name if config.tasks else "": seat.head for seat in module.seats}
            saved_model.save_model(folder, module.backbone, heads, config.tuning)
        fit_seconds = time.time() - started
        trainer.test(module, datamodule=data, verbose=False)
        if writing:
            _finish(folder, module, config, started, fit_seconds, job)
    module.eval()
    return _loaded(folder, module, config)


def _finish(folder: Path, module: GPTModule, config: Train, started: float, fit_seconds: float, job: str) -> None:
    """Write the test's results; each of several tasks has a run folder of its own within the run's."""
    if not config.tasks:
        write_results(folder, module, module.seats[0], "test", config, started, fit_seconds, job)
        return
    said: dict[str, Any] = {"command": reproduce_command(read_config(folder)), "together": _together_with(config)}
    results = {}
    for seat in module.seats:
        place, alone = folder / seat.name, single_task_config(config, seat.name)
        place.mkdir(exist_ok=True)
        write_config(place, alone, member=seat.name, adjusted=seat.tuned_options, **said)
        results[seat.name] = write_results(place, module, seat, "test", alone, started, fit_seconds, job)
    write_multitask_results(folder, module, config, started, fit_seconds, job, results)


def _together_with(config: Train) -> dict[str, Any]:
    """What tells a task's training from one among other tasks, or with other shares."""
    plain = {name: value for name, value in to_plain(config).items() if name in ("tasks", "mixing")}
    names = {name: plugin_of(member.task).name for name, member in config.tasks.items()}
    return {"tasks": names, "mixing": plain["mixing"], "digest": digest(json.dumps(plain, default=str))}


def single_task_config(config: Train, name: str) -> Train:
    """The config of one of several tasks."""
    return replace(config, task=config.tasks[name].task, data=config.tasks[name].data, tasks={})


def _loaded(folder: Path, module: GPTModule, config: Train) -> run.Runs:
    """The run in memory, as `gptask.load_runs` would have it."""
    runs = {}
    for seat in module.seats:
        place = folder / seat.name if config.tasks else folder
        plugin, values = plugin_of(seat.task), read_config(place)
        runs[seat.name] = run.Run(place, plugin, seat.task, module.backbone, seat.head, values)
    return run.Runs(folder, runs)


def resolve_schedule(options: dict[str, Any], data: Any, full: bool = False) -> dict[str, Any]:
    """What the trainer's ``options`` leave open: epochs, batches per optimizer step, and for ``full`` tuning, whose
    weights are float32, bfloat16 to compute in where the processor does (Micikevicius et al. 2017, arXiv 1710.03740).

    Few batches are gone through more often, `MIN_EPOCHS` to `MAX_EPOCHS` times. Where long texts leave a batch few examples, a
    step takes several batches, `Task.examples_per_step` together: the gradient of one or two short answers is too noisy
    for LoRA's learning rates. Of several tasks the one with the fewest examples in a batch decides.
    """
    import torch

    from gptask.model.backbone.backbone import number_format

    try:
        batches = max(1, len(data.train_dataloader()))
    except TypeError:  # a plugin's stream, of no known length
        batches = MIN_TOTAL_BATCHES
    epochs = max(MIN_EPOCHS, min(MAX_EPOCHS, -(-MIN_TOTAL_BATCHES // batches)))
    found: dict[str, Any] = {"accumulate_grad_batches": _together(data), "max_epochs": epochs}
    if options.get("max_steps") not in (None, -1):
        del found["max_epochs"]
    if full and number_format(DType.auto) is torch.bfloat16:
        found["precision"] = "bf16-mixed"
    found = {name: value for name, value in found.items() if options.get(name) is None}
    if found:
        log.info("left open and settled: %s", ", ".join(f"trainer.{name}={found[name]}" for name in found))
    return options | found


def _together(data: Any) -> int:
    """Batches that a step of the optimizer takes."""
    from gptask.data.datamodule import DataModule
    from gptask.data.mixture import Mixture

    if isinstance(data, Mixture):
        return max(map(_together, data.modules.values()))
    if not isinstance(data, DataModule):
        return 1
    per_example = max(1, len(data.train_dataloader())) / max(1, len(data.items("train")))
    return max(1, round(data.task.examples_per_step * per_example))


def monitor(config: Train) -> tuple[str, str]:
    """What validation is judged by: the logged name, and whether its ``max`` or ``min`` is best."""
    best = config.mixing.best if config.tasks else None
    if config.tasks and best is None:
        return "val/score", "max"
    main = (config.tasks[best].task if best else config.task).metrics()[0]
    return f"val/{best}/{main.name}" if best else f"val/{main.name}", "max" if main.higher_is_better else "min"


def _trainer(config: Train, folder: Path, watching: Sequence[pl.Callback]) -> pl.Trainer:
    """The Lightning trainer with checkpoints, early stopping, progress and loggers."""
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

    from gptask.training.callbacks import SaveOnInterrupt, progress_bar
    from gptask.training.trainer import BestCheckpoint, build_trainer

    watched: dict[str, Any] = dict(zip(("monitor", "mode"), monitor(config), strict=True))
    checkpoints = folder / "checkpoints"
    callbacks: list[pl.Callback] = [
        BestCheckpoint(checkpoints, "best-{epoch}-{step}", enable_version_counter=False, **watched),
        ModelCheckpoint(checkpoints, "last", enable_version_counter=False, every_n_epochs=1),  # for resume
        SaveOnInterrupt(checkpoints / "interrupted.ckpt"),
        progress_bar(),
        *watching,
    ]
    stopping = config.early_stopping
    if stopping.patience is not None:
        callbacks.append(EarlyStopping(patience=stopping.patience, min_delta=stopping.min_delta, **watched))
    trainer = build_trainer(folder, config.trainer, logger=loggers.csv_logger(folder), callbacks=callbacks)
    if config.tasks and trainer.world_size > 1:
        raise UserError(f"several tasks train in one process, not in {trainer.world_size}: set trainer.devices=1")
    return trainer


def _fit(trainer: pl.Trainer, module: GPTModule, data: Any, folder: Path, resume: str | None) -> None:
    from gptask.training.trainer import gc_frozen

    checkpoint = None
    if resume:
        found = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"{folder} has no checkpoint to go on from; start again without resume")
        checkpoint = str(found[-1])
        log.info("going on from %s", checkpoint)
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
    best = torch.load(callback.best_model_path, map_location=module.device, weights_only=True)
    module.load_state_dict(best["state_dict"], strict=False)
    module.set_tuned_options(best["adjusted"])
    score = callback.best_model_score
    log.info("best checkpoint: %s (%s %.4f)", Path(callback.best_model_path).name, callback.monitor, float(score))
