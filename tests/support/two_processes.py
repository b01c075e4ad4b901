"""Runs a command line of gptask in two processes, in one of which something happens at a place that is named.

    FAULT="<place> <rank> <event>" FAULT_FOLDER=<folder> python two_processes.py <verb> [option=value ...]

The folder gets a file with the number of each process, and the time of the event. Run by `tests.support.faults`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RANK = os.environ.get("LOCAL_RANK", "0")
FOLDER, (PLACE, VICTIM, EVENT) = Path(os.environ["FAULT_FOLDER"]), os.environ["FAULT"].split(" ", 2)
happened = []


def happen() -> None:
    (FOLDER / "event").write_text(str(time.time()))
    if EVENT.startswith("group-"):
        os.killpg(0, signal.Signals[EVENT.removeprefix("group-")])
    elif EVENT.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[EVENT])
    elif EVENT == "exit":
        os._exit(3)
    elif EVENT == "error":
        raise ValueError("a plugin is broken")
    elif EVENT == "bad data":
        from gptask.errors import UserError

        raise UserError("the data is bad")


def reached(place: str, pause: float = 0.0) -> None:
    if place == PLACE and RANK == VICTIM and not happened:
        happened.append(place)
        happen()
    time.sleep(pause if happened or place == PLACE else 0)


def at(owner: Any, name: str, place: str, call: int = 1, pause: float = 0.0, after: bool = False) -> None:
    """Let the event happen in the n-th call of a method, and from there on pause in each."""
    original: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def changed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if not after and len(calls) >= call:
            reached(place, pause)
        result = original(*args, **kwargs)
        if after and len(calls) >= call:
            reached(place, pause)
        return result

    setattr(owner, name, changed)


def record_gradients(path: Path) -> None:
    """Write the gradients of each optimizer step, as the optimizer gets them, in rank 0."""
    import torch
    from gptask.training.module import GPTModule

    clip: Callable[..., Any] = GPTModule.configure_gradient_clipping
    steps: list[dict[str, Any]] = []

    def recorded(module: Any, *args: Any, **kwargs: Any) -> None:
        steps.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
        if RANK == "0":
            torch.save(steps, path)
        clip(module, *args, **kwargs)

    GPTModule.configure_gradient_clipping = recorded  # type: ignore[method-assign]


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules have names of libraries
    (FOLDER / f"pid-{RANK}").write_text(str(os.getpid()))
    reached("start")

    from gptask.cli import main
    from gptask.training.checkpoints import DurableCheckpointIO
    from gptask.training.module import GPTModule
    from pytorch_lightning.strategies import DDPStrategy

    at(DDPStrategy, "setup_environment", "join")
    at(GPTModule, "training_step", "step", call=4, pause=0.05)
    at(GPTModule, "configure_gradient_clipping", "optimizer", call=4, after=True)
    at(GPTModule, "validation_step", "validation", pause=0.1)
    at(GPTModule, "test_step", "test", pause=0.1)
    at(DurableCheckpointIO, "save_checkpoint", "save", pause=0.1)
    at(DDPStrategy, "save_checkpoint", "saved", after=True)
    if gradients := os.environ.get("GRADIENTS"):
        record_gradients(Path(gradients))
    main()
