"""A command that is killed at any point and started again leaves what it leaves undisturbed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.leftovers import differences

KILL = Path(__file__).with_name("kill.py")


def kill(tmp_path: Path, kills: int, *options: str) -> list[dict]:
    output = tmp_path / "kill.jsonl"
    command = [sys.executable, str(KILL), f"--kills={kills}", f"--output={output}", *options]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert process.returncode == 0, process.stdout + process.stderr[-2000:]
    trials = [json.loads(line) for line in output.read_text().splitlines()]
    assert sum(len(trial["kills"]) for trial in trials) >= kills
    return trials


@pytest.mark.slow
def test_six_kills(tmp_path: Path) -> None:
    kill(tmp_path, 6, "--cases=steps", "--workers=1")


@pytest.mark.long
def test_thirty_kills_of_every_case(tmp_path: Path) -> None:
    kill(tmp_path, 30)


def test_the_comparison_finds_what_differs(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in one, other:
        (folder / "model").mkdir(parents=True)
        (folder / "model/weights.safetensors").write_bytes(b"weights")
        (folder / "metrics.json").write_text('{"n": 1, "wall_seconds": 1}')
    (other / "metrics.json").write_text('{"n": 2, "wall_seconds": 3}')
    (other / "model/weights.safetensors").write_bytes(b"weighty")
    (other / "config.yaml.part").touch()
    found = list(differences(one, other))
    assert found[:3] == [
        "config.yaml.part is left", "metrics.json differs in ['n']", "model/weights.safetensors has other content",
    ]  # fmt: skip
    assert "unfinished" in found[3]
