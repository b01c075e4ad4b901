"""Which weights of a backbone learn."""

from __future__ import annotations

from typing import Any

from gptask.config import Full, Head, Lora
from gptask.errors import UserError, listing


def apply(model: Any, tuning: Lora | Full | Head) -> Any:
    """Freeze and unfreeze; for LoRA wrap the model with PEFT adapters."""
    if isinstance(tuning, Full):
        return model.requires_grad_(True)
    model.requires_grad_(False)
    if isinstance(tuning, Head):
        return model
    return _lora(model, tuning)


def _lora(model: Any, tuning: Lora) -> Any:
    from peft import LoraConfig, get_peft_model

    if tuning.rank < 1 or not 0 <= tuning.dropout < 1:
        raise UserError(f"tuning.rank={tuning.rank} must be at least 1 and tuning.dropout={tuning.dropout} in [0, 1)")
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=tuning.target_modules or targets(model),
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if hasattr(m, "weight")})
        raise UserError(
            f"tuning.target_modules={tuning.target_modules} names no layer; there are {listing(names)}"
        ) from error


def targets(model: Any) -> list[str] | str:
    """PEFT's own choice for the architecture (query and value projections), every linear layer for one unknown to it."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    return KNOWN.get(model.config.model_type, "all-linear")
