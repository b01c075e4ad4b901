"""Chooses which weights of a backbone learn."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from gptask.config.schemas import Full, HeadOnly, Lora
from gptask.errors import UserError, listing, nearest

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone

log = logging.getLogger("gptask")
LLAMA_EXPONENT, OTHER_EXPONENT = 0.781, 0.0775  # how fast the best LoRA rate falls with the channels; other: Qwen's
REFERENCE_CHANNELS = 576  # channels of SmolLM2-135M, a Llama, on which the heads' rates were tuned


def scaled_lora_lr(lr: float, family: str, channels: int) -> float:
    """Scale a head's LoRA learning rate to a model of another family or width; the result is lower, never higher.

    The best rate goes with ``(2000 / channels) ** exponent`` (Schulman et al. 2025, "LoRA Without Regret"). Families
    that were not studied there take the exponent that gives small models the lower rate.
    """
    best_rate = (2000 / channels) ** (LLAMA_EXPONENT if family == "llama" else OTHER_EXPONENT)
    reference_rate = (2000 / REFERENCE_CHANNELS) ** LLAMA_EXPONENT
    return float(f"{lr * min(1.0, best_rate / reference_rate):.2g}")


def drop_upper_layers(backbone: GPTBackbone, tuning: Lora | Full | HeadOnly) -> None:
    """Drop the layers above the share ``tuning.layers``, if the tuning has it.

    Raises `UserError` for a share out of range, and for a model that needs all its layers.
    """
    share = getattr(tuning, "layers", 1.0)
    if not 0 < share <= 1:
        raise UserError(f"tuning.layers={share} must be above 0 and at most 1: the share of layers that are used")
    count = backbone.config.num_hidden_layers
    kept = max(1, round(count * share))
    if share < 1 and kept == count:
        log.warning("tuning.layers=%g drops none of the backbone's %d layers", share, count)
    try:
        backbone.keep_layers(backbone.layer_numbers[:kept])
    except UserError as error:
        raise UserError(f"tuning.layers={share}: {error}; set tuning.layers=1") from error


def apply_tuning(model: Any, tuning: Lora | Full | HeadOnly) -> Any:
    """Freeze and unfreeze weights; for LoRA, wrap the model with PEFT adapters.

    The model's own dropout is switched on, except in a frozen model, whose states are the same in every epoch. Weights
    that learn are float32 (adapters by PEFT): bfloat16 would round most updates of fine-tuning away.
    """
    model.train(not isinstance(tuning, HeadOnly))
    if isinstance(tuning, Full):
        return model.float().requires_grad_(True)
    model.requires_grad_(False)
    if isinstance(tuning, HeadOnly):
        return model
    return _add_lora(model, tuning)


def _add_lora(model: Any, tuning: Lora) -> Any:
    from peft import LoraConfig, get_peft_model

    if hasattr(model, "peft_config"):
        raise UserError(
            f"the model has adapters already ({listing(model.peft_config)}): remove them before training one"
        )
    if tuning.rank < 1 or not 0 <= tuning.dropout < 1:
        raise UserError(f"tuning.rank={tuning.rank} must be at least 1 and tuning.dropout={tuning.dropout} in [0, 1)")
    channels = int(model.get_input_embeddings().weight.shape[1])
    if tuning.rank > channels:
        raise UserError(
            f"tuning.rank={tuning.rank} is more than the backbone's {channels} channels; tuning=full has all"
        )
    top = 1.0 if tuning.top is None else tuning.top
    count = model.config.get_text_config().num_hidden_layers
    first = first_adapted(count, top)
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=_target_modules(model, tuning.target_modules),
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
        layers_to_transform=None if top == 1 else list(range(first, count)),
    )
    return get_peft_model(model, config)


def first_adapted(layers: int, top: float) -> int:
    """The position of the first of so many layers that gets an adapter, where a share ``top`` of them does.

    At least one layer does: PEFT takes an empty list for all of them. Raises `UserError` for a share out of range.
    """
    if not 0 < top <= 1:
        raise UserError(f"tuning.top={top} must be above 0 and at most 1: the share of layers that get adapters")
    return min(round(layers * (1 - top)), layers - 1)


def _target_modules(model: Any, names: list[str]) -> list[str]:
    """Return the layers that get adapters: ``names``, or all linear layers except the vocabulary projection.

    Raises `UserError` for a name of no layer (PEFT ignores such a name beside valid ones).
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    projection = model.get_output_embeddings()
    layers = {
        path: module
        for path, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
        and module is not projection
        and not isinstance(module, nn.Embedding)
    }
    known_names = sorted({path.rsplit(".", 1)[-1] for path in layers})
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in layers):
            raise UserError(
                f"tuning.target_modules: '{name}' names no layer of the backbone; there are {listing(known_names)}."
                f"{nearest(name, known_names)}"
            )
    linear_names = {
        path.rsplit(".", 1)[-1] for path, module in layers.items() if isinstance(module, nn.Linear | Conv1D)
    }
    return names or sorted(linear_names)
