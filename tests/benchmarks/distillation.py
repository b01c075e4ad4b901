"""A student of 12 layers that learns from its teacher, beside the same student on labels alone (full tier only).

Both begin with the same layers, adapter and head of the teacher, by the same command but for the method, with the same
seeds. The result has a value for each seed; its note has the paired test of the two groups of runs. The runs stay in
outputs/compression, where compression.py takes them too, and a run that is there already is not trained again.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness import DATA, FULL, ROOT, Result

SEEDS = (13, 14, 15)
LAYERS = 12
METHODS = {"distilled": "distil", "labels": "prune"}  # the latter heals the layers that stay with labels alone
OUTPUTS = ROOT / "outputs" / "compression"


@dataclass(frozen=True)
class Lesson:
    """What a teacher learns, by the options of its training."""

    id: str
    name: str
    teacher: tuple[str, ...]


LESSONS = (
    # the preset drops layers itself, and a teacher is to have them all
    Lesson("sst2", "SST-2", ("experiment=sst2", "tuning=lora", "trainer.max_epochs=2")),
    Lesson("multi30k", "Multi30k, German to English, 6,000 pairs", ("experiment=multi30k", "data.limit.train=6000")),
)


def run(tier: str, *names: str) -> list[Result]:
    """One result per lesson, or those of the named lessons."""
    if tier != FULL or not DATA.is_dir():
        return []
    return [measure(lesson) for lesson in LESSONS if not names or lesson.id in names]


def measure(lesson: Lesson) -> Result:
    """Train the teacher and both students with every seed, and compare these."""
    from gptask.analysis.compare.comparison import compare
    from gptask.analysis.compare.records import find_runs

    teacher = train_teacher(lesson, OUTPUTS)
    folders = {
        name: [str(train_student(teacher, method, LAYERS, seed)) for seed in SEEDS] for name, method in METHODS.items()
    }
    groups = {name: find_runs(runs) for name, runs in folders.items()}
    (table,) = compare([*groups["distilled"], *groups["labels"]], baseline=Path(folders["labels"][0])).tables
    (verdict,) = table.verdicts[table.main].values()
    values = {name: [record.metrics[table.main]["value"] for record in group] for name, group in groups.items()}
    (parent,) = find_runs([str(teacher)])
    difference = f"{verdict.difference.value:+.2f} ({verdict.difference.low:+.2f} to {verdict.difference.high:+.2f})"
    sentence = verdict.sentence if difference in verdict.sentence else f"{verdict.sentence}: {difference}"
    note = f"{sentence}; the teacher has {parent.metrics[table.main]['value']:.2f}"
    return Result(
        f"distil_{lesson.id}", f"{table.main}, {lesson.name}, {LAYERS} layers, by seed", "points",
        values["distilled"], values["labels"], "same student on labels alone", note=note,
        extra={"p": verdict.p, "seeds": list(SEEDS), "folders": folders},
    )  # fmt: skip


def train_teacher(lesson: Lesson, outputs: Path, *options: str) -> Path:
    """Train a teacher, or find it finished; return its folder."""
    folder = outputs / lesson.id / "teacher"
    gptask("train", *lesson.teacher, f"data.root={DATA}", f"folder={folder}", "resume=auto", *options)
    return folder


def train_student(teacher: Path, method: str, layers: int, seed: int) -> Path:
    """Train a teacher's student, or find it finished; return its folder, which lies beside the teacher's."""
    folder = teacher.parent / f"{method}_{layers}" / str(seed)
    options = [f"run={teacher}", f"method={method}", f"keep={layers}", f"seed={seed}"]
    gptask("compress", *options, f"folder={folder}", "resume=auto")
    return folder


def gptask(*arguments: str) -> None:
    """Run a command line in a process of its own, as a user does; its log goes to standard error."""
    print("gptask", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "gptask", *arguments], cwd=ROOT, stdout=sys.stderr, check=True)
