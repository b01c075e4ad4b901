"""What a training forecasts of its cost, beside what it then takes: the presets' five tasks, on parts of their data.

``python tests/benchmarks/forecast.py [preset ...]`` takes some 12 minutes on two cores, and prints a table.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMITS = {  # examples of train, validation and test
    "sst2": (6000, 600, 872),
    "trec": (1500, 300, 300),
    "multi30k": (4000, 100, 300),
    "dialogsum": (300, 50, 100),
    "xquad_en": (800, 100, 300),
}
EXPECTED = re.compile(r"expected: (?P<minutes>[\d.]+) minutes from here \(.*?\), peak memory about (?P<memory>\d+) MB")


def measure(preset: str) -> dict[str, float]:
    """Minutes and megabytes of one training, as forecast and as taken after the forecast."""
    train, validation, test = LIMITS[preset]
    with tempfile.TemporaryDirectory() as outputs:
        folder = Path(outputs) / "run"
        command = [sys.executable, "-m", "gptask", "train", f"experiment={preset}", f"folder={folder}"]
        command += [f"data.limit.train={train}", f"data.limit.validation={validation}", f"data.limit.test={test}"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        forecast, start = None, 0.0
        for line in process.stderr:
            sys.stderr.write(line)
            if match := EXPECTED.search(line):
                forecast, start = match, time.time()
        if process.wait() or forecast is None:
            raise SystemExit(f"{preset}: the training failed, or made no forecast")
        taken = (time.time() - start) / 60
        memory = json.loads((folder / "metrics.json").read_text())["peak_memory_mb"]
    return {"minutes": float(forecast["minutes"]), "taken": taken, "mb": float(forecast["memory"]), "peak_mb": memory}


def main() -> None:
    """Print the table."""
    rows = {preset: measure(preset) for preset in sys.argv[1:] or LIMITS}
    print(
        "| preset | minutes: forecast | taken | ratio | MB: forecast | taken | ratio |\n|---|---|---|---|---|---|---|"
    )
    for preset, row in rows.items():
        time_ratio, memory_ratio = row["minutes"] / row["taken"], row["mb"] / row["peak_mb"]
        cells = [f"{row['minutes']:.1f}", f"{row['taken']:.1f}", f"{time_ratio:.2f}"]
        cells += [f"{row['mb']:.0f}", f"{row['peak_mb']:.0f}", f"{memory_ratio:.2f}"]
        print(f"| {preset} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
