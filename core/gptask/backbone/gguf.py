"""A GGUF file made into a Hugging Face folder with float32 safetensors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from gptask.backbone.model import quiet
from gptask.errors import UserError


def convert(file: Path, folder: Path) -> None:
    """De-quantise ``file`` through transformers and write model and tokenizer to ``folder``, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stderr(nowhere),
        ):  # a bar that can't be switched off
            read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{file} can't be read as a GGUF model: {error}") from error
    config = read.config
    if hasattr(config, "quantization_config"):  # a model read from GGUF refuses to be saved: move its weights
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    with file.open("rb") as stream:
        weights_hash = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    (partial / "gptask.json").write_text(json.dumps({"source": file.name, "weights_hash": weights_hash}))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
