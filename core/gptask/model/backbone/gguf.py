"""Converts a GGUF file to a Hugging Face folder with float32 safetensors.

Of the hyperparameters in a file transformers reads a part, and takes the rest from its defaults, which may belong to
another model of the family. `complete_config` reads what is missing, as llama.cpp does.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptask.data.cache import replacing, seal_folder
from gptask.errors import UserError, listing
from gptask.model.backbone.hf_logging import quiet_transformers

GEMMA3_PERIOD = 6  # every sixth layer of a Gemma 3 sees all positions
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # Llama 3.1
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")  # rules by which a word that is a token needs no merges
ONLY_FILE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def convert(file: Path, folder: Path) -> None:
    """De-quantise ``file`` through transformers and write model and tokenizer to ``folder``, completely or not at all.

    Raises `UserError` for a file that transformers can't read.
    """
    model, tokenizer = _load_gguf(file)
    with replacing(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        seal_folder(part, file.name)


def _load_gguf(file: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of a GGUF file.

    A model that was loaded from GGUF refuses to be saved, so its weights are copied into one made from its config.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    if (file.parent / "adapter_config.json").exists():  # transformers would add it
        raise UserError(f"an adapter (adapter_config.json) lies beside {file}; move the GGUF file to another folder")
    auto_model: Any = AutoModelForCausalLM  # transformers leaves what it returns untyped
    source: dict[str, Any] = {"gguf_file": file.name, **ONLY_FILE}
    try:
        config: Any = AutoConfig.from_pretrained(file.parent, **source)
        reader = GGUFReader(file)
        complete_config(config, reader)
        with open(os.devnull, "w") as devnull, contextlib.redirect_stderr(devnull):  # a bar that can't be disabled
            options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
            gguf_model, loading_info = auto_model.from_pretrained(file.parent, config=config, **options, **source)
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **source)
        complete_tokenizer(tokenizer, reader)
    except (ValueError, KeyError, IndexError, OSError, ImportError) as error:
        raise UserError(f"{file} can't be read as a GGUF model: {str(error).strip().splitlines()[0]}") from error
    if random := {*loading_info["missing_keys"], *(name for name, *_ in loading_info["mismatched_keys"])}:
        problem = f"lacks weights of {type(gguf_model).__name__}, or has them in another shape"
        raise UserError(f"{file} {problem}: {listing(sorted(random), 4)}")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = auto_model.from_config(config, dtype=torch.float32)
    model.load_state_dict(gguf_model.state_dict())
    model.generation_config = gguf_model.generation_config
    return model, tokenizer


def complete_config(config: Any, reader: Any) -> None:
    """Set what transformers does not read of a file's hyperparameters; ``reader`` is the file's `gguf.GGUFReader`.

    Raises `ValueError` for rotary embeddings that transformers does not compute.
    """
    architecture = reader.get_field("general.architecture").contents()

    def value(name: str, default: Any = None) -> Any:
        field = reader.get_field(f"{architecture}.{name}")
        return default if field is None else field.contents()

    if architecture == "gpt2":
        config.n_positions, config.n_inner = value("context_length", 1024), value("feed_forward_length")
    if architecture not in ("llama", "qwen2", "qwen3", "gemma3"):
        return
    if head_dim := value("attention.key_length"):
        config.head_dim = head_dim
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, tensor_name in {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}.items():
        if hasattr(config, name):
            setattr(config, name, tensor_name in tensors)
    rope = config.rope_parameters
    if architecture == "gemma3":
        slides = sliding_layers(config.num_hidden_layers, value("attention.sliding_window_pattern", GEMMA3_PERIOD))
        config.layer_types = ["sliding_attention" if sliding else "full_attention" for sliding in slides]
        config.query_pre_attn_scalar = gemma3_attention_scalar(config)
        rope["sliding_attention"]["rope_theta"] = value("rope.freq_base_swa", 10000.0)
        rope = rope["full_attention"]
    scaling, factors = value("rope.scaling.type", "none"), tensors.get("rope_freqs.weight")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": value("rope.scaling.factor")}
    elif scaling != "none":
        raise ValueError(f"transformers leaves out its rope.scaling.type={scaling}")
    if factors is not None:
        rope |= {"rope_type": "llama3", "factor": float(factors.data.max()), **LLAMA3_ROPE}
        if not np.allclose(llama3_rope_factors(rope, config.head_dim), factors.data, rtol=1e-3):
            raise ValueError("transformers leaves out its rope_freqs.weight, which is not that of Llama 3.1 or 3.2")


def complete_tokenizer(tokenizer: Any, reader: Any) -> None:
    """Tell the tokenizer that transformers reads from a file what follows from the name of the file's rule."""
    rule = reader.get_field("tokenizer.ggml.pre")
    if rule is not None and rule.contents() in WHOLE_WORDS:
        tokenizer.backend_tokenizer.model.ignore_merges = True


def sliding_layers(count: int, period: int) -> list[bool]:
    """Which layers see a window only: all but the last of each period."""
    return [number % period < period - 1 for number in range(count)]


def gemma3_attention_scalar(config: Any) -> int:
    """The number by whose root llama.cpp divides the scores of a Gemma 3; it knows the 27B model by its layers."""
    is_27b = config.num_hidden_layers == 62
    return int(config.hidden_size // config.num_attention_heads if is_27b else config.head_dim)


def llama3_rope_factors(rope: Mapping[str, Any], head_dim: int) -> Any:
    """What Llama 3.1 divides the frequencies (D/2,) of its rotary embeddings by (transformers' rope_type llama3)."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    frequencies = rope["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # in the context of pre-training
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)
