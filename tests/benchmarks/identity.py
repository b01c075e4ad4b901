"""Whether checkouts compute the same, bit for bit: each trains the same cases through its own command line.

    python tests/benchmarks/identity.py CHECKOUT [CHECKOUT ...]

A case is a backbone, a task and a tuning, trained on the bundled sample for 20 optimizer steps. Of its run folder four
digests are printed: losses (metrics.csv), weights (model/), predictions and metrics. One checkout given twice tells
whether it is deterministic. Where digests differ the first difference is named and the exit code is 1.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Names that a later commit changed, old -> new: an override ("task=qa"), the name of an option ("task.answer") or a
# key of a result ("val/loss"). Cases use the old names, and the new ones for a checkout that refuses the old ones.
RENAMED: dict[str, str] = {}

COMMON = ["data.limit.validation=20", "data.limit.test=24", "trainer.max_steps=20", "trainer.log_every_n_steps=1"]
SHORT = ["data.limit.train=160", "data.batch_tokens=512"]  # two epochs, of which the second reads cached states
LONG = ["data.limit.train=32", "data.batch_tokens=512"]
DOCUMENTS = ["data.batch_tokens=256"]
SPAN = ["task.answer=span", *LONG]
WRITE = ["task.generation.max_new_tokens=16", *SHORT]
CASES = [
    ["backbone=nano", "task=classification", "tuning=full", *SHORT],
    ["backbone=nano", "task=qa", "tuning=full", *SPAN],
    ["backbone=nano", "task=translation", "tuning=full", *WRITE],
    ["backbone=nano", "task=token_tagging", "tuning=full", *SHORT],
    ["backbone=nano", "task=language_modeling", "tuning=full", *DOCUMENTS],
    ["backbone=smollm2", "task=classification", "tuning=head", *SHORT],
    ["backbone=smollm2", "task=qa", "tuning=lora_short", *SPAN],
    ["backbone=smollm2", "task=translation", "tuning=lora", *WRITE],
    ["backbone=smollm2", "task=token_tagging", "tuning=lora", *SHORT],
    ["backbone=smollm2", "task=language_modeling", "tuning=full", *DOCUMENTS],
]
PARTS = ("losses", "weights", "predictions", "metrics")
# Compared keys of metrics.json: none that names the code (job, versions, commit) or depends on the machine (time,
# memory, paths).
METRICS = ("n", "metrics", "details", "test_data_hash", "weights_hash", "trainable_parameters", "parameters")


def main() -> int:
    """Train all cases in every checkout, print the digests and the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    checkouts = [checkout.resolve() for checkout in parser.parse_args().checkouts]
    results = [run_cases(checkout) for checkout in checkouts]
    print("checkouts:", ", ".join(map(str, checkouts)), end="\n\n")
    for cells in (("case", *PARTS), ["---"] * (1 + len(PARTS))):
        print(f"| {' | '.join(cells)} |")
    differences = []
    for case in results[0]:
        cells = [case]
        for checkout, result in zip(checkouts, results, strict=True):
            if error := result[case]["losses"].get("error"):
                differences.append(f"{case}: {error} in {checkout}")
        for part in PARTS:
            values = [result[case][part] for result in results]
            digests = [digest(value) for value in values]
            cells.append(digests[0] if len(set(digests)) == 1 else " / ".join(digests))
            for checkout, other in zip(checkouts[1:], values[1:], strict=True):
                keys = (key for key in values[0] | other if values[0].get(key) != other.get(key))
                if key := next(keys, None):
                    contrast = f"{values[0].get(key)} and, in {checkout}, {other.get(key)}"
                    differences.append(f"{case}, {part}, {key}: {contrast}")
        print(f"| {' | '.join(cells)} |")
    if differences or len(checkouts) > 1:
        print("", *(differences or ["identical"]), sep="\n")
    return 1 if differences else 0


def run_cases(checkout: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """For each case and part the values by key, of a checkout that starts from an empty cache."""
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        variables = environment(checkout, Path(temporary))
        for case in CASES:
            start, name = time.perf_counter(), " ".join(override.split("=")[1] for override in case[:3])
            folder = Path(temporary, "run")
            error = train(case, variables, folder)
            results[name] = {part: {"error": error} for part in PARTS} if error else run_values(folder)
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{checkout}: {name}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return results


def environment(checkout: Path, folder: Path) -> dict[str, str]:
    """Variables with which Python runs a checkout's gptask and plugins instead of the installed ones.

    The package metadata they need is written to ``folder``, which also holds gptask's cache.
    """
    pyproject = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    project, packages = pyproject["project"], pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    metadata = folder / "path" / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(text, encoding="utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    path = [metadata.parent, *dict.fromkeys((checkout / package).parent for package in packages)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "GPTASK_CACHE": str(folder / "cache")}


def train(case: list[str], variables: dict[str, str], folder: Path) -> str:
    """Train a case into a run folder; return the error, or nothing.

    Threads sleep while they wait: results are the same, and beside other programs an LSTM is not 20 times slower.
    """
    for names in ({}, RENAMED):
        command = [sys.executable, "-m", "gptask", "train", f"folder={folder}", "seed=13"]
        for override in [*case, *COMMON]:
            option, value = override.split("=", 1)
            command.append(names.get(override, f"{names.get(option, option)}={value}"))
        process = subprocess.run(
            command,
            env=variables | {"OMP_WAIT_POLICY": "passive"},
            cwd=folder.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode == 0:
            return ""
        if process.returncode != 2 or not RENAMED:  # 2: an option is not known
            break
    print(" ".join(command), process.stderr[-3000:], sep="\n", file=sys.stderr, flush=True)
    return f"exit code {process.returncode}"


def run_values(folder: Path) -> dict[str, dict[str, Any]]:
    """The compared values of a run folder, by key, for each part."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        losses = {
            f"epoch {row['epoch']} step {row['step']} {RENAMED.get(column, column)}": value
            for row in csv.DictReader(stream)
            for column, value in row.items()
            if column.endswith("loss") and value
        }
    weights = {str(path.relative_to(folder)): tensors(path) for path in sorted(folder.glob("model/**/*.safetensors"))}
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    names = {known for name in METRICS for known in (name, RENAMED.get(name))}
    metrics = {name: value for name, value in result.items() if name in names}
    return {
        part: dict(flat(values)) for part, values in zip(PARTS, (losses, weights, predictions, metrics), strict=True)
    }


def tensors(path: Path) -> dict[str, str]:
    """Number format, shape and digest of each tensor in a safetensors file, read as bytes: NumPy has no bfloat16."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    digests = {}
    for name, tensor in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = tensor["data_offsets"]
            sha = hashlib.sha256(content[start + first : start + last]).hexdigest()[:12]
            digests[name] = f"{tensor['dtype']} {tensor['shape']} {sha}"
    return digests


def flat(values: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """Values of nested JSON with their dotted keys, in new names."""
    if not isinstance(values, dict | list) or not values:
        yield ".".join(path), values
        return
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield from flat(value, *path, RENAMED.get(str(name), str(name)))


def digest(values: dict[str, Any]) -> str:
    """The digest of values by key, independent of their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
