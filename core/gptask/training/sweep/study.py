"""An Optuna study in a SQLite file, and how it goes on after an interruption."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.errors import UserError, listing
from gptask.training import fingerprint
from gptask.training.sweep.space import Dimension

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "hyperband", "none")


@contextmanager
def lock_study(folder: Path) -> Iterator[None]:
    """Keep a second sweep out of a study's folder: it would take the first one's running trial for a killed one.

    Raises `UserError` where another sweep holds the lock.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another gptask sweep is at work in {folder}: wait, or take another --study") from error
        yield


class Study:
    """The trials of a search; ``about`` defines what is searched, and must stay the same while the study grows."""

    def __init__(
        self,
        folder: Path,
        space: Sequence[Dimension],
        about: dict[str, Any],
        sampler: str,
        pruner: str,
        seed: int,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.space, self.about, self.grid = folder, space, about, sampler == "grid"
        file = folder / "study.db"
        if not file.exists() and any(folder.glob("trial_*")):
            raise UserError(f"{folder} holds trials, but their study.db is gone; take another --study")
        self.optuna = optuna.create_study(
            storage=f"sqlite:///{file}", study_name=folder.name, direction=about["direction"], load_if_exists=True
        )
        self._check_definition(self.optuna.user_attrs.get("about", about))
        self.optuna.set_user_attr("about", about)
        seed += len(self.trials)  # with the first seed again, a resumed study would repeat its first trials
        sampler_class = optuna.samplers.TPESampler if sampler == "tpe" else optuna.samplers.RandomSampler
        self.optuna.sampler = sampler_class(seed=seed)
        self.optuna.pruner = {
            "median": optuna.pruners.MedianPruner,
            "hyperband": optuna.pruners.HyperbandPruner,
            "none": optuna.pruners.NopPruner,
        }[pruner]()

    def _check_definition(self, stored: dict[str, Any]) -> None:
        """Raise `UserError` where the study in the folder is of another search."""
        differences = [
            f"{name} was {stored.get(name)!r} and is {self.about[name]!r}"
            for name in self.about
            if stored.get(name) != self.about[name]
        ]
        if differences:
            raise UserError(f"{self.folder} belongs to another search: {'; '.join(differences)}. Take another --study")

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials, as they are now."""
        return self.optuna.get_trials(deepcopy=False)

    def in_states(self, *states: str) -> list[optuna.trial.FrozenTrial]:
        """The trials in these states: COMPLETE, PRUNED, FAIL, RUNNING, WAITING."""
        return [trial for trial in self.trials if trial.state.name in states]

    @property
    def done(self) -> int:
        """How many trials are complete or pruned."""
        return len(self.in_states("COMPLETE", "PRUNED"))

    def ranked(self) -> list[optuna.trial.FrozenTrial]:
        """The complete trials, the best first."""
        maximize = self.about["direction"] == "maximize"
        return sorted(self.in_states("COMPLETE"), key=lambda trial: trial.value or 0.0, reverse=maximize)

    def requeue_unfinished(self) -> None:
        """Queue the trials of an earlier session that were killed, and, once more each, those that failed."""
        from optuna.trial import TrialState

        for trial in self.in_states("RUNNING"):
            self.optuna.tell(trial.number, state=TrialState.FAIL)
        requeued = {trial.user_attrs.get("again") for trial in self.trials}
        for trial in self.in_states("FAIL"):
            raised_error, is_retry = "error" in trial.user_attrs, trial.user_attrs.get("second", False)
            # a requeued trial that was killed early has its parameters only in fixed_params
            params = trial.system_attrs.get("fixed_params") or trial.params
            if trial.number in requeued or (raised_error and is_retry) or set(params) != {d.key for d in self.space}:
                continue
            self.optuna.enqueue_trial(params, {"again": trial.number, "second": raised_error or is_retry})

    def ask(self) -> optuna.Trial | None:
        """The next trial, with its parameters; None when every point of the grid has been tried."""
        if self.grid and not self.in_states("WAITING"):
            tried = {tuple(self.overrides(trial.params)) for trial in self.trials if trial.params}
            points = itertools.product(*(d.values() for d in self.space))
            grid_params = (dict(zip([d.key for d in self.space], point, strict=True)) for point in points)
            params = next((params for params in grid_params if tuple(self.overrides(params)) not in tried), None)
            if params is None:
                return None
            self.optuna.enqueue_trial(params)
        return self.optuna.ask({d.key: d.distribution() for d in self.space})

    def overrides(self, params: dict[str, Any]) -> list[str]:
        """The overrides of a trial's parameters."""
        return [d.override(params[d.key]) for d in self.space]

    def trial_folder(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / f"trial_{number}"

    def find_finished(self, run_fingerprint: str) -> tuple[Path, float] | None:
        """The run folder and the value of a finished trial whose run has this fingerprint."""
        if folder := fingerprint.find_finished(run_fingerprint, sorted(self.folder.glob("trial_*"))):
            number = int(re.sub(r"\D", "", folder.name))
            return folder, self.best_value(self.trials[number].intermediate_values.values())
        return None

    def best_value(self, values: Iterable[float]) -> float:
        """The best of a trial's validations; raises `UserError` where none is a number."""
        numbers = [value for value in values if not isnan(value)]
        if not numbers:
            raise UserError(f"no validation gave a number for {self.about['metric']}, so there is nothing to compare")
        return max(numbers) if self.about["direction"] == "maximize" else min(numbers)


def refuse_grid(space: Sequence[Dimension]) -> None:
    """Raise `UserError` for dimensions with too many values for a grid."""
    continuous = [d.key for d in space if not d.choices and not d.step]
    if continuous:
        raise UserError(
            f"--sampler grid needs choices or ranges; of {listing(continuous)} not every value can be tried"
        )
