"""Labels of SST-2 that are flipped on purpose: how many `gptask report --labels` finds, and what repairing them gains.

python tests/benchmarks/label_errors.py --folder outputs/label_errors

A share of the training labels is flipped. Two runs learn a half each, each is evaluated on the other half, and the
report flags labels. Runs on clean, flipped and repaired labels are then tested on the same sentences: those of dev.tsv
and as many of train.tsv as ``--test`` says, which no run learns. Labels are repaired in two ways: *reviewed* sets the
flagged ones right, as somebody does who reads these rows, and *suggested* takes what the report suggests without a
look. The same command goes on where it was stopped. With its defaults, it takes about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import DATA
from serving import Kept, finish

OTHER = {"0": "1", "1": "0"}  # the label ids of SST-2
NAMES = {"negative": "0", "positive": "1"}
Rows = list[tuple[str, str]]  # text, label id


class Found(NamedTuple):
    """What the report flags: its lines, how many are wrong labels, and precision among the first k, k being flipped."""

    lines: list[dict[str, Any]]
    correct: int
    precision: float
    precision_of_cleanlab: float


def main() -> None:
    """Flip, find, repair, train and compare."""
    options = _arguments()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    clean, flipped_rows = write_data(folder, options)
    for half in (1, 2):
        train(folder, f"half{half}", "flipped", options, f"data.half={half}")
        evaluate(folder, f"half{half}", 3 - half)
    found = find(folder, flipped_rows)
    repair(folder, clean, found.lines)
    for name in ("clean", "flipped", "reviewed", "suggested"):
        train(folder, name, name, options)
    accuracies, verdicts = compare(folder)
    counts = {"rows": len(clean), "flipped": len(flipped_rows), "flagged": len(found.lines), "correct": found.correct}
    precisions = {"precision": found.precision, "precision_of_cleanlab": found.precision_of_cleanlab}
    figures = [kept_found(len(clean), len(flipped_rows), found)]
    figures += [kept_accuracy(name, accuracies, sentence) for name, sentence in verdicts.items()]
    finish({**counts, **precisions, "accuracy": accuracies, "verdicts": verdicts}, options.record, figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the data and the runs lie")
    parser.add_argument("--train", type=int, default=3000, help="training sentences")
    parser.add_argument("--test", type=int, default=2000, help="sentences of train.tsv that test, beside dev.tsv")
    parser.add_argument("--flip", type=float, default=0.05, help="share of the training labels that are flipped")
    parser.add_argument("--seed", type=int, default=1, help="draws the sentences and the flipped labels")
    parser.add_argument("--option", action="append", default=[], help="an option of gptask train: trainer.max_epochs=1")
    parser.add_argument("--record", action="store_true", help="write the figures into docs/results.json")
    return parser.parse_args()


# --- data -----------------------------------------------------------------------------------------------------------


def write_data(folder: Path, options: argparse.Namespace) -> tuple[Rows, set[int]]:
    """Write the files; return the training rows with their own labels, and the numbers of those that are flipped."""
    draw = random.Random(options.seed)
    dev = read(DATA / "sentiment" / "sst2" / "dev.tsv")
    tested = {text for text, _ in dev}
    rows = [row for row in dict(read(DATA / "sentiment" / "sst2" / "train.tsv")).items() if row[0] not in tested]
    draw.shuffle(rows)
    ends = options.train, options.train + options.train // 10
    clean, validation, test = rows[: ends[0]], rows[ends[0] : ends[1]], rows[ends[1] : ends[1] + options.test]
    flipped = set(draw.sample(range(len(clean)), round(options.flip * len(clean))))
    noisy = [(text, OTHER[label] if number in flipped else label) for number, (text, label) in enumerate(clean)]
    for name, part in {"clean": clean, "flipped": noisy, "validation": validation, "test": dev + test}.items():
        write(folder / f"{name}.tsv", part)
    return clean, flipped


def read(file: Path) -> Rows:
    """The rows of a file of text, tab and label id."""
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    return [(text, label) for text, label in rows]


def write(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write rows as `read` reads them; a file that is the same already keeps its time."""
    text = "".join(f"{text}\t{label}\n" for text, label in rows)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def repair(folder: Path, clean: Rows, lines: Sequence[dict[str, Any]]) -> None:
    """Write the training data with the flagged labels set right, and with the labels that the report suggests."""
    reviewed = read(folder / "flipped.tsv")
    suggested = list(reviewed)
    for line in lines:
        number = line["row"] - 1
        reviewed[number] = clean[number]
        suggested[number] = (clean[number][0], NAMES[line["suggested_label"]])
    write(folder / "reviewed.tsv", reviewed)
    write(folder / "suggested.tsv", suggested)


