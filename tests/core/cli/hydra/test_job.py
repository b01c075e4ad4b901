"""The jobs of `-m`: started again, finished ones are skipped; other processes run them too."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gptask.cli
import pytest
from gptask.cli.hydra.job import log, log_to_console
from gptask.runs.atomic_write import write_json
from gptask.runs.config_file import read_config
from gptask.runs.folder import create_run_folder
from gptask.training import fingerprint

SIZES = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 300}
TINY = ["backbone=nano", *(f"backbone.{name}={size}" for name, size in SIZES.items()), "trainer.accelerator=cpu"]
TINY += [f"data.limit.{split}={n}" for split, n in {"train": 16, "validation": 4, "test": 4}.items()]
TRAIN = ["train", "-m", *TINY, "probe=false", "trainer.accumulate_grad_batches=1"]


def contents(folder):
    """Every file below a folder, with its time and its bytes."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def finish(made):
    """An action that leaves what a finished training does."""

    def action(config):
        folder = create_run_folder(config.outputs, "sentiment", config.folder)
        write_json(folder / "metrics.json", {"job": fingerprint.run_fingerprint(config)})
        (folder / "model").mkdir()
        (folder / "model" / "backbone.json").touch()
        made.append((config.seed, str(folder)))

    return action


def test_finished_jobs_are_skipped_and_others_get_folders_of_their_own(run_command, tmp_path):
    made: list = []
    line = ["train", "-m", "seed=1,2", "folder=runs/${seed}"]
    assert run_command(*line, action=finish(made)).code == 0
    assert [folder for _, folder in made] == ["runs/1", "runs/2"]
    (tmp_path / "runs/2/metrics.json").unlink()  # as if killed
    before = contents(tmp_path / "runs")
    again = run_command(*line, action=finish(made))
    assert made[2:] == [(2, "runs/2_1")]
    assert "finished already, skipped: runs/1" in again.err
    ended = run_command(*line, "probe=false", action=finish(made))  # it does not decide the result
    assert (len(made), ended.code) == (3, 0)
    assert "runs/2_1" in ended.err
    assert before.items() <= contents(tmp_path / "runs").items()
    run_command(*line, "tuning.lr=1e-5", action=finish(made))
    assert [folder for _, folder in made[3:]] == ["runs/1_1", "runs/2_2"]


def test_default_folders_are_searched_by_task(run_command):
    made: list = []
    for _ in range(2):
        run_command("train", "-m", "seed=1,2", action=finish(made))
    assert [seed for seed, _ in made] == [1, 2]
    run_command("evaluate", "-m", "seed=1,2", "backbone=nano", action=finish(made))
    assert len(made) == 4


def test_a_single_run_is_never_skipped(run_command):
    made: list = []
    for _ in range(2):
        run_command("train", "seed=1", action=finish(made))
    assert len(made) == 2


def test_the_codes_of_a_sweep_are_summed_up(run_command):
    def action(config):
        if config.seed > 1:
            raise gptask.UserError("too large")

    ended = run_command("train", "-m", "seed=1,2,3", action=action)
    assert ended.code == 2
    assert "2 of 3 jobs failed: 1, 2" in ended.err


def test_ctrl_c_ends_the_sweep_and_says_how_to_go_on(run_command):
    def action(config):
        raise KeyboardInterrupt

    ended = run_command("train", "-m", "seed=1,2", action=action)
    assert ended.code == 130
    assert "The same command again skips the finished jobs" in ended.err


def test_a_killed_process_of_a_sweep_is_no_defect(run_command):
    from concurrent.futures.process import BrokenProcessPool

    def action(config):
        raise BrokenProcessPool

    ended = run_command("train", "-m", "seed=1,2", action=action)
    assert ended.code == 2
    assert "n_jobs=1" in ended.err


@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm", "submitit_local"])
def test_launchers_compose(run_command, launcher):
    ended = run_command("train", f"hydra/launcher={launcher}", "--cfg", "hydra")
    assert ended.code == 0, ended.err
    assert f"hydra/launcher: {launcher}" in ended.out
    assert "_launcher" in ended.out


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "joblib"), ("submitit_slurm", "slurm"), ("submitit_local", "slurm")]
)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(refused, launcher, extra, monkeypatch):
    monkeypatch.setattr("gptask.cli.hydra.launchers.find_spec", lambda name: None)
    said = refused("train", "-m", f"hydra/launcher={launcher}", "seed=1,2")
    assert f"pip install 'gptask[{extra}]'" in said
    assert len(said.splitlines()) == 1


def test_slurm_is_asked_for_where_it_is_needed(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no srun on the PATH" in refused("train", "-m", "hydra/launcher=submitit_slurm", "seed=1,2")


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        gptask.cli.main(arguments)
    return stop.value.code


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = [*TRAIN, "seed=1,2", "trainer.max_epochs=4"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, "-m", "gptask", *line], stdout=said, stderr=said)
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("outputs/sentiment/*/config.yaml"))) < 2:  # the second trains
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done, killed = sorted((tmp_path / "outputs/sentiment").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    if not (done / "metrics.json").exists():
        done, killed = killed, done
    assert not (killed / "metrics.json").exists()
    before = contents(tmp_path / "outputs")
    assert call(*line) == 0
    assert f"finished already, skipped: outputs/sentiment/{done.name}" in capsys.readouterr().err
    assert before.items() <= contents(tmp_path / "outputs").items()
    (new,) = {*(tmp_path / "outputs/sentiment").iterdir()} - {done, killed}
    assert read_config(new)["seed"] == 2
    assert call(*line) == 0
    assert len(list((tmp_path / "outputs/sentiment").iterdir())) == 3


def test_joblib_runs_the_jobs_in_processes_of_their_own(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    line = ["evaluate", "-m", *TINY, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "split=test,dev"]
    assert call(*line) == 2
    said = capfd.readouterr().err
    assert "no split 'dev'" in said
    assert "split=dev" in said
    assert "1 of 2 jobs failed: 1" in said
    (metrics,) = Path("outputs/sentiment").glob("*/metrics.json")
    before = contents(metrics.parent)
    assert call(*line) == 2
    assert f"finished already, skipped: {metrics.parent}" in capfd.readouterr().err
    assert contents(Path("outputs/sentiment")) == before


def test_a_library_that_sets_up_logging_does_not_double_our_lines(monkeypatch, capfd):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_console()
    logging.basicConfig()  # as absl does below rouge-score
    log.info("once")
    assert capfd.readouterr().err == "once\n"
