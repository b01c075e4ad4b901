"""`gptask evaluate`: score a run folder or the bare backbone on a split, without training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.config.conversion import from_plain, validated_copy
from gptask.config.engine import OpenVino, refuse_openvino
from gptask.config.schemas import DType, Evaluate
from gptask.config.trainer_options import check_trainer_options
from gptask.data.corpus import CachedCorpus, count_overlap
from gptask.data.label_report import log_labels
from gptask.errors import UserError, listing
from gptask.model.backbone.quantizing import require_int4
from gptask.plugins.task import Task
from gptask.plugins.text_tokenizer import text_tokenizer
from gptask.runs import run
from gptask.runs.config_file import read_config
from gptask.runs.folder import is_main_process, open_run_folder, refuse_multitask, run_title
from gptask.runs.manifest import read_splits
from gptask.runs.openvino_model import require_openvino
from gptask.runs.saved_model import locate_backbone
from gptask.training import builder
from gptask.training.context import RunContext
from gptask.training.fingerprint import run_fingerprint
from gptask.training.interrupts import interruptible, interrupts_of_lightning
from gptask.training.process_watch import watched
from gptask.training.resolve import ChosenOption, log_chosen, prepare_tasks, resolve_data
from gptask.training.results import write_results

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone

log = logging.getLogger("gptask")


def evaluate(config: Evaluate, command: str | None = None) -> Path:
    """Evaluate from a config, which is not changed; return the new run folder, which names its parent.

    ``command`` is the command line that the config comes from, if any. An evaluation of a run is cut and limited by the
    run's seeds. Raises `UserError` for whatever the user can fix.
    """
    config = validated_copy(_with_values_of_run(config) if config.run else config)
    check_trainer_options(config.trainer)
    if isinstance(config.engine, OpenVino):
        if not config.run:
            refuse_openvino(config.engine, "an evaluation of the bare backbone (run=null)")
        require_openvino(config.dtype)
    elif config.dtype is DType.int4:
        require_int4()
    if config.run and config.shots:
        raise UserError("shots=k is for the bare backbone (run=null); a fine-tuned run has learned its task")
    if not config.run and not config.allow_overlap:
        raise UserError("allow_overlap=false is about what a run was trained on: set run=<run folder>, or leave it out")
    corpora = builder.build_corpora(config)
    fingerprint = run_fingerprint(config, corpora)
    with interruptible(), watched(), open_run_folder(config.outputs, run_title(config), config.folder) as folder:
        _evaluate(RunContext(config, command, corpora, fingerprint, folder, extra={"parent": config.run}))
    return folder


def _with_values_of_run(config: Evaluate) -> Evaluate:
    """The config with its run's backbone, and its seeds: another cut would test what it was trained or selected on.

    Raises `UserError` for another ``data.seed``, which would have no effect.
    """
    values = read_config(str(config.run))
    refuse_multitask(str(config.run), values)
    seed = values["seed"]
    data_seed = seed if (saved := values["data"].get("seed")) is None else saved
    if config.data.seed not in (None, data_seed):
        raise UserError(
            f"data.seed={config.data.seed}: {config.run} is evaluated with its own, {data_seed}, since another cut "
            "would test examples that it was trained on; leave data.seed out, or name a test file (data.test)"
        )
    if config.seed != seed:
        log.warning("seed=%s has no effect: %s is evaluated with its own, %s", config.seed, config.run, seed)
    backbone = config.backbone or from_plain("backbone", values["backbone"])
    return replace(config, backbone=backbone, seed=seed, data=replace(config.data, seed=data_seed))


def _check_overlap(config: Evaluate, corpus: CachedCorpus) -> None:
    """Warn of examples that the run was trained or selected on, or refuse them where the config says so."""
    digests, splits = corpus.split(config.split).digests, read_splits(str(config.run))
    overlap = {name: count for name, count in count_overlap(digests, splits).items() if count}
    counts = [f"{count} occur in its {name} data" for name, count in overlap.items()]
    if not config.allow_overlap and (counts or not splits):
        problem = f"of {len(digests)} {config.split} inputs, {listing(counts)}" if counts else "it keeps no digests"
        raise UserError(f"allow_overlap=false: {config.run}: {problem}. Name other data, such as data.test=<file>")
    for name, count in overlap.items():
        known = name == config.split  # asked for by name
        log.log(
            logging.INFO if known else logging.WARNING,
            "%d of %d %s inputs also occur in the %s data of %s%s",
            count, len(digests), config.split, name, config.run, "" if known else ": the scores are too high",
        )  # fmt: skip


def _evaluate(context: RunContext[Evaluate]) -> None:
    config = context.config
    ((name, corpus),) = context.corpora.items()
    corpus.split(config.split)  # a missing split is an error before a model is loaded
    if config.run:
        _check_overlap(config, corpus)
    given_task = config.task
    chosen: list[ChosenOption] = []
    if config.run:
        trained_run = run.load_run(config.run, config.task, config.dtype, config.engine)
        backbone, head = trained_run.backbone, trained_run.head
    else:
        config, chosen, backbone = _bare_backbone(config, context.corpora)
        head = config.task.head(backbone)
    config, chosen_data = resolve_data(config, backbone)
    if is_main_process():
        log_labels(given_task, corpus, [config.split])
    log_chosen([*chosen, *chosen_data])
    log.info("%s", backbone.engine.summary())

    from gptask.training.module import GPTModule
    from gptask.training.process_start import start_processes
    from gptask.training.task_runtime import TaskRuntime
    from gptask.training.trainer import build_trainer

    task: Task = copy(config.task)
    task.demonstrations = demonstrations(task, corpus, config.shots, config.seed, backbone.tokenizer)  # type: ignore[misc]
    data = builder.build_data(task, corpus, config.data, backbone, config.seed)
    runtime = TaskRuntime(name, task, head, data)
    module = GPTModule(backbone, [runtime]).requires_grad_(False)
    trainer = build_trainer(context.folder, config.trainer, logger=False)
    start_processes(trainer)
    data.trainer = trainer  # which tells the rank of this process
    with interrupts_of_lightning():
        trainer.test(module, dataloaders=data.eval_dataloader(config.split), verbose=False)
    if is_main_process():
        context = replace(context, config=config)
        context.write_config()
        write_results(context, module, runtime, config.split)


def _bare_backbone(
    config: Evaluate, corpora: Mapping[str, CachedCorpus]
) -> tuple[Evaluate, list[ChosenOption], GPTBackbone]:
    """The config with what its task chooses from the data, what that is, and the backbone that no run has tuned."""
    from gptask.model.backbone.backbone import load_or_build_backbone

    origin, ((_, corpus),) = locate_backbone(config.backbone), corpora.items()
    config, chosen = prepare_tasks(config, corpora)
    texts = partial(builder.training_texts, corpus.task, corpus)
    return config, chosen, load_or_build_backbone(config.backbone, origin, texts, config.engine, config.dtype)


def demonstrations(task: Task, corpus: CachedCorpus, shots: int, seed: int, tokenizer: Any) -> str:
    """``shots`` solved training examples as text, drawn by the seed; control strings of the data are marked as such."""
    if shots < 0:
        raise UserError(f"shots={shots} must be 0 or more")
    if not shots:
        return ""
    examples, mark = corpus.split("train"), text_tokenizer(tokenizer).mark
    drawn_rows = np.random.default_rng(seed).permutation(len(examples))[:shots]
    return "".join(f"{task.demonstrate(mark(examples[row]))}\n\n" for row in drawn_rows)
