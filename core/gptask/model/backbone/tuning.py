"""Which weights of a backbone learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptask.config.schemas import Full, HeadOnly, Lora
from gptask.errors import UserError, listing, nearest
from gptask.model.engine import linear

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone

LLAMA, OTHER = 0.781, 0.0775  # how fast the best LoRA rate falls with the channels; the latter was found on Qwen
FOUND_ON = 576  # channels of SmolLM2-135M, a Llama, on which the heads' rates were found


def scaled_lora_lr(lr: float, family: str, channels: int) -> float:
    """A head's LoRA learning rate for a model of another family or width: lower, never higher.

    The best rate goes with ``(2000 / channels) ** power`` (Schulman et al. 2025, "LoRA Without Regret"); families that
    were not looked at there take the power that gives the lower rate to small models.
    """
    best = (2000 / channels) ** (LLAMA if family == "llama" else OTHER)
    return float(f"{lr * min(1.0, best / (2000 / FOUND_ON) ** LLAMA):.2g}")


def drop_upper_layers(backbone: GPTBackbone, tuning: Lora | Full | HeadOnly) -> None:
    """Leave out the layers above ``tuning.layers``, where a tuning has it."""
    share = getattr(tuning, "layers", 1.0)
    if not 0 < share <= 1:
        raise UserError(f"tuning.layers={share} must be above 0 and at most 1: the share of layers that are used")
    count = backbone.config.num_hidden_layers
    try:
        backbone.cut(max(1, round(count * share)))
    except UserError as error:
        raise UserError(f"tuning.layers={share}: {error}; set tuning.layers=1") from error


def apply_tuning(model: Any, tuning: Lora | Full | HeadOnly) -> Any:
    """Freeze and unfreeze; for LoRA wrap the model with PEFT adapters. The model's own dropout is switched on,
    but for a frozen model, whose states are the same in every epoch.

    What learns is float32 (adapters by PEFT): bfloat16 would round most updates of a fine-tuning away.
    """
    model.train(not isinstance(tuning, HeadOnly))
    if isinstance(tuning, Full):
        return model.float().requires_grad_(True)
    model.requires_grad_(False)
    if isinstance(tuning, HeadOnly):
        return model
    return _lora(model, tuning)


def _lora(model: Any, tuning: Lora) -> Any:
    from peft import LoraConfig, get_peft_model

    if tuning.rank < 1 or not 0 <= tuning.dropout < 1:
        raise UserError(f"tuning.rank={tuning.rank} must be at least 1 and tuning.dropout={tuning.dropout} in [0, 1)")
    top = 1.0 if tuning.top is None else tuning.top
    if not 0 < top <= 1:
        raise UserError(f"tuning.top={top} must be above 0 and at most 1: the share of layers that get adapters")
    layers = model.config.get_text_config().num_hidden_layers
    first = min(round(layers * (1 - top)), layers - 1)  # PEFT takes an empty list for all layers
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=_targets(model, tuning.target_modules),
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
        layers_to_transform=None if top == 1 else list(range(first, layers)),
    )
    adapted = get_peft_model(model, config)
    linear.install(adapted)
    return adapted


def _targets(model: Any, wanted: list[str]) -> list[str]:
    """The layers that get adapters: those named, or every linear one but the projection tied to the embedding.

    Raises `UserError` for a name of no layer (PEFT would pass over one among several).
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    projection = model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
        and module is not projection
        and not isinstance(module, nn.Embedding)
    }
    known = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
    for name in wanted:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            raise UserError(
                f"tuning.target_modules: '{name}' names no layer of the backbone; there are {listing(known)}."
                f"{nearest(name, known)}"
            )
    plain = {name.rsplit(".", 1)[-1] for name, module in layers.items() if isinstance(module, nn.Linear | Conv1D)}
    return wanted or sorted(plain)
