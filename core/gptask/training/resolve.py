"""Options that a training config leaves open, chosen from its data, its backbone and its heads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptask.config.schemas import DType, Full, HeadOnly, Lora

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

log = logging.getLogger("gptask")
MIN_EPOCHS, MAX_EPOCHS = 2, 8
MIN_TOTAL_BATCHES = 400  # over all epochs; below it a training gets more than MIN_EPOCHS
SCRATCH_LR, PRETRAINED_LR = 1e-3, 5e-5  # learning rates of full tuning, for random weights and for pretrained ones


def resolve_tuning(tuning: Lora | Full | HeadOnly, heads: Sequence[Head], backbone: GPTBackbone) -> None:
    """Fill in the learning rate and the share of layers with adapters where the config leaves them open.

    With several heads: the largest adapter share, the lowest learning rate.
    """
    from gptask.model.backbone.tuning import scaled_lora_lr

    if isinstance(tuning, Full) and tuning.lr is None:
        tuning.lr = SCRATCH_LR if backbone.origin.kind == "scratch" else PRETRAINED_LR
    if not isinstance(tuning, Lora):
        return
    if tuning.top is None:
        tuning.top = max(head.lora_top_fraction for head in heads)
    if tuning.lr is None:
        family = backbone.config.model_type
        tuning.lr = scaled_lora_lr(min(head.lora_lr for head in heads), family, backbone.channels)


def resolve_schedule(options: dict[str, Any], data: Any, full: bool = False) -> dict[str, Any]:
    """Return the trainer's ``options`` with epochs and batches per optimizer step, where they leave these open.

    A small training set gets more epochs, from `MIN_EPOCHS` up to `MAX_EPOCHS`. Where long texts leave a batch few
    examples, an optimizer step takes several batches, `Task.examples_per_step` examples together: the gradient of one
    or two short answers is too noisy for LoRA's learning rates. With several tasks, the one with the fewest examples
    in a batch decides. ``full`` tuning, whose weights are float32, computes in bfloat16 where the processor does
    (mixed precision, Micikevicius et al. 2017, arXiv 1710.03740).
    """
    import torch

    from gptask.model.backbone.backbone import number_format

    try:
        batches = max(1, len(data.train_dataloader()))
        epochs_reason = f"{batches} batches per epoch"
    except TypeError:  # a plugin's stream
        batches, epochs_reason = MIN_TOTAL_BATCHES, "a stream of unknown length"
    epochs = max(MIN_EPOCHS, min(MAX_EPOCHS, -(-MIN_TOTAL_BATCHES // batches)))
    chosen: dict[str, tuple[int | str, str]] = {
        "accumulate_grad_batches": (_batches_per_step(data), "enough examples per optimizer step")
    }
    if options.get("max_steps") in (None, -1):
        chosen["max_epochs"] = (epochs, epochs_reason)
    if full and number_format(DType.auto) is torch.bfloat16:
        chosen["precision"] = ("bf16-mixed", "the processor computes in bfloat16")
    chosen = {name: choice for name, choice in chosen.items() if options.get(name) is None}
    if chosen:
        choices = [f"trainer.{name}={value} ({reason})" for name, (value, reason) in chosen.items()]
        log.info("chosen for this data: %s", ", ".join(choices))
    return options | {name: value for name, (value, _) in chosen.items()}


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
