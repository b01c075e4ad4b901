"""`gptask train`: fine-tune, keep the checkpoint that is best on validation, test that one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask import assembly, loggers, run, saved_model
from gptask.backbone.source import locate
from gptask.config import Full, Lora, Train, checked
from gptask.config import Head as FrozenTuning
from gptask.errors import UserError
from gptask.job import identity
from gptask.results import finish
from gptask.trainer_options import check

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from gptask.backbone.model import Backbone
    from gptask.data.corpus import Corpus
    from gptask.heads import Head
    from gptask.module import GPTModule

log = logging.getLogger("gptask")
BATCHES = 400  # in all, below which a training set is gone through more often than LEAST times
LEAST, MOST = 2, 8  # epochs
RANDOM, LEARNED = 1e-3, 5e-5  # learning rates of weights that start anywhere, and of those that have learned


def train(config: Train, callbacks: Sequence[pl.Callback] = ()) -> run.Run:
    """Run a training from a config, which is not changed; return the run with its best model loaded.

    ``callbacks`` of Lightning's watch it beside our own; what they raise ends it.
    Raises `UserError` for whatever the user can mend.
    """
    config = checked(config)
    check(config.trainer)
    loggers.require(config.logger)
    plugin = run.plugin_of(config.task)
    corpus = assembly.corpus(config.task, config.data, config.seed)
    corpus.require("train")
    job = identity(config, corpus)  # of the config as given: the training settles what that left open
    with run.folder_for(config.outputs, plugin.name, config.folder, config.resume) as folder:
        return _train(config, plugin, corpus, folder, job, callbacks)


def assemble(config: Train, corpus: Corpus) -> tuple[GPTModule, Any]:
    """The module to train and its data module; nothing is written yet."""
    origin = locate(config.backbone)
    config.task.prepare(corpus.whole("train"))
    corpus.warn_overlap()

    import pytorch_lightning as pl

    from gptask.backbone import model as backbones
    from gptask.backbone import tuning
    from gptask.data.module import DataModule
    from gptask.module import GPTModule
    from gptask.states import states_of

    pl.seed_everything(config.seed, workers=True, verbose=False)
    backbone = backbones.load(config.backbone, origin, lambda: assembly.texts(config.task, corpus))
    parts = assembly.parts(config.task, corpus, config.data, backbone, config.seed)
    _settle(config.tuning, parts.head, backbone)
    backbone.peft = tuning.apply(backbone.peft, config.tuning)
    if config.compile:
        backbone.compile()
        parts.data.shares = False
    optimizer = config.optimizer
    if optimizer.lr is None:
        optimizer = replace(optimizer, lr=config.tuning.lr)
    module = GPTModule(config.task, backbone, parts.head, optimizer, config.schedule)
    if isinstance(config.tuning, FrozenTuning) and origin and isinstance(parts.data, DataModule):
        module.states = {s: states_of(parts.data, s, backbone, parts.head) for s in ("train", "validation")}
    return module, parts.data


def _settle(options: Any, head: Head, backbone: Backbone) -> None:
    """Fill in what the config left to the task's head and the model."""
    from gptask.backbone.tuning import rate

    if isinstance(options, Full) and options.lr is None:
        options.lr = RANDOM if backbone.origin.kind == "scratch" else LEARNED
    if not isinstance(options, Lora):
        return
    options.top = head.depth if options.top is None else options.top
    if options.lr is None:
        options.lr = rate(head.lora_lr, backbone.model.config.get_text_config().model_type, backbone.channels)


def _train(
    config: Train, plugin: run.Plugin, corpus: Corpus, folder: Path, job: str, callbacks: Sequence[pl.Callback]
) -> run.Run:
    started = time.time()
    module, data = assemble(config, corpus)
    config.trainer = pace(config.trainer, data)
    writing = run.main_process()
    trainer = _trainer(config, folder, callbacks)
    with loggers.tracked(trainer, config, folder):
        if writing:
            run.write_config(folder, config, plugin)
        if config.probe and writing and not config.resume:
            from gptask.probe import probe

            probe(module, data, trainer)
        _fit(trainer, module, data, folder, config.resume)
        _load_best(trainer, module)
        if writing:
            run.write_config(folder, config, plugin, adjusted=module.adjusted)  # with what validation chose
            saved_model.save_model(folder, module.backbone, module.head, config.tuning)
        fit_seconds = time.time() - started
        trainer.test(module, datamodule=data, verbose=False)
        if writing:
            finish(folder, plugin, module, data, "test", config, started, fit_seconds, job)
    module.eval()
    return run.Run(folder, plugin, config.task, module.backbone, module.head, run.read_config(folder))


