"""A student of 12 layers that learns from its teacher, beside the same student on labels alone (full tier only).

Both begin with the same layers, adapter and head of the teacher, by the same command but for the method, with the same
seeds. The result has a value for each seed; its note has the paired test of the two groups of runs. The runs stay in
outputs/distillation, and a run that is there already is not trained again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import DATA, FULL, ROOT, Result

SEEDS = (13, 14, 15)
LAYERS = 12
METHODS = {"distilled": "distil", "labels": "prune"}  # the latter heals the layers that stay with labels alone
OUTPUTS = ROOT / "outputs" / "distillation"


@dataclass(frozen=True)
class Lesson:
    """What a teacher learns, and the options that both students have besides."""

    id: str
    name: str
    teacher: tuple[str, ...]
    students: tuple[str, ...] = ()
    layers: int = LAYERS


LESSONS = (
    # the preset drops layers itself, and a teacher is to have them all
    Lesson("sst2", "SST-2", ("experiment=sst2", "tuning=lora")),
    Lesson("multi30k", "Multi30k German to English", ("experiment=multi30k",)),
)


def run(tier: str, *names: str) -> list[Result]:
    """One result per lesson, or those of the named lessons."""
    if tier != FULL or not DATA.is_dir():
        return []
    return [measure(lesson) for lesson in LESSONS if not names or lesson.id in names]


def measure(lesson: Lesson, seeds: Sequence[int] = SEEDS, outputs: Path = OUTPUTS) -> Result:
    """Train the teacher and both students with every seed, and compare these."""
    from gptask.analysis.compare.comparison import compare
    from gptask.analysis.compare.records import find_runs

    outputs = outputs / lesson.id
    teacher = outputs / "teacher"
    root = [f"data.root={DATA}"] if any(word.startswith("experiment=") for word in lesson.teacher) else []
    gptask("train", *lesson.teacher, *root, f"folder={teacher}", "resume=auto")
    folders: dict[str, list[str]] = {name: [] for name in METHODS}
    for seed in seeds:
        for name, method in METHODS.items():
            folders[name].append(str(outputs / name / str(seed)))
            options = [f"run={teacher}", f"method={method}", f"keep={lesson.layers}", *lesson.students]
            gptask("compress", *options, f"seed={seed}", f"folder={folders[name][-1]}", "resume=auto")
    groups = {name: find_runs(runs) for name, runs in folders.items()}
    (table,) = compare([*groups["distilled"], *groups["labels"]], baseline=Path(folders["labels"][0])).tables
    (verdict,) = table.verdicts[table.main].values()
    values = {name: [record.metrics[table.main]["value"] for record in group] for name, group in groups.items()}
    (parent,) = find_runs([str(teacher)])
    difference = verdict.difference
    note = (
        f"{verdict.sentence}: {difference.value:+.2f} ({difference.low:+.2f} to {difference.high:+.2f}); "
        f"the teacher has {parent.metrics[table.main]['value']:.2f}"
    )
    return Result(
        f"distil_{lesson.id}", f"{table.main}, {lesson.name}, {lesson.layers} layers, by seed", "%",
        values["distilled"], values["labels"], "same student on labels alone", note=note,
        extra={"p": verdict.p, "seeds": list(seeds), "folders": folders},
    )  # fmt: skip


def gptask(*arguments: str) -> None:
    """Run a command line in a process of its own, as a user does."""
    process = subprocess.run([sys.executable, "-m", "gptask", *arguments], cwd=ROOT, capture_output=True, check=False)
    if process.returncode:
        raise RuntimeError(f"gptask {' '.join(arguments)} failed:\n{process.stderr.decode()[-3000:]}")
