"""How what a command left differs from what the same command leaves undisturbed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEASURED = ("wall_seconds", "fit_seconds", "train_tokens_per_second", "peak_memory_mb")  # of metrics.json
COMPARED_BY_NAME = ("train.log", "metrics.csv", "config.yaml", "manifest.json", "README.md", ".ckpt", ".lock")


def differences(expected: Path, got: Path) -> Iterator[str]:
    """What differs between two results: a run folder, or a file and what lies beside it under the same name.

    Weights and predictions are compared by their bytes, metrics.json without times, the others by their names.
    """
    if not got.exists():
        yield f"{got} is missing"
        return
    if got.is_file():
        if got.read_bytes() != expected.read_bytes():
            yield f"{got} has other content"
        yield from (f"{path} is left" for path in got.parent.glob(f"*{got.name}.*"))
        return
    names, expected_names = _names(got), _names(expected)
    yield from (f"{name} is missing" for name in sorted(expected_names - names))
    yield from (f"{name} is left" for name in sorted(names - expected_names))
    for name in sorted(names & expected_names):
        if name.endswith("metrics.json"):
            if (one := _measured_apart(expected / name)) != (other := _measured_apart(got / name)):
                keys = [key for key in {*one, *other} if one.get(key) != other.get(key)]
                yield f"{name} differs in {keys}"
        elif not name.endswith(COMPARED_BY_NAME) and (expected / name).read_bytes() != (got / name).read_bytes():
            yield f"{name} has other content"
    from gptask import UserError
    from gptask.runs.manifest import read_manifest

    try:
        read_manifest(got).verify()
    except UserError as error:
        yield str(error)


def _names(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.match("metrics.before-resume-*.csv"))
    return {path.relative_to(folder).as_posix() for path in files}


def _measured_apart(file: Path) -> dict[str, Any]:
    return {name: value for name, value in json.loads(file.read_text()).items() if name not in MEASURED}
