"""The files of a LoRA adapter in PEFT's format, read once: the digest that names it is that of the bytes it is made of.

A name that a user chose would outlive its content: after a reload in place, caches keyed by it would answer for the old
adapter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from gptask.errors import UserError, listing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUANTIFIED_GROUP, REPEAT = re.compile(r"\)[*+{]"), re.compile(r"(?<!\\)[*+{]")
MAX_REPEATS = 3  # in a pattern for the names of layers
NAME_OF_A = re.compile(r"(\.lora_(?:embedding_)?)A(?=\.|$)")
MORE_THAN_FACTORS = (  # options of an adapter that changes the model for every row, beside those of LoRA's variants
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "lora_bias",
)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that is read and checked, but in no model yet; ``tensors`` are float32, by their names in the file.

    ``layers`` counts the layers from the bottom of a model that keeps no others, None for a model with all.
    """

    folder: Path
    digest: str
    config: Any  # peft.LoraConfig
    tensors: Mapping[str, Tensor]
    layers: int | None = None

    @property
    def is_zero(self) -> bool:
        """Whether every product of its factors is zero."""
        a_names = [name for name in self.tensors if NAME_OF_A.search(name)]
        pairs = ((self.tensors[name], self.tensors.get(NAME_OF_A.sub(r"\1B", name))) for name in a_names)
        return self.config.lora_alpha == 0 or not any(a.any() and b.any() for a, b in pairs if b is not None)


def adapter_digest(folder: Path, layers: int | None = None) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of an adapter's files, and of the ``layers`` it was trained in."""
    return _digest(_contents(folder), layers)


def read_adapter(folder: Path, layers: int | None = None) -> AdapterFiles:
    """Read an adapter; this touches no model, so any thread may do it.

    Raises `UserError` for files that are missing or damaged, for numbers that are not finite, and for an adapter that
    is more than low-rank factors, which would change the model for every row.
    """
    config_bytes, weights_bytes = contents = _contents(folder)
    return AdapterFiles(
        folder, _digest(contents, layers), _config(folder, config_bytes), _tensors(folder, weights_bytes), layers
    )


def check_ranks(adapter: AdapterFiles) -> None:
    """Raise `UserError` for a rank above those of the tensors: PEFT makes factors of it before it looks at them."""
    a_factors = (tensor for name, tensor in adapter.tensors.items() if NAME_OF_A.search(name))
    largest = max((size for tensor in a_factors for size in tensor.shape[:1]), default=0)
    for rank in (adapter.config.r, *(adapter.config.rank_pattern or {}).values()):
        if not (isinstance(rank, int) and 0 < rank <= largest):
            raise UserError(f"the adapter in {adapter.folder}: {CONFIG} has the rank {rank!r}, its tensors {largest}")


def _contents(folder: Path) -> list[bytes]:
    contents = []
    for name in (CONFIG, WEIGHTS):
        try:
            contents.append((folder / name).read_bytes())
        except OSError as error:
            raise UserError(f"{folder} holds no LoRA adapter: {name}: {error.strerror}") from error
    return contents


def _digest(contents: list[bytes], layers: int | None) -> str:
    total = hashlib.sha256() if layers is None else hashlib.sha256(b"layers %d" % layers)
    for content in contents:
        total.update(len(content).to_bytes(8, "big"))
        total.update(content)
    return total.hexdigest()[:16]


def _config(folder: Path, content: bytes) -> Any:
    from peft import PeftConfig

    config_class: Any = PeftConfig  # PEFT leaves its methods untyped
    try:
        config = config_class.from_peft_type(**config_class.check_kwargs(**json.loads(content)))
    except MemoryError:
        raise
    except Exception as error:  # PEFT raises whatever a value of the wrong kind leads to, such as RecursionError
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"{folder} holds no LoRA adapter: {CONFIG}: {reason.splitlines()[-1]}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    variants = [option.name for option in fields(config) if option.metadata.get("is_lora_variant")]
    more = [name for name in [*MORE_THAN_FACTORS, *variants] if getattr(config, name, None)]
    more += [f"bias={config.bias}"] if getattr(config, "bias", "none") != "none" else []
    start = getattr(config, "init_lora_weights", True)
    more += [] if start in (True, False, "gaussian") else [f"init_lora_weights={start}"]
    if kind != "LORA" or more:
        reason = kind if kind != "LORA" else listing(more)
        raise UserError(
            f"the adapter in {folder} is not of low-rank factors alone ({reason}); rows can't have one each"
        )
    _refuse_patterns(folder, config)
    config.base_model_name_or_path = None  # the folder it was trained on, of which PEFT warns where ours is another
    config.inference_mode = True
    return config


def _refuse_patterns(folder: Path, config: Any) -> None:
    """Refuse what PEFT would import, and patterns that may take it longer than a few seconds to find layers by."""
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(value := getattr(config, name) or {}, dict):
            raise UserError(f"the adapter in {folder}: {CONFIG} has {name}={value!r}; expected numbers by layer")
    patterns = [*(config.rank_pattern or ()), *(config.alpha_pattern or ())]
    patterns += [text for text in (config.target_modules, config.exclude_modules) if isinstance(text, str)]
    wrong = [text for text in patterns if QUANTIFIED_GROUP.search(text) or len(REPEAT.findall(text)) > MAX_REPEATS]
    wrong += [name for name in ("layers_pattern", "megatron_config") if getattr(config, name, None)]
    if wrong:
        raise UserError(f"the adapter in {folder}: {CONFIG} has {listing(wrong, 4)}; expected plain names of layers")


def _tensors(folder: Path, content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")], object_pairs_hook=list)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"the adapter in {folder} does not fit the model: {WEIGHTS}: {error}") from error
    counts = Counter(name for name, _ in header)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(f"{folder / WEIGHTS} has two tensors of one name: {listing(twice, 4)}")
    if other := sorted(name for name, tensor in tensors.items() if not tensor.is_floating_point()):
        raise UserError(f"{folder / WEIGHTS} has tensors that are no floating-point numbers: {listing(other, 4)}")
    if broken := sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all()):
        raise UserError(f"{folder / WEIGHTS} has numbers that are not finite, in {listing(broken, 4)}")
    return {name: tensor.float() for name, tensor in tensors.items()}