# --- runs -----------------------------------------------------------------------------------------------------------


def gptask(folder: Path, *arguments: str) -> None:
    """Run a command line in the folder."""
    print("gptask", *arguments, flush=True)
    command = [sys.executable, "-m", "gptask", *arguments]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{process.stdout[-2000:]}\n{process.stderr[-2000:]}")


def train(folder: Path, name: str, data: str, options: argparse.Namespace, *more: str) -> None:
    """Train a run on a file, or find it finished."""
    files = (f"data.root={folder}", f"data.train={data}.tsv", "data.validation=validation.tsv", "data.test=test.tsv")
    settings = ("experiment=sst2", *files, "trainer.max_epochs=2", "baseline=false", "probe=false", *options.option)
    gptask(folder, "train", *settings, *more, f"folder={name}", "resume=auto")


def evaluate(folder: Path, name: str, half: int) -> None:
    """Evaluate the run of one half on the other."""
    target = folder / f"{name}_on_{half}"
    shutil.rmtree(target, ignore_errors=True)  # it may be that of an earlier run in the folder
    gptask(folder, "evaluate", f"run={name}", "split=train", f"data.half={half}", f"folder={target.name}")


def find(folder: Path, flipped: set[int]) -> Found:
    """What the report flags, and how precise its first rows are, beside cleanlab's defaults on the same rows."""
    from cleanlab.filter import find_label_issues

    evaluations = ("half1_on_2", "half2_on_1")
    gptask(folder, "report", *evaluations, "--labels", "issues.jsonl", "--output", "issues.html")
    lines = [json.loads(line) for line in (folder / "issues.jsonl").read_text(encoding="utf-8").splitlines()]
    is_flipped = [line["row"] - 1 in flipped for line in lines]
    predictions = [
        json.loads(line)
        for name in evaluations
        for line in (folder / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    given = np.asarray([int(NAMES[row["references"]["label"]]) for row in predictions])
    probabilities = np.asarray([[row["probabilities"][name] for name in NAMES] for row in predictions])
    ranked = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    ranked_is_flipped = [int(predictions[k]["id"].split(":")[1]) - 1 in flipped for k in ranked]
    first = min(len(flipped), len(lines), len(ranked))
    return Found(
        lines, sum(is_flipped), round(float(np.mean(is_flipped[:first])), 4),
        round(float(np.mean(ranked_is_flipped[:first])), 4),
    )  # fmt: skip


def compare(folder: Path) -> tuple[dict[str, float], dict[str, str]]:
    """The accuracy of each run, and the verdict on each against the run on flipped labels, paired by test sentence."""
    from gptask.analysis.compare.comparison import compare
    from gptask.analysis.compare.records import read_run

    names = ("flipped", "clean", "reviewed", "suggested")
    runs = [read_run(folder / name) for name in names]
    (table,) = compare(runs, folder / "flipped", grouped=False).tables
    accuracies = {method.records[0].folder.name: method.value(table.main) for method in table.methods}
    verdicts = table.verdicts[table.main]
    return accuracies, {
        method.records[0].folder.name: verdicts[number].sentence
        for number, method in enumerate(table.methods)
        if number in verdicts
    }


# --- figures --------------------------------------------------------------------------------------------------------


def kept_found(rows: int, flipped: int, found: Found) -> Kept:
    """What was found, with the precision of cleanlab's defaults as the bound."""
    measure = f"SST-2, {flipped} of {rows:,} training labels flipped: those that the report finds"
    value = (
        f"{found.precision:.0%} of the first {min(flipped, len(found.lines))} flagged are flipped; "
        f"{found.correct} of {flipped} are among all {len(found.lines)} flagged"
    )
    bound = f"cleanlab's defaults on the same probabilities: {found.precision_of_cleanlab:.0%}"
    return Kept("label_errors_found", measure, value, bound, found.precision >= found.precision_of_cleanlab)


def kept_accuracy(name: str, accuracies: dict[str, float], sentence: str) -> Kept:
    """The accuracy on clean or repaired labels against that on flipped ones."""
    labels = {
        "clean": "the original labels",
        "reviewed": "the flagged labels set right by a reader",
        "suggested": "the suggested labels, unread",
    }
    measure = f"SST-2 accuracy with {labels[name]}, against {accuracies['flipped']:.1f} with flipped ones"
    return Kept(f"label_errors_{name}", measure, f"{accuracies[name]:.1f}; {sentence}", "none", True)


if __name__ == "__main__":
    main()
