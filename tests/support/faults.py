"""What happens to a run of two processes in one of which something happens."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).with_name("two_processes.py")
TINY = [
    "train",
    "task=sentiment",
    "backbone=nano",
    "backbone.n_layer=1",
    "backbone.n_embd=16",
    "backbone.n_head=2",
    "backbone.context=128",
    "backbone.vocab_size=300",
    "backbone.dropout=0.1",
    "data.limit.train=48",
    "data.limit.validation=20",
    "data.limit.test=40",
    "data.batch_size=4",
    "data.eval_batch_size=4",
    "probe=false",
    "baseline=false",
    "trainer.max_epochs=3",
    "trainer.accumulate_grad_batches=1",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
]
NOTHING = "nowhere 0 nothing"
Sender = Callable[["subprocess.Popen[bytes]"], None]
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


@dataclass
class Ended:
    """How a run ended, and how long after the event."""

    code: int
    output: str
    seconds: float


def run_with(tmp_path: Path, event: str, *options: str, send: Sender | None = None, **variables: str) -> Ended:
    """Run a command in two processes with an event: a place, a rank and what happens there, or what ``send`` does.

    Without ``options`` it trains in the folder ``run``. Fails where one of the processes stays.
    """
    arguments = [sys.executable, str(PROGRAM), *(options or [*TINY, *TWO, f"folder={tmp_path / 'run'}"])]
    environment = os.environ | {"FAULT": event, "FAULT_FOLDER": str(tmp_path)} | variables
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            if send:
                send(process)
            return wait_for_end(tmp_path, process)
        finally:
            for pid in pids(tmp_path):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def wait_for_end(folder: Path, process: "subprocess.Popen[bytes]") -> Ended:
    """Wait until all processes have ended. Their own limit is 10 seconds; a busy machine gets more."""
    code, ended = process.wait(240), time.time()
    while any(map(is_alive, pids(folder))):
        assert time.time() < ended + 60, "a process stays"
        time.sleep(0.05)
    seconds = time.time() - float((folder / "event").read_text()) if (folder / "event").exists() else 0.0
    return Ended(code, (folder / "output").read_text(), seconds)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait for something that another process does."""
    limit = time.time() + 200
    while not condition():
        assert time.time() < limit
        time.sleep(0.05)


def pids(folder: Path) -> list[int]:
    """The processes that have begun."""
    return [int(path.read_text() or 0) for path in folder.glob("pid-*")]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
