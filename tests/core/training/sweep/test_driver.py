"""Which trials a sweep counts, repeats and refuses. Trainings are simulated, except in the last two tests."""

import json
from pathlib import Path

import optuna
import pytest
from gptask import UserError
from gptask.errors import Terminated
from gptask.runs.config_file import read_config
from gptask.runs.folder import create_run_folder
from gptask.runs.manifest import write_manifest
from gptask.training.divergence import TrainingDiverged
from gptask.training.fingerprint import run_fingerprint
from gptask.training.sweep import driver
from gptask.training.sweep.driver import SweepPlan, run_sweep
from gptask.training.sweep.space import Dimension
from gptask.training.sweep.study import Study, lock_study

from tests.support.configs import small_config

LR = Dimension("lr", (), 1e-4, 1e-2, None, True)
RANK = Dimension("rank", ("4", "8"))


class SimulatedTrainings:
    """Trainings that take no time: validation yields -lr, then half of it; ``fails`` may raise."""

    def __init__(self, outputs, monkeypatch):
        self.outputs, self.trained, self.fails, self.errors = outputs, [], lambda config: None, []
        monkeypatch.setattr("gptask.training.train.train", self.train)
        monkeypatch.setattr(driver.gc, "collect", lambda: 0)  # there is nothing to free, and a full pass takes 0.3 s

    def configure(self, overrides):
        values = dict(override.split("=") for override in overrides)
        options = small_config(self.outputs, seed=int(values.get("rank", 0)))
        options.tuning.lr = float(values.get("lr", 0.5))
        return options

    def train(self, options, callbacks, command):
        assert command.startswith("gptask train")
        (pruning,) = callbacks
        folder = create_run_folder("", "", options.folder)
        self.trained.append((folder.name, options.seed, options.tuning.lr))
        self.fails(options)
        for value in (-options.tuning.lr, -options.tuning.lr / 2):
            pruning.values.append(value)
            pruning.trial.report(value, len(pruning.values))
        write_manifest(folder, run_fingerprint(options), "train", {})

    def report(self, error, where):
        self.errors.append(f"{where}{error}")
        return 2

    def sweep(self, trials, space=(LR, RANK), sampler="random", name="s", **changes):
        first = self.configure([])
        plan = SweepPlan(list(space), [], name, trials, sampler, "none", None, self.configure, self.report)
        for key, value in changes.items():
            setattr(plan, key, value)
        return run_sweep(plan, first)


@pytest.fixture
def simulated(tmp_path, monkeypatch):
    return SimulatedTrainings(tmp_path, monkeypatch)


def states(study):
    return [trial.state.name for trial in study.trials]


def test_a_study_continues_until_it_has_the_number_of_trials(simulated, tmp_path):
    assert simulated.sweep(2).done == 2
    study = simulated.sweep(4)
    assert states(study) == ["COMPLETE"] * 4
    assert [name for name, *_ in simulated.trained] == ["trial_0", "trial_1", "trial_2", "trial_3"]
    assert len({lr for *_, lr in simulated.trained}) == 4  # no value is tried twice
    assert len(simulated.trained) == 4
    simulated.sweep(3)
    assert len(simulated.trained) == 4
    best = study.ranked()[0]
    assert best.value == max(-lr / 2 for *_, lr in simulated.trained)  # the best validation, not the last or first
    assert (tmp_path / "sweeps/s/study.db").exists()


def test_a_killed_trial_is_repeated_in_another_folder(simulated, tmp_path):
    study = simulated.sweep(1)
    killed = study.optuna.ask({d.key: d.distribution() for d in study.space})
    (tmp_path / "sweeps/s/trial_1").mkdir()
    study = simulated.sweep(2)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[2].params == killed.params
    assert [name for name, *_ in simulated.trained] == ["trial_0", "trial_2"]


def test_a_trial_killed_after_its_training_is_not_trained_again(simulated, monkeypatch):
    def tell_is_killed(*_, **__):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", tell_is_killed)
        with pytest.raises(SystemExit):
            simulated.sweep(1)
    study = simulated.sweep(1)
    assert len(simulated.trained) == 1
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[1].value == -simulated.trained[0][-1] / 2
    assert study.trials[1].user_attrs["folder"].endswith("trial_0")


def test_the_value_of_a_finished_training_is_reused(simulated):
    study = simulated.sweep(5, space=[RANK])
    assert states(study) == ["COMPLETE"] * 5
    assert len(simulated.trained) == 2


def test_a_failed_trial_is_repeated_once_and_the_others_go_on(simulated):
    def fails(options):
        if options.seed == 8:
            raise UserError("not with 8")

    simulated.fails = fails
    study = simulated.sweep(2, space=[RANK], sampler="grid")
    assert states(study) == ["COMPLETE", "FAIL"]
    assert simulated.errors == ["trial 1: not with 8"]
    assert states(simulated.sweep(2, space=[RANK], sampler="grid")) == ["COMPLETE", "FAIL", "FAIL"]
    assert states(simulated.sweep(2, space=[RANK], sampler="grid")) == ["COMPLETE", "FAIL", "FAIL"]
    assert [name for name, *_ in simulated.trained] == ["trial_0", "trial_1", "trial_2"]


