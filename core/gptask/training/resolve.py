"""Options that a config leaves open, chosen from its data, its backbone and its heads; each step returns a new config.

The steps are `prepare_tasks`, before the backbone is loaded; `resolve_options`, before anything is encoded; and
`resolve_schedule`, once the lengths of the training items are known. After them only validation chooses options.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gptask.config.schemas import DType, Evaluate, Full, Lora, Train
from gptask.data.corpus import CachedCorpus
from gptask.errors import UserError, aligned, listing
from gptask.model.text_task import WritingTask
from gptask.plugins.discovery import plugin_of
from gptask.plugins.task import Task, with_options
from gptask.plugins.types import Example
from gptask.training.builder import Config, option_prefix, task_configs, with_task_configs

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

log = logging.getLogger("gptask")
MIN_EPOCHS, MAX_EPOCHS = 2, 8
MIN_TOTAL_BATCHES = 400  # over all epochs; below it a training gets more than MIN_EPOCHS
SCRATCH_LR, PRETRAINED_LR = 1e-3, 5e-5  # learning rates of full tuning, for random weights and for pretrained ones
TOKENIZED_TOGETHER = 1000  # targets that the tokenizer gets at once
MAX_SHOWN = 48  # characters of a value in the log


@dataclass(frozen=True)
class ChosenOption:
    """An option that was left open: its name as on the command line, the value chosen for it, and why."""

    name: str
    value: Any
    reason: str


@dataclass
class Resolved:
    """A config with its options chosen, and the heads that some were chosen by, under the names of their tasks."""

    config: Train
    heads: dict[str, Head]
    chosen: list[ChosenOption]


def prepare_tasks(config: Config, corpora: Mapping[str, CachedCorpus]) -> tuple[Config, list[ChosenOption]]:
    """Return the config with the options that its tasks choose from all their training data, such as a label set.

    An evaluation without training data takes the split that it scores. The corpora check what they read from here on by
    these options.
    """
    tasks, all_chosen = {}, list[ChosenOption]()
    for name, task_config in task_configs(config).items():
        corpus, task = corpora[name], task_config.task
        split = config.split if isinstance(config, Evaluate) and corpus.split_source("train") is None else "train"
        options = prepared_options(task, corpus.all_rows(split))
        values = {option: (value, f"all {split} data") for option, value in options.items()}
        corpus.task, chosen = _with_values(task, f"{option_prefix(config, name)}task", values)
        tasks[name] = replace(task_config, task=corpus.task)
        all_chosen += chosen
    return with_task_configs(config, tasks), all_chosen


def prepared_options(task: Task, train: Iterable[Example]) -> dict[str, Any]:
    """Return the options that `Task.prepare` chooses; raises `UserError` if it returns anything else."""
    values: Any = task.prepare(train)
    names = [f.name for f in fields(task) if f.init]
    if isinstance(values, dict) and values.keys() <= set(names):
        return values
    problem = "no option of the task" if isinstance(values, dict) else "no dictionary"
    returned = listing(name for name in values if name not in names) if isinstance(values, dict) else repr(values)[:60]
    raise UserError(
        f"the plugin '{plugin_of(task).name}': {type(task).__name__}.prepare() returned {returned}, {problem}; it must "
        f"return the options that it chooses with their values, {{}} for none. There are {listing(names)}. "
        "The plugin's author must fix this"
    )


def resolve_data(config: Config, backbone: GPTBackbone) -> tuple[Config, list[ChosenOption]]:
    """Return the config with ``data.max_tokens`` within the backbone's context, and ``data.seed``."""
    tasks, all_chosen = {}, list[ChosenOption]()
    for name, task_config in task_configs(config).items():
        data, values = task_config.data, {}
        if data.max_tokens > backbone.context:
            values["max_tokens"] = (backbone.context, f"the backbone's context is shorter than {data.max_tokens}")
        if data.seed is None:
            values["seed"] = (config.seed, "the seed of the run")
        data, chosen = _with_values(data, f"{option_prefix(config, name)}data", values)
        tasks[name] = replace(task_config, data=data)
        all_chosen += chosen
    return with_task_configs(config, tasks), all_chosen