def pace(options: dict[str, Any], data: Any) -> dict[str, Any]:
    """What the trainer's ``options`` leave open: epochs, and batches per optimizer step.

    Few batches are gone through more often, `LEAST` to `MOST` times. Where long texts leave a batch few examples, a
    step takes several batches, `Task.examples_per_step` together: the gradient of one or two short answers is too noisy
    for LoRA's learning rates.
    """
    from gptask.data.module import DataModule

    found = {"accumulate_grad_batches": 1}
    try:
        batches = max(1, len(data.train_dataloader()))
    except TypeError:  # a plugin's stream, of no known length
        batches = BATCHES
    found["max_epochs"] = max(LEAST, min(MOST, -(-BATCHES // batches)))
    if isinstance(data, DataModule):
        found["accumulate_grad_batches"] = max(
            1, round(data.task.examples_per_step * batches / max(1, len(data.items("train"))))
        )
    if options.get("max_steps") not in (None, -1):
        del found["max_epochs"]
    found = {name: value for name, value in found.items() if options.get(name) is None}
    if found:
        log.info("left open and settled: %s", ", ".join(f"trainer.{name}={found[name]}" for name in found))
    return options | found


def _trainer(config: Train, folder: Path, watching: Sequence[pl.Callback]) -> pl.Trainer:
    """The Lightning trainer with checkpoints, early stopping, progress and loggers."""
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

    from gptask.lightning import trainer_for
    from gptask.progress import Interrupted, progress_bar

    main = config.task.metrics()[0]
    monitor: dict[str, Any] = {
        "monitor": f"val/{main.name}",
        "mode": "max" if main.higher_is_better else "min",
    }
    checkpoints = folder / "checkpoints"
    callbacks: list[pl.Callback] = [
        ModelCheckpoint(checkpoints, "best-{epoch}-{step}", enable_version_counter=False, **monitor),
        ModelCheckpoint(checkpoints, "last", enable_version_counter=False, every_n_epochs=1),  # for resume
        Interrupted(checkpoints / "interrupted.ckpt"),
        progress_bar(),
        *watching,
    ]
    stopping = config.early_stopping
    if stopping.patience is not None:
        callbacks.append(EarlyStopping(patience=stopping.patience, min_delta=stopping.min_delta, **monitor))
    return trainer_for(folder, config.trainer, logger=loggers.csv(folder), callbacks=callbacks)


def _fit(trainer: pl.Trainer, module: GPTModule, data: Any, folder: Path, resume: str | None) -> None:
    checkpoint = None
    if resume:
        found = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"{folder} has no checkpoint to go on from; start again without resume")
        checkpoint = str(found[-1])
        log.info("going on from %s", checkpoint)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except SystemExit as stop:  # Lightning turns Ctrl-C into exit(1)
        raise KeyboardInterrupt(f"stopped at step {trainer.global_step}. {run.kept(folder)}") from stop
    (folder / "checkpoints" / "interrupted.ckpt").unlink(missing_ok=True)


def _load_best(trainer: pl.Trainer, module: GPTModule) -> None:
    import torch

    callback: Any = trainer.checkpoint_callback
    if not callback or not callback.best_model_path:
        log.warning("no validation ran, so there is no best checkpoint: the last weights are kept and tested")
        return
    best = torch.load(callback.best_model_path, map_location=module.device, weights_only=True)
    module.load_state_dict(best["state_dict"], strict=False)
    module.adjust(best["adjusted"])
    score = callback.best_model_score
    log.info("best checkpoint: %s (%s %.4f)", Path(callback.best_model_path).name, callback.monitor, float(score))