def test_a_sweep_stops_after_three_failures_in_a_row(simulated):
    def fails(options):
        raise RuntimeError("out of memory")

    simulated.fails = fails
    with pytest.raises(UserError, match="3 trials failed one after another"):
        simulated.sweep(20)
    assert len(simulated.errors) == 3


def test_a_grid_tries_every_point_once_and_ends(simulated):
    study = simulated.sweep(99, space=[RANK, Dimension("lr", (), 0.25, 0.75, 0.25)], sampler="grid")
    assert study.done == 6
    assert len(set(simulated.trained)) == 6
    simulated.sweep(99, space=[RANK, Dimension("lr", (), 0.25, 0.75, 0.25)], sampler="grid")
    assert len(simulated.trained) == 6


def test_ctrl_c_says_how_to_go_on_and_the_trial_is_repeated(simulated, tmp_path):
    def fails(options):
        raise Terminated("stopped at step 3")

    simulated.fails = fails
    with pytest.raises(Terminated, match=r"stopped in trial 0\. The same command goes on"):
        simulated.sweep(1)
    simulated.fails = lambda options: None
    study = simulated.sweep(1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params


def test_no_trial_begins_after_the_timeout(simulated):
    assert simulated.sweep(3, minutes=1e-9).done == 0
    assert simulated.sweep(3, minutes=5).done == 3


@pytest.mark.parametrize("changes", [{"space": [LR]}, {"fixed": ["data.limit.train=5"]}])
def test_another_search_under_the_same_name_is_refused(changes, simulated):
    simulated.sweep(1)
    with pytest.raises(UserError, match=rf"belongs to another search: {next(iter(changes))} was .* and is "):
        simulated.sweep(2, **changes)
    assert simulated.sweep(2, fixed=["probe=false", "outputs=elsewhere"]).done == 2  # these do not change the result


def test_another_direction_is_refused(simulated, tmp_path):
    study = simulated.sweep(1)
    with pytest.raises(UserError, match="direction was 'maximize' and is 'minimize'"):
        Study(study.folder, study.space, study.about | {"direction": "minimize"}, "tpe", "none", 1)


def test_folders_of_a_lost_study_are_not_reused(simulated, tmp_path):
    (tmp_path / "sweeps/s/trial_0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"their study\.db is gone"):
        simulated.sweep(1)


def test_a_second_sweep_of_a_running_study_is_refused(simulated, tmp_path):
    with lock_study(tmp_path / "sweeps/s"), pytest.raises(UserError, match="another gptask sweep is at work"):
        simulated.sweep(1)
    assert simulated.sweep(1).done == 1


def test_a_metric_that_is_never_a_number_is_an_error(simulated, monkeypatch):
    monkeypatch.setattr(driver, "_train", lambda *_: [float("nan")])
    with pytest.raises(UserError, match="failed one after another"):
        simulated.sweep(1)
    assert "no validation gave a number for accuracy" in simulated.errors[0]


def test_a_training_that_diverges_is_pruned_and_the_others_go_on(simulated, tmp_path):
    def diverge(options):
        raise TrainingDiverged("the training diverged: the loss is nan at step 2")

    simulated.fails = diverge
    study = simulated.sweep(4)
    assert states(study) == ["PRUNED"] * 4
    assert simulated.errors == []
    assert "the loss is nan" in json.loads((tmp_path / "sweeps/s/trial_0/pruned.json").read_text())["why"]


def test_a_pruned_training_leaves_no_finished_run(tmp_path):
    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=101, n_warmup_steps=2)
    )
    trial = study.ask()
    options = small_config(tmp_path, folder=str(tmp_path / "trial_0"), trainer={"max_epochs": 5, "accelerator": "cpu"})
    with pytest.raises(optuna.TrialPruned, match=r"accuracy .* after validation 2"):
        driver._train(options, trial, "accuracy", "gptask train")
    names = {path.name for path in Path(options.folder).iterdir()}
    assert names >= {"config.yaml", "train.log", "pruned.json"}
    assert not names & {"metrics.json", "predictions.jsonl", "model"}
    pruned = json.loads((tmp_path / "trial_0/pruned.json").read_text())
    assert (pruned["metric"], len(pruned["values"])) == ("val/accuracy", 2)
    assert list(study.trials[0].intermediate_values) == [1, 2]


def test_a_training_that_is_not_pruned_reports_every_validation(tmp_path):
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    options = small_config(tmp_path, folder=str(tmp_path / "trial_0"))
    values = driver._train(options, study.ask(), "accuracy", "gptask train lr=1")
    assert len(values) == 2
    assert list(study.trials[0].intermediate_values.values()) == values
    assert read_config(tmp_path / "trial_0")["command"] == "gptask train lr=1"
    assert json.loads((tmp_path / "trial_0/metrics.json").read_text())["fingerprint"] == run_fingerprint(options)
