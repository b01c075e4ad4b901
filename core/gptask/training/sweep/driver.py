"""`gptask sweep`: ask Optuna for options, train with them, tell it how validation went; until there are enough."""

from __future__ import annotations

import gc
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.schemas import Train
from gptask.errors import UserError
from gptask.plugins.discovery import plugin_of
from gptask.runs.atomic_write import write_json
from gptask.runs.config_file import started_by
from gptask.training.fingerprint import NOT_DECISIVE, run_fingerprint
from gptask.training.sweep.space import Dimension
from gptask.training.sweep.study import Study, lock_study

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("gptask")
PATIENCE = 3  # trials that may fail one after another


@dataclass
class SweepPlan:
    """What a command line asks for; ``configure`` makes the config of overrides, ``report`` writes an error down."""

    space: list[Dimension]
    fixed: list[str]  # overrides of every trial, as they were typed
    name: str
    trials: int
    sampler: str
    pruner: str
    minutes: float | None
    configure: Callable[[Sequence[str]], Train]
    report: Callable[[Exception, str], int]


def run_sweep(plan: SweepPlan, first: Train) -> Study:
    """Run trials until ``plan.trials`` are complete or pruned; ``first`` is the config of one of them."""
    folder = Path(first.outputs) / "sweeps" / plan.name
    with lock_study(folder):
        study = Study(folder, plan.space, about(plan, first), plan.sampler, plan.pruner, first.seed)
        if study.done < plan.trials:
            log.info("study: %s, %d of %d trials done", folder, study.done, plan.trials)
            study.mend()
            _search(plan, study)
    return study


def about(plan: SweepPlan, first: Train) -> dict[str, Any]:
    """What makes two values of a study comparable."""
    main = first.task.metrics()[0]
    if main.higher_is_better is None:
        raise UserError(f"{main.name}, the task's main metric, has no direction: there is nothing to search for")
    return {
        "task": plugin_of(first.task).name,
        "metric": main.name,
        "direction": "maximize" if main.higher_is_better else "minimize",
        "space": {d.key: str(d) for d in plan.space},
        "fixed": deciding(plan.fixed),
    }


def deciding(overrides: Sequence[str]) -> list[str]:
    """The overrides that make a result what it is."""
    return [override for override in overrides if override.partition("=")[0].split(".")[0] not in NOT_DECISIVE]


def _search(plan: SweepPlan, study: Study) -> None:
    end = time.monotonic() + 60 * plan.minutes if plan.minutes else float("inf")
    failures = 0
    while study.done < plan.trials:
        if time.monotonic() > end:
            log.info("--timeout: %d of %d trials are done; the same command goes on", study.done, plan.trials)
            return
        if not (trial := study.ask()):
            log.info("the grid is done: %d trials", study.done)
            return
        failures = 0 if _try(plan, study, trial) else failures + 1
        if failures == PATIENCE:
            raise UserError(f"{PATIENCE} trials failed one after another. The same command tries each once more")


def _try(plan: SweepPlan, study: Study, trial: optuna.Trial) -> bool:
    """Run a trial and tell the study; return whether it counts."""
    import optuna

    place = f"trial {trial.number}"
    chosen = study.overrides(trial.params)
    log.info("%s: %s", place, " ".join(chosen))
    state, value = optuna.trial.TrialState.FAIL, None
    try:
        value = _value(plan, study, trial, [*plan.fixed, *chosen])
        state = optuna.trial.TrialState.COMPLETE
        log.info("%s: %s %.4f", place, study.about["metric"], value)
    except optuna.TrialPruned as pruned:
        state = optuna.trial.TrialState.PRUNED
        log.info("%s: pruned at %s", place, pruned)
    except (KeyboardInterrupt, SystemExit) as stop:  # Lightning turns Ctrl-C into exit(1)
        raise KeyboardInterrupt(f"stopped in {place}. The same command goes on with the study {study.folder}") from stop
    except Exception as error:
        trial.set_user_attr("error", str(error)[:500] or type(error).__name__)
        plan.report(error, f"{place}: ")
    finally:
        study.optuna.tell(trial, value, state)
    gc.collect()  # Lightning's cycles hold the model
    return state != optuna.trial.TrialState.FAIL


def _value(plan: SweepPlan, study: Study, trial: optuna.Trial, overrides: Sequence[str]) -> float:
    """The best validation of a trial, trained or known."""
    config = plan.configure(overrides)
    if known := study.known(run_fingerprint(config)):
        log.info("trial %d: the same job has been done in %s", trial.number, known[0])
        trial.set_user_attr("folder", str(known[0]))
        return known[1]
    config.folder = str(study.home(trial.number))
    config.probe = config.probe and not study.done  # once is enough
    trial.set_user_attr("folder", config.folder)
    before = sys.argv
    sys.argv = [before[0], "train", *overrides]  # what Lightning starts further processes with
    line = started_by.set(shlex.join(["gptask", *sys.argv[1:]]))
    try:
        return study.best(_train(config, trial, study.about["metric"]))
    finally:
        sys.argv = before
        started_by.reset(line)


def _train(config: Train, trial: optuna.Trial, metric: str) -> list[float]:
    """Train, and return what the validations gave; a pruned run's folder says that it is one."""
    import optuna

    from gptask.training.sweep.pruning_callback import OptunaPruning
    from gptask.training.train import train

    watch = OptunaPruning(trial, metric)
    try:
        train(config, [watch])
    except optuna.TrialPruned as pruned:
        said = {"trial": trial.number, "metric": f"val/{metric}", "values": watch.values, "why": str(pruned)}
        write_json(Path(str(config.folder)) / "pruned.json", said)
        raise
    return watch.values
