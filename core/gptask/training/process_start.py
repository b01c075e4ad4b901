"""Starts the processes of a run on one machine, and lets them meet those that another launcher starts."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from gptask.errors import UserError
from gptask.training import private
from gptask.training.process_threads import MainWatch, MemberWatch, WaitingWatch
from gptask.training.process_watch import ADDRESS, begin_watch, current_watch, hint
from gptask.training.trainer import build_trainer

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")  # as Lightning reads them
_started: list[subprocess.Popen[bytes]] = []  # by an earlier run of this process


def expect_processes(options: dict[str, Any]) -> int:
    """The number of processes of a trainer with these options; they may wait for each other from here on."""
    trainer = build_trainer(Path(), options, logger=False)
    _forget_ended()
    if trainer.world_size > 1 and current_watch() is None and _has_launcher(trainer):
        begin_watch(WaitingWatch(trainer.global_rank, hint))
    return int(trainer.world_size)


def _has_launcher(trainer: pl.Trainer) -> bool:
    """Whether another program, or Lightning in each of several machines, starts the processes."""
    environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    return environment.creates_processes_externally or trainer.num_nodes > 1


def start_processes(trainer: pl.Trainer) -> None:
    """Start the other processes of a trainer that has several, unless a launcher did, and watch over them.

    They run the command of this process again. Lightning would start them, too, and end this process by SIGKILL when
    one of them dies. Raises `UserError` where there is no command.
    """
    if trainer.world_size == 1:
        return
    _forget_ended()
    private.keep_signal_handlers(trainer)
    environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    has_launcher, is_member = _has_launcher(trainer), isinstance(current_watch(), MemberWatch)
    trainer.callbacks.insert(0, StopTogether(has_launcher and not is_member))  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        begin_watch(watch := MainWatch(environment.main_address, hint))
        if not has_launcher:
            _start_commands(trainer, watch, environment)
    elif not is_member:
        begin_watch(WaitingWatch(trainer.global_rank, hint))


class StopTogether(pl.Callback):
    """Tells the watch where the training is; processes that did not start one another meet through it."""

    def __init__(self, meets: bool) -> None:
        self.meets = meets

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Connect to rank 0, once all processes can talk to each other."""
        if not self.meets:
            return
        self.meets = False
        watch = current_watch()
        address = trainer.strategy.broadcast(watch.address if isinstance(watch, MainWatch) else "")
        if not trainer.is_global_zero:
            begin_watch(MemberWatch(trainer.global_rank, address, hint))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """From here on, what has to be saved is saved."""
        if watch := current_watch():
            watch.leaving()


def _start_commands(trainer: pl.Trainer, watch: MainWatch, environment: Any) -> None:
    os.environ |= {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": str(environment.node_rank()),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(trainer.world_size),
    }
    command = _command_of_this_process()
    for rank in range(1, trainer.world_size):
        variables = os.environ | {"LOCAL_RANK": str(rank), ADDRESS: watch.address}
        watch.processes[rank] = subprocess.Popen(command, env=variables)
    if not _started:
        atexit.register(_end_started)
    _started.extend(watch.processes.values())


def _end_started() -> None:
    """Leave no process behind at the end of this one."""
    for process in _started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def _command_of_this_process() -> list[str]:
    """The command that runs this program again. Raises `UserError` where it is no file and no module."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return [sys.executable, "-m", spec.name, *sys.argv[1:]]
    if not Path(sys.argv[0]).is_file():
        raise UserError(
            "several processes run one program again, and this one is not in a file: write it into one, or set "
            "trainer.devices=1"
        )
    return [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]]


def _forget_ended() -> None:
    """Begin anew where the processes of an earlier run have ended, as those of a command line do.

    Those of a script go along with it from run to run.
    """
    if not _started:
        return
    for process in _started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)
    if all(process.poll() is not None for process in _started):
        _started.clear()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in VARIABLES:
            os.environ.pop(name, None)
