"""An Optuna study in a SQLite file, and the rules by which it goes on after a stop."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
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
    """Keep a second sweep out of a study's folder: it would take the first one's running trial for a killed one."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another gptask sweep is at work in {folder}: wait, or take another --study") from error
        yield


class Study:
    """The trials of a search; ``about`` says what is searched, and must stay the same while the study grows."""

    def __init__(self, folder: Path, space: Sequence[Dimension], about: dict[str, Any], sampler: str, pruner: str,
                 seed: int) -> None:  # fmt: skip
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.space, self.about, self.grid = folder, space, about, sampler == "grid"
        file = folder / "study.db"
        if not file.exists() and any(folder.glob("trial_*")):
            raise UserError(f"{folder} holds trials, but their study.db is gone; take another --study")
        self.optuna = optuna.create_study(
            storage=f"sqlite:///{file}", study_name=folder.name, direction=about["direction"], load_if_exists=True
        )
        self._refuse_another(self.optuna.user_attrs.get("about", about))
        self.optuna.set_user_attr("about", about)
        seed += len(self.trials)  # going on with the first seed would ask the first trials again
        tpe = sampler == "tpe"
        self.optuna.sampler = optuna.samplers.TPESampler(seed=seed) if tpe else optuna.samplers.RandomSampler(seed=seed)
        self.optuna.pruner = {
            "median": optuna.pruners.MedianPruner,
            "hyperband": optuna.pruners.HyperbandPruner,
            "none": optuna.pruners.NopPruner,
        }[pruner]()

    def _refuse_another(self, known: dict[str, Any]) -> None:
        differing = [
            f"{name} was {known.get(name)!r} and is {self.about[name]!r}"
            for name in self.about
            if known.get(name) != self.about[name]
        ]
        if differing:
            raise UserError(f"{self.folder} belongs to another search: {'; '.join(differing)}. Take another --study")

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials, as they are now."""
        return self.optuna.get_trials(deepcopy=False)

    def of(self, *states: str) -> list[optuna.trial.FrozenTrial]:
        """The trials in these states: COMPLETE, PRUNED, FAIL, RUNNING, WAITING."""
        return [trial for trial in self.trials if trial.state.name in states]

    @property
    def done(self) -> int:
        """How many trials count."""
        return len(self.of("COMPLETE", "PRUNED"))

    def ranked(self) -> list[optuna.trial.FrozenTrial]:
        """The complete trials, the best first."""
        high = self.about["direction"] == "maximize"
        return sorted(self.of("COMPLETE"), key=lambda trial: -trial.value if high else trial.value)  # type: ignore

    def mend(self) -> None:
        """Ask again what an earlier session left: killed trials, and once more each that failed with an error."""
        from optuna.trial import TrialState

        for trial in self.of("RUNNING"):
            self.optuna.tell(trial.number, state=TrialState.FAIL)
        again = {trial.user_attrs.get("again") for trial in self.trials}
        for trial in self.of("FAIL"):
            failed, second = "error" in trial.user_attrs, trial.user_attrs.get("second", False)
            params = trial.system_attrs.get("fixed_params") or trial.params  # it may have been killed between the two
            if trial.number in again or (failed and second) or set(params) != {d.key for d in self.space}:
                continue
            self.optuna.enqueue_trial(params, {"again": trial.number, "second": failed or second})

    def ask(self) -> optuna.Trial | None:
        """The next trial, with its parameters; None when the grid is done."""
        if self.grid and not self.of("WAITING"):
            asked = {tuple(self.overrides(trial.params)) for trial in self.trials if trial.params}
            points = itertools.product(*(d.values() for d in self.space))
            params = (dict(zip([d.key for d in self.space], point, strict=True)) for point in points)
            point = next((point for point in params if tuple(self.overrides(point)) not in asked), None)
            if point is None:
                return None
            self.optuna.enqueue_trial(point)
        return self.optuna.ask({d.key: d.distribution() for d in self.space})

    def overrides(self, params: dict[str, Any]) -> list[str]:
        """The overrides of a trial's parameters."""
        return [d.override(params[d.key]) for d in self.space]

    def home(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / f"trial_{number}"

    def known(self, job: str) -> tuple[Path, float] | None:
        """The run folder and the value of a trial that has done this job, if one has."""
        if folder := fingerprint.find_finished(job, sorted(self.folder.glob("trial_*")), model=True):
            number = int(re.sub(r"\D", "", folder.name))
            return folder, self.best(self.trials[number].intermediate_values.values())
        return None

    def best(self, values: Any) -> float:
        """The best of a trial's validations."""
        numbers = [value for value in values if not isnan(value)]
        if not numbers:
            raise UserError(f"no validation gave a number for {self.about['metric']}, so there is nothing to compare")
        return max(numbers) if self.about["direction"] == "maximize" else min(numbers)


def refuse_grid(space: Sequence[Dimension]) -> None:
    """Raise `UserError` for what a grid can't go through."""
    endless = [d.key for d in space if not d.choices and not d.step]
    if endless:
        raise UserError(f"--sampler grid needs choices or ranges; of {listing(endless)} not every value can be tried")
