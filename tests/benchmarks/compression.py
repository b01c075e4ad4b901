"""Quality, sizes and speeds of runs in int4 or without some of their layers, and of the smallest, taught by its parent.

They are the table of docs/compress.md.

python tests/benchmarks/compression.py --record                # SST-2 and Multi30k, 24, 18 and 12 of 30 layers: hours
python tests/benchmarks/compression.py data.limit.train=64 trainer.max_steps=4 --folder /tmp/a --layers 24   # a try

The parents, and the students of 12 layers, are those of distillation.py. Each compression is healed with its parent's
options. A run that is finished in --folder is not made again, so what was stopped goes on. The overrides are those of
the parents.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from distillation import LESSONS, OUTPUTS, SEEDS, Lesson, gptask, train_student, train_teacher
from harness import ROOT, machine
from record import RENDER, _machine, _score

sys.path.insert(0, str(ROOT / "docs"))
import results_file
from results_file import Compressed, Machine


def main(arguments: list[str] | None = None) -> int:
    """Make the runs, print the table, and record it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lessons = {lesson.id: lesson for lesson in LESSONS}
    parser.add_argument("--experiments", nargs="+", choices=lessons, default=[*lessons])
    parser.add_argument("--layers", nargs="+", type=int, default=[24, 18, 12])
    parser.add_argument("--folder", type=Path, default=OUTPUTS)
    parser.add_argument("--record", action="store_true", help="add the figures to docs/results.json")
    parser.add_argument("overrides", nargs="*", help="options of the parents' trainings")
    options = parser.parse_intermixed_args(arguments)
    entries = [entry for name in options.experiments for entry in measure(lessons[name], options)]
    record = results_file.load()
    for entry in entries:
        record.add(entry)
    from figures import compression_table

    print(compression_table(record, [entry.id for entry in entries]))
    if options.record:
        results_file.save(record)
        print(RENDER)
    return 0


def measure(lesson: Lesson, options: argparse.Namespace) -> list[Compressed]:
    """The entries of a lesson: its teacher, with all layers, and the students with fewer."""
    parent = train_teacher(lesson, options.folder, *options.overrides)
    train = ["train", *lesson.teacher, *options.overrides]
    entries: list[Compressed] = []
    fewest = min(options.layers)
    for method, count in [*(("prune", count) for count in options.layers), ("distil", fewest)]:
        folder = train_student(parent, method, count, SEEDS[0])
        result, against = read(folder), read(folder)["against_parent"]
        if not entries:  # the parent's sizes and speeds were measured in turns with each of the others
            teacher = read(parent)
            entries.append(entry_of(f"{lesson.id}_parent", lesson, "all layers", train, teacher, against, "parent"))
        model = f"{count} layers" + ", distilled" * (method == "distil")
        compress = ["compress", f"run={parent.name}", f"method={method}", f"keep={count}"]
        entries.append(entry_of(f"{lesson.id}_{method}_{count}", lesson, model, compress, result, against, "run"))
    return [*entries, int4_entry(lesson, parent, entries[0])]


def int4_entry(lesson: Lesson, teacher: Path, parent: Compressed) -> Compressed:
    """The teacher's entry with weights in int4: evaluated on the same test split, and timed in turns with itself."""
    from gptask.analysis.compare.comparison import compare
    from gptask.analysis.compare.records import find_runs
    from gptask.analysis.compress.against_parent import measure_speeds, memory_bytes
    from gptask.config.schemas import DType
    from gptask.runs.run import load_run

    folder = teacher.parent / "int4"
    if not (folder / "manifest.json").is_file():
        gptask("evaluate", f"run={teacher}", "dtype=int4", f"folder={folder}")
    (table,) = compare(find_runs([str(folder), str(teacher)]), baseline=teacher).tables
    (verdict,) = table.verdicts[table.main].values()
    in_int4, result = load_run(teacher, dtype=DType.int4), read(folder)
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = measure_speeds(in_int4, load_run(teacher), [json.loads(line) for line in lines])
    assert in_int4.backbone.int4
    return replace(
        parent,
        id=f"{lesson.id}_int4",
        command=f"gptask evaluate run={teacher.name} dtype=int4",
        commit=result["git_commit"],
        model="all layers, int4",
        score=_score(result["metrics"][parent.metric]),
        verdict=verdict.sentence,
        memory_mb=(memory_bytes(in_int4) + in_int4.backbone.int4.nbytes) / 2**20,
        examples_per_second=speeds.examples.run,
        tokens_per_second=speeds.tokens.run if speeds.tokens else None,
        speed=(speeds.tokens or speeds.examples).ratio,
    )


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
    lesson: Lesson,
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
        command=" ".join(["gptask", *command]),
        commit=result["git_commit"],
        date=date.today().isoformat(),
        machine=this_machine(),
        seed=result["seed"],
        data=lesson.name,
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
