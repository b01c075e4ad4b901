"""The plugin contract, executed: `check_task` is what gptask's own tests and a plugin author's call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

from gptask.task import Task
from gptask.testing.clauses import STAGES, NotApplicable
from gptask.testing.trial import Trial

__all__ = ["ContractError", "check_task"]


class ContractError(AssertionError):
    """A task breaks the contract. ``failures``: clause -> what was expected, what was found, where to look."""

    def __init__(self, task: Task, failures: dict[str, str]) -> None:
        self.failures = failures
        lines = [f"{type(task).__module__}.{type(task).__name__} breaks the plugin contract:"]
        super().__init__("\n".join([*lines, *(f"  {name}: {why}" for name, why in failures.items())]))


def check_task(task: Task | type[Task]) -> list[str]:
    """Run the plugin contract on a tiny random GPT-2 in fp32; return the names of the clauses that were run.

    The instance is not changed, and nothing is left on disk. Clauses that rest on a failed one are not run; the others
    all are, so that an author sees everything at once. Raises `ContractError`.
    """
    task = task() if isinstance(task, type) else deepcopy(task)
    run: list[str] = []
    with _apart():
        trial = Trial(task)
        for stage in STAGES:
            failures: dict[str, Exception] = {}
            for clause in stage:
                try:
                    clause(trial)
                except NotApplicable:
                    continue
                except Exception as error:  # whatever a plugin raises is its author's to read
                    failures[clause.__name__] = error
                run.append(clause.__name__)
            if failures:
                told = {name: _told(error) for name, error in failures.items()}
                raise ContractError(task, told) from next(iter(failures.values()))
    return run


def _told(error: Exception) -> str:
    if type(error) is AssertionError:
        return str(error)
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f" ({Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno})" if place else ""
    return f"{type(error).__name__}: {error}{where}"


@contextmanager
def _apart() -> Iterator[None]:
    """A cache of its own and one thread (more only wait for each other on so small a model); both put back after."""
    import torch

    old, threads = os.environ.get("GPTASK_CACHE"), torch.get_num_threads()
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        os.environ["GPTASK_CACHE"] = folder
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            os.environ.pop("GPTASK_CACHE")
            os.environ.update({} if old is None else {"GPTASK_CACHE": old})
