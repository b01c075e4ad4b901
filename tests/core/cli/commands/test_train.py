"""`gptask train` as a process that is told to stop."""

import re
import shlex
import signal
import subprocess
import sys

import pytest

COMMAND = shlex.split(
    """
    train task=sentiment backbone=nano tuning=full backbone.n_layer=1 backbone.n_embd=32 data.limit.train=256
    trainer.max_epochs=2 trainer.accelerator=cpu checkpoint.minutes=0
"""
)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "line", ["train: ", "run folder: ", "expected: ", " step 1/", " val/loss ", "best checkpoint: "]
)
def test_a_stop_in_any_phase_says_how_to_go_on(line, number, tmp_path):
    stopped = subprocess.Popen(
        [sys.executable, "-m", "gptask", *COMMAND, f"folder={tmp_path}/run"], stderr=subprocess.PIPE, text=True
    )
    assert stopped.stderr
    lines = []
    for text in stopped.stderr:
        lines.append(text)
        if line in text:
            stopped.send_signal(number)
            break
    rest = stopped.stderr.read()
    output = "".join(lines) + rest
    assert stopped.wait(timeout=60) == 128 + number, output
    assert "Traceback" not in output
    message = rest[rest.index("gptask: stopped") :]
    assert ("SIGTERM" in message) == (number == signal.SIGTERM)
    command = re.search(r"gptask (train resume=\S+)|the same command begins again", message)
    assert command, message
    again = shlex.split(command[1]) if command[1] else [*COMMAND, f"folder={tmp_path}/run"]
    if "No checkpoint" in message and command[1]:
        return  # an early stop, from which resume= begins anew
    done = subprocess.run([sys.executable, "-m", "gptask", *again], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/manifest.json").exists()