def resolve_options(config: Train, corpora: Mapping[str, CachedCorpus], backbone: GPTBackbone) -> Resolved:
    """Return the config with all options chosen that don't depend on the lengths of encoded items, and the heads.

    Full tuning, whose weights are float32, computes in bfloat16 where the processor does (mixed precision,
    Micikevicius et al. 2017, arXiv 1710.03740).
    """
    import torch

    from gptask.model.backbone.backbone import number_format

    config, all_chosen = resolve_data(config, backbone)
    if config.tuning is None:
        config = replace(config, tuning=Full())
        all_chosen.append(ChosenOption("tuning", "full", "random weights have to learn"))
    tasks, heads = {}, {}
    for name, task_config in task_configs(config).items():
        path, limit = f"{option_prefix(config, name)}task", task_config.data.max_tokens
        task, chosen = _with_max_new_tokens(task_config.task, path, corpora[name], backbone.tokenizer, limit)
        tasks[name], heads[name] = replace(task_config, task=task), cast("Head", task.head(backbone))
        all_chosen += chosen
    config = with_task_configs(config, tasks)
    tuning, chosen = _with_values(config.tuning, "tuning", _tuning_values(config.tuning, [*heads.values()], backbone))
    rate = {"lr": (tuning.lr, "tuning.lr")} if config.optimizer.lr is None else {}
    optimizer, chosen_rate = _with_values(config.optimizer, "optimizer", rate)
    precision = {}
    if isinstance(tuning, Full) and number_format(DType.auto) is torch.bfloat16:
        precision["precision"] = ("bf16-mixed", "the processor computes in bfloat16")
    trainer, chosen_precision = _with_trainer_values(config.trainer, precision)
    all_chosen += chosen + chosen_rate + chosen_precision
    return Resolved(replace(config, tuning=tuning, optimizer=optimizer, trainer=trainer), heads, all_chosen)


def _with_max_new_tokens(
    task: Task, path: str, corpus: CachedCorpus, tokenizer: Any, max_tokens: int
) -> tuple[Task, list[ChosenOption]]:
    """Return a task that writes with a limit on what it writes, from the lengths of its training targets."""
    if not isinstance(task, WritingTask) or task.generation.max_new_tokens is not None or not task.reserved_tokens():
        return task, []
    lengths = target_lengths(task, corpus.split("train"), tokenizer)
    if not len(lengths):
        return task, []
    limit = task.generation.covering_limit(lengths, max_tokens)
    values = {"max_new_tokens": (limit, "99 of 100 training targets, at most a quarter of data.max_tokens")}
    generation, chosen = _with_values(task.generation, f"{path}.generation", values)
    return with_options(task, {"generation": generation}), chosen


def target_lengths(task: Task, examples: Iterable[Example], tokenizer: Any) -> np.ndarray:
    """Return the lengths (N,) in tokens, with EOS, of the target texts of examples."""
    texts = (text for _, text in map(task.render, examples) if text is not None)
    lengths = list[int]()
    while batch := list(islice(texts, TOKENIZED_TOGETHER)):
        lengths += [len(ids) + 1 for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]]
    return np.array(lengths, dtype=int)


def _tuning_values(tuning: Any, heads: Sequence[Head], backbone: GPTBackbone) -> dict[str, tuple[Any, str]]:
    """Return learning rate and share of layers with adapters where the tuning leaves them open.

    With several heads: the largest adapter share, the lowest learning rate.
    """
    from gptask.model.backbone.tuning import scaled_lora_lr

    values: dict[str, tuple[Any, str]] = {}
    if isinstance(tuning, Full):
        scratch = backbone.origin.kind == "scratch"
        values["lr"] = (SCRATCH_LR, "random weights") if scratch else (PRETRAINED_LR, "pretrained weights")
    elif isinstance(tuning, Lora):
        family, channels, several = backbone.config.model_type, backbone.channels, len(heads) > 1
        rate = scaled_lora_lr(min(head.lora_lr for head in heads), family, channels)
        values["top"] = (
            max(head.lora_top_fraction for head in heads),
            "largest share that a head recommends" if several else "recommended by the head",
        )
        recommended = "lowest rate that a head recommends" if several else "recommended by the head"
        values["lr"] = (rate, f"{recommended}, for {family} with {channels} channels")
    return {name: choice for name, choice in values.items() if getattr(tuning, name) is None}


