"""The plugin contract, executed: `check_task` is what gptask's own tests and a plugin author's call.

Stable are the names in ``__all__``. A minor version of the contract may add clauses: then a check says more than before
of a task that is used as before.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from gptask.plugins.isolation import isolated
from gptask.plugins.source_location import class_location, class_source
from gptask.plugins.task import Task
from gptask.testing.clauses import STAGES, Clause, NotApplicable
from gptask.testing.trial import Trial

__all__ = ["ContractError", "Result", "check_results", "check_task"]


class ContractError(AssertionError):
    """A task breaks the contract. ``failures``: clause -> what was expected, what was found, where to look."""

    def __init__(self, task: Task, failures: dict[str, str]) -> None:
        self.failures = failures
        kind = type(task)
        lines = [f"{kind.__module__}.{kind.__name__} ({class_location(kind)}) breaks the plugin contract:"]
        super().__init__("\n".join([*lines, *(f"  {name}: {why}" for name, why in failures.items())]))


@dataclass
class Result:
    """What became of a clause: ``ok``, ``failed``, ``does not apply``, or ``not run`` (it rests on one that failed)."""

    clause: str
    outcome: str
    message: str = ""  # of a failure: what was expected, what was found, where to look
    error: BaseException | None = None


def check_task(task: Task | type[Task]) -> list[str]:
    """Run the plugin contract on a tiny random GPT-2 in fp32; return the names of the clauses that were run.

    The instance is not changed, and nothing is left on disk. Clauses that rest on a failed one are not run; the others
    all are, so that an author sees everything at once. Raises `ContractError`.
    """
    task = task() if isinstance(task, type) else deepcopy(task)
    found = list(check_results(task))
    if failed := [result for result in found if result.outcome == "failed"]:
        raise ContractError(task, {result.clause: result.message for result in failed}) from failed[0].error
    return [result.clause for result in found if result.outcome == "ok"]


def check_results(task: Task) -> Iterator[Result]:
    """The same, clause by clause as they are run; the task may be changed (`Task.prepare`)."""
    with _apart():
        trial, failed = Trial(task), False
        for stage in STAGES:
            found = []
            for clause in stage:
                found.append(Result(clause.__name__, "not run") if failed else _result(clause, trial))
                yield found[-1]
            failed = failed or any(result.outcome == "failed" for result in found)


def _result(clause: Clause, trial: Trial) -> Result:
    with isolated() as pressed:
        try:
            clause(trial)
        except NotApplicable:
            return Result(clause.__name__, "does not apply")
        except BaseException as error:  # whatever a plugin raises is its author's to read
            if pressed:
                raise
            return Result(clause.__name__, "failed", _told(error, trial.task), error)
    return Result(clause.__name__, "ok")


def _told(error: BaseException, task: Task) -> str:
    """What a clause says, or what the plugin raised and where: in the task's own file, if it passed there."""
    if type(error) is AssertionError:
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == class_source(type(task))[0]]
    frame = (own or frames)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


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
