"""gptask's own speed in two checkouts, which take turns; each runs its own code in processes of its own.

    python tests/benchmarks/checkouts.py OLD NEW [--rounds 3] [--data shared/data]

The script calls `options` and `Training` (`epoch`, `test`, `examples`) of a checkout's ours.py, and sets `DATA` in its
harness.py. Nothing else should run on the machine: where threads wait for one another, some steps are ten times slower.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from identity import environment

# Each row: experiment, overrides, and whether training is measured instead of testing.
ROWS = {
    "SST-2 training": ("sst2", ["data.limit.train=240"], True),
    "SST-2 classification": ("sst2", ["tuning=lora", "data.limit.train=16", "data.limit.test=480"], False),
    "Multi30k generation": (
        "multi30k",
        ["data.limit.train=16", "data.limit.test=192", "task.generation.max_new_tokens=40"],
        False,
    ),
}
PASSES = 2  # passes over the examples; one more goes first uncounted, which chooses kernels and allocates memory


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder of the real data (default: ../shared/data of a checkout)")
    arguments = parser.parse_args()
    sides = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    folders = [Path(__file__).parents[3], *(checkout.parent for checkout in sides.values())]
    candidates = (folder / "shared" / "data" for folder in folders)
    data = arguments.data or next(filter(Path.is_dir, candidates), None)
    if not data or not data.is_dir():
        parser.error("the real data is not there: --data=<folder>")
    rates = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        variables = {side: environment(checkout, Path(temporary, side)) for side, checkout in sides.items()}
        for number in range(arguments.rounds):
            for row in ROWS:
                for side, checkout in sides.items():
                    rates[row, side].append(rate(row, checkout, data.resolve(), variables[side]))
                    progress = f"round {number + 1}, {row}, {side}: {rates[row, side][-1]:.4g} examples/s"
                    print(progress, file=sys.stderr, flush=True)
    print(f"old: {sides['old']}, new: {sides['new']}")
    print(f"examples/s, median (lowest to highest) of {arguments.rounds} rounds\n")
    print("| measure | old | new | new / old |\n| --- | --- | --- | --- |")
    for row in ROWS:
        old, new = rates[row, "old"], rates[row, "new"]
        ratios = [after / before for before, after in zip(old, new, strict=True)]
        ratio = statistics.median(new) / statistics.median(old)
        spread = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        values = [f"{statistics.median(side):.4g} ({min(side):.4g} to {max(side):.4g})" for side in (old, new)]
        print(f"| {row} | {' | '.join(values)} | {spread} |")


def rate(row: str, checkout: Path, data: Path, variables: dict[str, str]) -> float:
    """Examples a second of a row, measured in a process of its own."""
    command = [sys.executable, __file__, "measure", row, str(checkout), str(data)]
    folder = variables["GPTASK_CACHE"]
    Path(folder).mkdir(exist_ok=True)
    process = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} (code {process.returncode})\n{process.stderr[-3000:]}")
    return float(process.stdout.splitlines()[-1])


def measure(row: str, checkout: Path, data: Path) -> float:
    """Examples a second of a row, by the benchmark code of a checkout."""
    sys.path.insert(0, str(checkout / "tests" / "benchmarks"))
    import harness

    harness.DATA = data  # ours.py imports it from there
    from ours import Training, options

    experiment, overrides, train = ROWS[row]
    training, folder = Training(options(experiment, *overrides)), Path(tempfile.mkdtemp(dir="."))

    def one_pass() -> int:
        if not train:
            return training.test(folder)
        training.epoch(folder)
        return len(training.examples)

    one_pass()
    start = time.perf_counter()
    return sum(one_pass() for _ in range(PASSES)) / (time.perf_counter() - start)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
    else:
        main()
