"""`gptask sweep`: run trials, each a training with options that Optuna chose, until there are enough."""

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
from gptask.errors import UserError, writing
from gptask.plugins.discovery import plugin_of
from gptask.runs.atomic_write import write_json
from gptask.training.fingerprint import NOT_DECISIVE, run_fingerprint
from gptask.training.sweep.space import Dimension
from gptask.training.sweep.study import Study, lock_study

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("gptask")
MAX_FAILURES = 3  # trials that fail one after another before the sweep stops


@dataclass
class SweepPlan:
    """What a command line asks for; ``configure`` builds the config of overrides, ``report`` shows an error."""

    space: list[Dimension]
    fixed: list[str]  # overrides of every trial, as the user typed them
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
    with writing(folder, lambda: "The same command goes on with the study."), lock_study(folder):
        study = Study(folder, plan.space, study_definition(plan, first), plan.sampler, plan.pruner, first.seed)
        if study.done < plan.trials:
            log.info("study: %s, %d of %d trials done", folder, study.done, plan.trials)
            study.requeue_unfinished()
            _run_trials(plan, study)
    return study


def study_definition(plan: SweepPlan, first: Train) -> dict[str, Any]:
    """What has to be the same for all trials of a study, so that their values can be compared."""
    main_metric = first.task.metrics()[0]
    if main_metric.higher_is_better is None:
        raise UserError(f"{main_metric.name}, the task's main metric, has no direction: there is nothing to search for")
    return {
        "task": plugin_of(first.task).name,
        "metric": main_metric.name,
        "direction": "maximize" if main_metric.higher_is_better else "minimize",
        "space": {d.key: str(d) for d in plan.space},
        "fixed": deciding_overrides(plan.fixed),
    }


def deciding_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that change the result of a training."""
    return [override for override in overrides if override.partition("=")[0].split(".")[0] not in NOT_DECISIVE]


def _run_trials(plan: SweepPlan, study: Study) -> None:
    deadline = time.monotonic() + 60 * plan.minutes if plan.minutes else float("inf")
    failures = 0
    while study.done < plan.trials:
        if time.monotonic() > deadline:
            log.info("--timeout: %d of %d trials are done; the same command runs the others", study.done, plan.trials)
            return
        if not (trial := study.ask()):
            log.info("every point of the grid has been tried: %d trials", study.done)
            return
        failures = 0 if _run_trial(plan, study, trial) else failures + 1
        if failures == MAX_FAILURES:
            raise UserError(f"{MAX_FAILURES} trials failed one after another. The same command tries each once more")


def _run_trial(plan: SweepPlan, study: Study, trial: optuna.Trial) -> bool:
    """Run a trial and record its end in the study; return False if it failed."""
    import optuna

    name = f"trial {trial.number}"
    chosen_overrides = study.overrides(trial.params)
    log.info("%s: %s", name, " ".join(chosen_overrides))
    state, value = optuna.trial.TrialState.FAIL, None
    try:
        value = _trial_value(plan, study, trial, [*plan.fixed, *chosen_overrides])
        state = optuna.trial.TrialState.COMPLETE
        log.info("%s: %s %.4f", name, study.about["metric"], value)
    except optuna.TrialPruned as pruned:
        state = optuna.trial.TrialState.PRUNED
        log.info("%s: pruned: %s", name, pruned)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"stopped in {name}. The same command goes on with the study {study.folder}") from stop
    except Exception as error:
        trial.set_user_attr("error", str(error)[:500] or type(error).__name__)
        plan.report(error, f"{name}: ")
    finally:
        study.optuna.tell(trial, value, state)
    gc.collect()  # Lightning's reference cycles hold the model
    return state != optuna.trial.TrialState.FAIL


def _trial_value(plan: SweepPlan, study: Study, trial: optuna.Trial, overrides: Sequence[str]) -> float:
    """The best validation value of a trial, from its training or from an earlier trial that did the same."""
    config = plan.configure(overrides)
    if finished := study.find_finished(run_fingerprint(config)):
        folder, value = finished
        log.info("trial %d: the same training has been done in %s", trial.number, folder)
        trial.set_user_attr("folder", str(folder))
        return value
    config.folder = str(study.trial_folder(trial.number))
    # only the first trial estimates its cost and scores the baselines, which are the same for all
    config.probe, config.baseline = config.probe and not study.done, config.baseline and not study.done
    trial.set_user_attr("folder", config.folder)
    original_argv = sys.argv
    sys.argv = [original_argv[0], "train", *overrides]  # what Lightning starts further processes with
    command = shlex.join(["gptask", *sys.argv[1:]])
    try:
        return study.best_value(_train(config, trial, study.about["metric"], command))
    finally:
        sys.argv = original_argv


def _train(config: Train, trial: optuna.Trial, metric: str, command: str) -> list[float]:
    """Train, and return the metric of every validation; pruned.json marks the folder of a pruned run.

    A training that diverges is pruned: it says that its options are bad, not that the sweep is.
    """
    import optuna

    from gptask.training.divergence import TrainingDiverged
    from gptask.training.sweep.pruning_callback import OptunaPruning
    from gptask.training.train import train

    pruning = OptunaPruning(trial, metric)
    try:
        try:
            train(config, [pruning], command)
        except TrainingDiverged as error:
            raise optuna.TrialPruned(str(error)) from error
    except optuna.TrialPruned as pruned:
        facts = {"trial": trial.number, "metric": f"val/{metric}", "values": pruning.values, "why": str(pruned)}
        write_json(Path(str(config.folder)) / "pruned.json", facts)
        raise
    return pruning.values
