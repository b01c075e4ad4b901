"""What decides the lines that `gptask predict` writes: only an output of the same identity is continued."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gptask.config.schemas import Predict
from gptask.data.code_hash import CODE_OF_ENCODING, code_hash
from gptask.runs.folder import model_folder
from gptask.runs.manifest import MANIFEST
from gptask.runs.run import Run


def options_identity(config: Predict) -> dict[str, Any]:
    """The options that decide how rows are read and which lines are written."""
    return {"on_error": config.on_error.value} | _flat("data", asdict(config.data))


def run_identity(run: Run) -> dict[str, Any]:
    """The run's files, its task's options, and the code and engine that compute."""
    import torch

    return {
        "run": run_digest(run.folder),
        **_flat("task", asdict(run.task)),
        "engine": run.backbone.engine.summary(),
        "weights": sorted({run.backbone.weight_format, *(str(weight.dtype) for weight in run.backbone.parameters())}),
        "processor": "cuda" if torch.cuda.is_available() else "cpu",
        "code": [
            f"gptask {version('gptask')}",
            run.plugin.origin,
            code_hash(run.task, CODE_OF_ENCODING),
            f"torch {torch.__version__}",
        ],
    }


def run_digest(folder: Path) -> str:
    """The SHA-256 of the manifests of a run and of its model, and so of all files that they list."""
    total = hashlib.sha256()
    for path in dict.fromkeys([folder, model_folder(folder).parent]):
        total.update((path / MANIFEST).read_bytes())
    return total.hexdigest()


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Nested options under dotted names."""
    return dict(_entries(name, value))


def _entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, member in value.items():
            yield from _entries(f"{name}.{key}", member)
    else:
        yield name, value
