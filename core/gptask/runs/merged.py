"""A run folder as a backbone for other runs: its full weights, or its adapter merged into those it was trained on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from gptask.config.conversion import from_plain
from gptask.config.schemas import DType, Pretrained
from gptask.data.cache import cache_folder
from gptask.errors import UserError
from gptask.model.backbone.locate import Resolved, folder_hash, resolve


def resolve_run(folder: Path) -> Resolved:
    """Where the backbone that a run left can be loaded from; an adapter is merged once, into the cache.

    Raises `UserError` for a run without a model, or whose own backbone is missing or another.
    """
    from gptask.runs.config_file import read_config

    values, model = read_config(folder), folder / "model"
    if not (model / "backbone.json").is_file():
        raise UserError(f"backbone.source={folder}: this run holds no model (an evaluation, or stopped before its end)")
    name = f"run {folder}"
    if (model / "model.safetensors").exists() or (model / "model.safetensors.index.json").exists():
        return Resolved(str(model), name, folder_hash(model))
    if (model / "adapter_config.json").exists():
        return _merge(model, values, name)
    options = from_plain("backbone", values["backbone"])  # its head alone has learned
    assert isinstance(options, Pretrained)
    origin = resolve(options)
    return Resolved(origin.location, f"{name}, whose backbone is {origin.kind}", origin.weights_hash)


def _merge(model: Path, values: dict[str, object], name: str) -> Resolved:
    known = json.loads((model / "backbone.json").read_text(encoding="utf-8"))
    base = folder_hash(model / "base") if (model / "base").is_dir() else known["weights_hash"]
    identity = f"{folder_hash(model)} on {base}"
    folder = cache_folder() / "backbones" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not folder.is_dir():
        from gptask.runs import saved_model

        backbone = saved_model.load_backbone(model, values, DType.float32)
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        try:
            backbone.peft.merge_and_unload().save_pretrained(partial)
            backbone.tokenizer.save_pretrained(partial)
            if not folder.is_dir():  # another process may have been faster
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Resolved(str(folder), f"{name} (adapter merged into {folder})", folder_hash(folder))
