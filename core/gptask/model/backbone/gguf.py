"""Converts a GGUF file to a Hugging Face folder with float32 safetensors."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from gptask.data.cache import replacing, seal_folder
from gptask.errors import UserError
from gptask.model.backbone.hf_logging import quiet_transformers

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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    if (file.parent / "adapter_config.json").exists():  # transformers would add it
        raise UserError(f"an adapter (adapter_config.json) lies beside {file}; move the GGUF file to another folder")
    auto_model: Any = AutoModelForCausalLM  # transformers leaves what it returns untyped
    try:
        with open(os.devnull, "w") as devnull, contextlib.redirect_stderr(devnull):  # a bar that can't be disabled
            gguf_model = auto_model.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **ONLY_FILE)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **ONLY_FILE)
    except (ValueError, KeyError, IndexError, OSError, ImportError) as error:
        raise UserError(f"{file} can't be read as a GGUF model: {str(error).strip().splitlines()[0]}") from error
    config = gguf_model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = auto_model.from_config(config, dtype=torch.float32)
    model.load_state_dict(gguf_model.state_dict())
    model.generation_config = gguf_model.generation_config
    return model, tokenizer
