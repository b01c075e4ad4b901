"""Quality, sizes and speeds of runs without some of their layers, and of the smallest when its parent teaches it.

They are the table of docs/compress.md.

python tests/benchmarks/compression.py --record                # SST-2 and Multi30k, 24, 18 and 12 of 30 layers: hours
python tests/benchmarks/compression.py --layers 24 data.limit.train=64 trainer.max_steps=4 data.limit.test=40   # a try

Each parent is trained with all layers by its preset, and each compression is healed with the same options. A run that
is finished in --folder is not made again, so what was stopped goes on. The overrides are those of the parents.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from harness import DATA, ROOT, machine
from record import RENDER, _machine, _score

sys.path.insert(0, str(ROOT / "docs"))
import results_file
from results_file import Compressed, Machine

NAMES = {"sst2": "SST-2", "multi30k": "Multi30k, German to English"}


def main(arguments: list[str] | None = None) -> int:
    """Make the runs, print the table, and record it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=NAMES, default=[*NAMES])
    parser.add_argument("--layers", nargs="+", type=int, default=[24, 18, 12])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs/compression")
    parser.add_argument("--record", action="store_true", help="add the figures to docs/results.json")
    parser.add_argument("overrides", nargs="*", help="options of the parents' trainings")
    options = parser.parse_intermixed_args(arguments)
    entries = [entry for name in options.experiments for entry in measure(name, options)]
    record = results_file.load()
    for entry in entries:
        record.add(entry)
    from figures import compression_table

    print(compression_table(record, [entry.id for entry in entries]))
    if options.record:
        results_file.save(record)
        print(RENDER)
    return 0


def measure(name: str, options: argparse.Namespace) -> list[Compressed]:
    """The entries of an experiment: its parent, and the runs with fewer layers."""
    parent = options.folder / name / "parent"
    # all layers: a preset may use some only
    train = ["train", f"experiment={name}", "tuning.layers=1", *options.overrides]
    gptask(*train, f"data.root={DATA}", f"folder={parent}", "resume=auto")
    entries: list[Compressed] = []
    fewest = min(options.layers)
    for method, count in [*(("prune", count) for count in options.layers), ("distil", fewest)]:
        suffix, model = ("", "") if method == "prune" else ("_distilled", ", distilled")
        folder = options.folder / name / f"keep_{count}{suffix}"
        compress = ["compress", f"run={parent}", f"method={method}", f"keep={count}"]
        gptask(*compress, f"folder={folder}", "resume=auto")
        result, against = read(folder), read(folder)["against_parent"]
        if not entries:  # the parent's sizes and speeds were measured in turns with each of the others
            entries.append(entry_of(f"{name}_parent", name, "all layers", train, read(parent), against, "parent"))
        model = f"{count} layers{model}"
        entries.append(entry_of(f"{name}_{folder.name}", name, model, compress, result, against, "run"))
    return entries


def gptask(*words: str) -> None:
    """Run a command, whose output is shown; one that fails ends the script, and the same call goes on there."""
    if code := subprocess.run([sys.executable, "-m", "gptask", *words], check=False).returncode:
        sys.exit(code)


def read(folder: Path) -> dict[str, Any]:
    """metrics.json of a run."""
    values: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return values


@cache
def this_machine() -> Machine:
    """The machine with its matrix peaks, measured once."""
    return _machine(machine())


def entry_of(
    identifier: str,
    name: str,
    model: str,
    command: list[str],
    result: dict[str, Any],
    against: dict[str, Any],
    side: str,
) -> Compressed:
    """The entry of one ``side`` of a comparison, ``run`` or ``parent``; ``result`` is that side's own metrics.json."""
    metric = next(iter(result["metrics"]))
    speed = against.get("tokens_per_second") or against["examples_per_second"]
    tokens = against.get("tokens_per_second")
    return Compressed(
        id=identifier,
        command=" ".join(["gptask", *(Path(word).name if word.startswith("run=") else word for word in command)]),
        commit=result["git_commit"],
        date=date.today().isoformat(),
        machine=this_machine(),
        seed=result["seed"],
        data=NAMES[name],
        model=model,
        metric=metric,
        score=_score(result["metrics"][metric]),
        n=result["n"],
        verdict=against["metrics"][metric]["sentence"] if side == "run" else "",
        disk_mb=against["export_mb"][side],
        memory_mb=against["memory_mb"][side],
        examples_per_second=against["examples_per_second"][side],
        tokens_per_second=tokens[side] if tokens else None,
        speed=speed[side] / speed["parent"],
    )


if __name__ == "__main__":
    sys.exit(main())
