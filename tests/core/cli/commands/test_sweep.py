"""`gptask sweep`: the checks before the study is made, the output, and continuing after a kill."""

import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from gptask import Fast, Reference
from gptask.cli import main
from gptask.cli.commands.sweep import show
from gptask.cli.hydra.launch import read_command_line

SIZES = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 300}
TINY = ["backbone=nano", *(f"backbone.{name}={size}" for name, size in SIZES.items()), "trainer.accelerator=cpu"]
TINY += [f"data.limit.{split}={n}" for split, n in {"train": 16, "validation": 4, "test": 4}.items()]
TINY += ["probe=false", "trainer.accumulate_grad_batches=1"]
LR = "tuning.lr=tag(log,interval(1e-4,1e-2))"


def contents(folder):
    """Every file below a folder, with its time and its bytes."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("task=qa", "there is no search space"),
        ("tuning.rnk=4,8", "unknown option 'tuning.rnk'; available: lr, rank, alpha, dropout, target_modules, layers, "
                           "top. Did you mean 'rank'?"),
        ("tuning.rank=4,8 tuning.alfa=3", "Did you mean 'alpha'?"),
        ("tuning.rank=4,x", "tuning.rank=x: expected a whole number"),
        ("tuning=lora,ful", "unknown tuning 'ful'"),
        ("tuning=lora,full tuning.rank=4,8", "unknown option 'tuning.rank'"),
        ("tuning.lr=interval(2,1)", "the interval is empty"),
        ("tuning.rank=4,8 trainer.max_epocs=3", "Did you mean 'max_epochs'?"),
        ("tuning.rank=4,8 task=sentimen", "Did you mean 'sentiment'?"),
        ("task=qa,sentiment", "task has one value in a sweep"),
        ("experiment=sst2,dialogsum", "of another task"),
        ("engine=fast,reference", "engine has one value in a sweep"),
        ("engine.packing=on,off", "engine.packing has one value in a sweep"),
        ("outputs=a,b", "outputs has one value in a sweep"),
        ("data.stratify=true,false", "data.stratify has one value in a sweep"),
        ("data.limit.validation=4,8", "data.limit.validation has one value in a sweep"),
        ("seed=1,2", "data.seed=<number> fixes that"),
        ("tuning.rank=4,8 folder=x", "each trial gets a folder"),
        ("tuning.rank=4,8 resume=x", "the same command runs a stopped trial again"),
        ("tuning.rank=4,8 tasks=[sentiment,qa]", "a sweep searches for the best options of one task"),
        ("tuning.rank=4,8 --trials 0", "--trials 0: expected 1 or more"),
        ("tuning.rank=4,8 --timeout 0", "expected minutes above 0"),
        ("tuning.rank=4,8 --study ../x", "expected a name"),
        ("tuning.rank=4,8 --sampler best", "invalid choice: 'best'"),
        ("tuning.rank=4,8 -m", "unrecognized arguments: -m"),
        ("tuning.rank=4,8 trainer.limit_val_batches=0", "trainer.limit_val_batches=0: no validation runs"),
        ("tuning.rank=4,8 trainer.limit_val_batches=0.0", "no validation runs"),
        ("trainer.max_epochs=1,0", "trainer.max_epochs=0: no validation runs"),
        ("tuning.rank=4,8 trainer.max_epochs=1 trainer.check_val_every_n_epoch=2",
         "trainer.check_val_every_n_epoch=2: no validation runs in trainer.max_epochs=1"),
        ("tuning.lr=interval(1,2) --sampler grid", "grid needs choices or ranges"),
        ("--space nowhere.yaml", "nowhere.yaml: No such file"),
        ("--space space.yaml", "space.yaml:2: this is not valid YAML"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused_before_a_study_is_made(line, expected, refused, tmp_path):
    (tmp_path / "space.yaml").write_text("tuning.rank: [4, 8\ntuning.alpha: 3\n")
    assert expected in refused("sweep", *line.split())
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_a_missing_optuna_is_named_with_its_extra(refused, monkeypatch):
    monkeypatch.setattr("gptask.cli.commands.sweep.find_spec", lambda name: None)
    assert refused("sweep", "tuning.rank=4,8") == (
        "gptask: gptask sweep needs a package that is not installed: pip install 'gptask[sweep]'\n"
    )


def test_help_shows_the_grammar(run_command):
    ended = run_command("sweep", "--help")
    assert ended.code == 0
    assert "tag(log,interval(1e-5,1e-2))" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 120


def planned(monkeypatch, run, *arguments):
    """The plan of a line, and the first config."""
    plans = []
    monkeypatch.setattr("gptask.cli.commands.sweep.run_sweep", lambda plan, first: plans.append((plan, first)))
    monkeypatch.setattr("gptask.cli.commands.sweep.show", lambda plan, study: None)
    ended = run("sweep", *arguments)
    assert ended.code == 0, ended.err
    return plans[0]


def test_overrides_and_a_space_file_make_the_plan(run_command, monkeypatch, tmp_path):
    (tmp_path / "space.yaml").write_text("tuning.rank: [4, 8]\ntrainer.max_epochs: range(1,4)\n")
    line = ["task=qa", LR, "--space", "space.yaml", "trainer.devices=1", "task.prompt='a, b: {context}'"]
    plan, first = planned(monkeypatch, run_command, *line, "--trials", "7")
    assert {d.key: str(d) for d in plan.space} == {
        "tuning.rank": "choice(4,8)",
        "trainer.max_epochs": "whole numbers from 1 to 3 by 1",
        "tuning.lr": "numbers from 0.0001 to 0.01 on a log scale",
    }
    assert (first.tuning.rank, first.trainer["max_epochs"], first.trainer["devices"]) == (4, 1, 1)
    assert (plan.trials, plan.sampler, plan.pruner) == (7, "tpe", "median")
    assert plan.name.startswith("qa_")
    other = planned(monkeypatch, run_command, *line, "--trials", "9", "--timeout", "5", "probe=false")[0].name
    assert other == plan.name  # more of the same
    plan, first = planned(monkeypatch, run_command, *line, "engine=reference")
    assert (plan.name, first.engine) == (other, Reference())  # on another machine
    monkeypatch.setenv("GPTASK_ENGINE", "fast,norm=off")
    plan, first = planned(monkeypatch, run_command, *line, "engine.loss=off")
    assert (plan.name, first.engine) == (other, Fast(norm=False, loss=False))
    assert planned(monkeypatch, run_command, *line, "seed=2")[0].name != plan.name
    assert planned(monkeypatch, run_command, *line, "--study", "mine")[0].name == "mine"


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


@pytest.mark.slow
def test_a_killed_sweep_is_continued_and_names_the_best_trial(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["sweep", *TINY, "trainer.max_epochs=4", LR, "--trials", "2", "--sampler", "random", "--study", "s"]
    study = tmp_path / "outputs/sweeps/s"
    with (tmp_path / "log").open("w") as output:
        process = subprocess.Popen([sys.executable, "-m", "gptask", *line], stdout=output, stderr=output)
        end = time.monotonic() + 180
        while not (study / "trial_1/config.yaml").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (study / "trial_1/metrics.json").exists()
    before = contents(study / "trial_0") | contents(study / "trial_1")
    assert call(*line) == 0
    ended = capsys.readouterr()
    assert "study: outputs/sweeps/s, 1 of 2 trials done" in ended.err
    trial_options = [text.split()[-1] for text in ((tmp_path / "log").read_text() + ended.err).splitlines()
             if text.startswith("trial ") and "tuning.lr=" in text]  # fmt: skip
    assert len(trial_options) == 3
    assert trial_options[1] == trial_options[2]  # the killed trial's
    after = contents(study)
    assert {path.name for path in study.glob("trial_*")} == {"trial_0", "trial_1", "trial_2"}
    assert before.items() <= after.items()
    assert "2 complete, 0 pruned, 1 failed" in ended.out
    best = shlex.split(ended.out.splitlines()[-1].partition("gptask train ")[2])
    assert best[:-1] == [*TINY, "trainer.max_epochs=4"]
    assert best[-1] in trial_options
    read_command_line("train", best)
    assert call(*line) == 0
    assert "2 complete" in capsys.readouterr().out
    assert contents(study).keys() == after.keys()


def test_trials_that_tie_are_said(monkeypatch, capsys):
    def trial(number, value):
        return SimpleNamespace(number=number, value=value, params={}, user_attrs={"folder": f"trial_{number}"})

    def shown(*values):
        study = SimpleNamespace(
            ranked=lambda: [trial(number, value) for number, value in enumerate(values)],
            about={"metric": "accuracy"},
            in_states=lambda state: [],
            overrides=lambda params: [],
        )
        show(SimpleNamespace(space=[], fixed=["task=sentiment"], name="study"), study)
        return capsys.readouterr().out

    assert "3 trials tie at 90.00: validation can't tell them apart" in shown(90.0, 90.0, 90.0, 80.0)
    assert "tie" not in shown(90.0, 89.9)
