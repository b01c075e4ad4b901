"""The plugin contract, executed: gptask's own tests and a plugin author's tests call `check_task`.

The names in ``__all__`` are stable. A minor version of the contract may add clauses, which may fail for a task that can
still be used.
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

from gptask.errors import Terminated
from gptask.plugins.isolation import isolated
from gptask.plugins.source_location import class_location, class_source
from gptask.plugins.task import Task
from gptask.testing.clauses import ON_BOTH_ENGINES, STAGES, Clause
from gptask.testing.expectations import NotApplicable
from gptask.testing.trial import Trial

__all__ = ["ContractError", "Result", "check_results", "check_task"]


class ContractError(AssertionError):
    """A task breaks the contract. ``failures``: clause -> what was expected, what was found, where to look."""

    def __init__(self, task: Task, failures: dict[str, str]) -> None:
        self.failures = failures
        cls = type(task)
        title = f"{cls.__module__}.{cls.__name__} ({class_location(cls)}) breaks the plugin contract:"
        super().__init__("\n".join([title, *(f"  {clause}: {message}" for clause, message in failures.items())]))


@dataclass
class Result:
    """The outcome of a clause: ``ok``, ``failed``, ``does not apply``, or ``not run`` (an earlier stage failed)."""

    clause: str
    outcome: str
    message: str = ""  # for a failure: what was expected, what was found, where to look
    error: BaseException | None = None


def check_task(task: Task | type[Task]) -> list[str]:
    """Run the plugin contract on a tiny random GPT-2 in fp32, on both engines; return the names of the passed clauses.

    The instance is not changed, and nothing is left on disk. After a failure the clauses of later stages, which depend
    on it, are skipped; those of the same stage all run, so that an author sees every failure at once. Raises
    `ContractError`.
    """
    task = task() if isinstance(task, type) else deepcopy(task)
    results = list(check_results(task))
    if failed := [result for result in results if result.outcome == "failed"]:
        raise ContractError(task, {result.clause: result.message for result in failed}) from failed[0].error
    return [result.clause for result in results if result.outcome == "ok"]


def check_results(task: Task) -> Iterator[Result]:
    """Yield the result of each clause as soon as it has run."""
    with _temporary_process_state():
        trial, failed = Trial(task), False
        for stage in STAGES:
            results = []
            for clause in stage:
                result = Result(clause.__name__, "not run") if failed else _run_clause(clause, trial)
                if result.outcome == "ok" and clause in ON_BOTH_ENGINES:
                    result = _run_clause(clause, trial.on_reference_engine)
                    result.message = result.message and f"on the reference engine: {result.message}"
                results.append(result)
                yield result
            failed = failed or any(result.outcome == "failed" for result in results)


def _run_clause(clause: Clause, trial: Trial) -> Result:
    with isolated() as pressed:
        try:
            clause(trial)
        except NotApplicable:
            return Result(clause.__name__, "does not apply")
        except BaseException as error:  # whatever a plugin raises is a failure that its author must see
            if pressed or isinstance(error, Terminated):
                raise
            return Result(clause.__name__, "failed", _failure_message(error, trial.task), error)
    return Result(clause.__name__, "ok")


def _failure_message(error: BaseException, task: Task) -> str:
    """Return a clause's own message, or the plugin's exception with its line, in the task's own file if possible."""
    if type(error) is AssertionError:
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    task_frames = [frame for frame in frames if frame.filename == class_source(type(task))[0]]
    frame = (task_frames or frames)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


@contextmanager
def _temporary_process_state() -> Iterator[None]:
    """Use an empty cache folder, one thread (more are slower on so small a model) and a fork of the random state."""
    import torch

    cache, threads = os.environ.get("GPTASK_CACHE"), torch.get_num_threads()
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        os.environ["GPTASK_CACHE"] = folder
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            os.environ.pop("GPTASK_CACHE")
            os.environ.update({} if cache is None else {"GPTASK_CACHE": cache})
