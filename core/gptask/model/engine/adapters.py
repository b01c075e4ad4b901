"""LoRA adapters beside the model's own, each named by a digest of its bytes.

A name that a user chose would outlive its content: after a reload in place, caches keyed by it would answer for the old
adapter.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.errors import UserError, listing

if TYPE_CHECKING:
    from gptask.model.engine.interface import EngineBackbone

MORE_THAN_FACTORS = (  # options of an adapter that changes the model for every row
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "use_dora",
    "lora_bias",
)
FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapter_digest(folder: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of an adapter's files."""
    total = hashlib.sha256()
    for name in FILES:
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"{folder} holds no LoRA adapter: {name}: {error.strerror}") from error
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()[:16]


def added_adapters(backbone: EngineBackbone) -> set[str]:
    """The digests of the adapters that were added to the model's own."""
    return set(getattr(backbone.peft, "peft_config", {})) - {"default"}


def add_adapter(backbone: EngineBackbone, folder: Path) -> str:
    """Load an adapter into the backbone's model; return its digest. One that is there already is not loaded again.

    What learns, and which adapter the model itself uses, stays as it is.
    """
    from peft import PeftConfig, get_peft_model
    from safetensors import SafetensorError

    digest, training = adapter_digest(folder), backbone.peft.training
    model: Any = backbone.peft
    if digest in added_adapters(backbone):
        return digest
    _refuse_other_kinds(folder)
    learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    try:
        if not hasattr(model, "peft_config"):
            model = get_peft_model(model, PeftConfig.from_pretrained(str(folder)), digest)
            model.base_model.set_adapter([])
            backbone.set_model(model)
        model.load_adapter(str(folder), digest)
        problem = _unused_tensors(model, folder, digest)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        problem = str(error).strip().splitlines()[-1]
        if model is not backbone.peft:
            model.unload()
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    model.train(training)
    if problem:
        if digest in added_adapters(backbone):
            remove_adapter(backbone, digest)
        raise UserError(f"the adapter in {folder} does not fit the model: {problem}")
    return digest


def _refuse_other_kinds(folder: Path) -> None:
    """Raise `UserError` for an adapter that is more than low-rank factors: it would change the model for every row."""
    from peft import PeftConfig

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{folder} holds no LoRA adapter: {str(error).strip().splitlines()[-1]}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    more = [name for name in MORE_THAN_FACTORS if getattr(config, name, None)]
    more += [f"bias={config.bias}"] if getattr(config, "bias", "none") != "none" else []
    start = getattr(config, "init_lora_weights", True)
    more += [] if start in (True, False, "gaussian") else [f"init_lora_weights={start}"]
    if kind != "LORA" or more:
        reason = kind if kind != "LORA" else listing(more)
        raise UserError(
            f"the adapter in {folder} is not of low-rank factors alone ({reason}); rows can't have one each"
        )


def _unused_tensors(model: Any, folder: Path, digest: str) -> str:
    """What an adapter's file and the loaded adapter do not have in common; PEFT only warns of it. Empty: nothing."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(folder / FILES[1]), "pt") as file:
        in_file = set(file.keys())
    loaded = set(get_peft_model_state_dict(model, adapter_name=digest, save_embedding_layers=False))
    return f"tensors of one and not of the other: {listing(sorted(in_file ^ loaded), 4)}" if in_file ^ loaded else ""


def remove_adapter(backbone: EngineBackbone, digest: str) -> None:
    """Unload an adapter from the backbone's model."""
    model = backbone.peft
    if digest not in added_adapters(backbone):
        raise KeyError(f"no adapter {digest}")
    others = [name for name in model.peft_config if name != digest]
    if not others:
        backbone.set_model(model.unload())
        return
    model.delete_adapter(digest)
    if model.active_adapter == digest:  # the first one that was loaded, whether it is in use or not
        model.active_adapter = others[0]