def resolve_schedule(config: Train, data: Any, processes: int = 1) -> tuple[Train, list[ChosenOption]]:
    """Return the config with epochs and batches per optimizer step, where it leaves these open.

    A small training set gets more epochs, from `MIN_EPOCHS` up to `MAX_EPOCHS`. Where long texts leave a batch few
    examples, an optimizer step takes several batches, `Task.examples_per_step` examples together: the gradient of one
    or two short answers is too noisy for LoRA's learning rates. With several tasks, the one with the fewest examples
    in a batch decides. Of several ``processes`` each takes its share of these batches.
    """
    try:
        batches = max(1, len(data.train_dataloader()))
        epochs_reason = f"{batches} batches per epoch"
    except TypeError:  # a plugin's stream
        batches, epochs_reason = MIN_TOTAL_BATCHES, "a stream of unknown length"
    epochs = max(MIN_EPOCHS, min(MAX_EPOCHS, -(-MIN_TOTAL_BATCHES // batches)))
    batches_per_step = _batches_per_step(data)
    reason = f"enough examples per optimizer step{f', in {processes} processes' if processes > 1 else ''}"
    values: dict[str, tuple[Any, str]] = {
        "accumulate_grad_batches": (max(1, round(batches_per_step / processes)), reason)
    }
    if config.trainer.get("max_steps") in (None, -1):
        values["max_epochs"] = (epochs, epochs_reason)
    trainer, chosen = _with_trainer_values(config.trainer, values)
    if processes > 1:
        given = config.trainer.get("accumulate_grad_batches")
        _log_batches_per_step(config, trainer["accumulate_grad_batches"], processes, given or batches_per_step)
    return replace(config, trainer=trainer), chosen


def _log_batches_per_step(config: Train, accumulate: int, processes: int, in_one_process: int) -> None:
    """Say by how much an optimizer step of several processes differs from that of one, and what keeps it the same."""
    if accumulate * processes == in_one_process:
        return
    options = {"trainer.accumulate_grad_batches": in_one_process // processes}
    if in_one_process % processes:  # more batches, of fewer examples
        options = {f"data.{name}": getattr(config.data, name) // processes for name in ("batch_size", "batch_tokens")}
        options["trainer.accumulate_grad_batches"] = in_one_process
    log.warning(
        "an optimizer step takes %d batches (%d processes with trainer.accumulate_grad_batches=%d), %g times as many "
        "as in one process; %s keeps its size, or nearly", accumulate * processes, processes, accumulate,
        accumulate * processes / in_one_process, " ".join(f"{name}={value}" for name, value in options.items()),
    )  # fmt: skip


def _batches_per_step(data: Any) -> int:
    """Batches that together have about `Task.examples_per_step` examples; 1 for a plugin's own data module."""
    from gptask.data.datamodule import DataModule
    from gptask.data.mixture import Mixture

    if isinstance(data, Mixture):
        return max(map(_batches_per_step, data.modules.values()))
    if not isinstance(data, DataModule):
        return 1
    batches_per_example = max(1, len(data.train_dataloader())) / max(1, len(data.items("train")))
    return max(1, round(data.task.examples_per_step * batches_per_example))


def _with_values(options: Any, path: str, values: dict[str, tuple[Any, str]]) -> tuple[Any, list[ChosenOption]]:
    """Return a copy of a group of options with ``values``, each given with its reason, and those that are new."""
    chosen = {name: choice for name, choice in values.items() if getattr(options, name) != choice[0]}
    new_values = {name: value for name, (value, _) in chosen.items()}
    copy = with_options(options, new_values) if isinstance(options, Task) else replace(options, **new_values)
    return copy, [ChosenOption(f"{path}.{name}", *choice) for name, choice in chosen.items()]


def _with_trainer_values(
    options: dict[str, Any], values: dict[str, tuple[Any, str]]
) -> tuple[dict[str, Any], list[ChosenOption]]:
    """Return the trainer's options with those of ``values`` that are open."""
    chosen = {name: choice for name, choice in values.items() if options.get(name) is None}
    copy = options | {name: value for name, (value, _) in chosen.items()}
    return copy, [ChosenOption(f"trainer.{name}", *choice) for name, choice in chosen.items()]


def log_chosen(chosen: Sequence[ChosenOption]) -> None:
    """Log one table of the options that were chosen, if there are any."""
    if not chosen:
        return
    rows = [("option", "value", "why"), *((one.name, _shown(one.value), one.reason) for one in chosen)]
    log.info("%s", "\n  ".join(["Chosen for this data:", *aligned(rows, left=3)]))


def _shown(value: Any) -> str:
    """A value about as on the command line, cut to `MAX_SHOWN` characters."""
    if isinstance(value, list | tuple):
        text = f"[{', '.join(map(_shown, value))}]"
    elif isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    else:
        text = value.name if isinstance(value, Enum) else str(value).replace("\n", "\\n")
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
