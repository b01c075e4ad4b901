"""The jobs of `-m`: a second start skips the finished ones; launchers run them in other processes."""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import gptask.cli
import pytest
from gptask.cli.hydra.job import log, log_to_console
from gptask.errors import Terminated
from gptask.runs.config_file import read_config
from gptask.runs.folder import create_run_folder
from gptask.runs.manifest import write_manifest
from gptask.training import fingerprint

SIZES = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 300}
TINY = ["backbone=nano", *(f"backbone.{name}={size}" for name, size in SIZES.items()), "trainer.accelerator=cpu"]
TINY += [f"data.limit.{split}={n}" for split, n in {"train": 16, "validation": 4, "test": 4}.items()]
TRAIN = ["train", "-m", *TINY, "probe=false", "trainer.accumulate_grad_batches=1"]


def contents(folder):
    """Every file below a folder, with its time and its bytes."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def finish(ran):
    """An action that leaves the manifest of a finished training."""

    def action(config):
        folder = create_run_folder(config.outputs, "sentiment", config.folder)
        write_manifest(folder, fingerprint.run_fingerprint(config), "train", {})
        ran.append((config.seed, str(folder)))

    return action


def test_finished_jobs_are_skipped_and_unfinished_ones_get_new_folders(run_command, tmp_path):
    ran: list = []
    line = ["train", "-m", "seed=1,2", "folder=runs/${seed}"]
    assert run_command(*line, action=finish(ran)).code == 0
    assert [folder for _, folder in ran] == ["runs/1", "runs/2"]
    (tmp_path / "runs/2/manifest.json").rename(tmp_path / "runs/2/train.log")  # as if killed
    before = contents(tmp_path / "runs")
    again = run_command(*line, action=finish(ran))
    assert ran[2:] == [(2, "runs/2_1")]
    assert "skipped, already finished: runs/1" in again.err
    ended = run_command(*line, "probe=false", action=finish(ran))  # probe doesn't change the result
    assert (len(ran), ended.code) == (3, 0)
    assert "runs/2_1" in ended.err
    assert before.items() <= contents(tmp_path / "runs").items()
    run_command(*line, "tuning.lr=1e-5", action=finish(ran))
    assert [folder for _, folder in ran[3:]] == ["runs/1_1", "runs/2_2"]


def test_jobs_that_race_for_one_folder_each_get_their_own(run_command, tmp_path):
    ran: list = []

    def action(config):
        if not ran and not (tmp_path / "runs/x").exists():
            (tmp_path / "runs/x").mkdir(parents=True)  # by a job that runs beside this one
        finish(ran)(config)

    assert run_command("train", "-m", "seed=1,2", "folder=runs/x", action=action).code == 0
    assert ran == [(1, "runs/x_1"), (2, "runs/x_2")]
    again = run_command("train", "-m", "seed=1,2", "folder=runs/${seed}", "resume=auto", action=finish(ran))
    assert (again.code, ran[2:]) == (0, [(1, "runs/1"), (2, "runs/2")])  # auto itself finds what is finished


def test_finished_jobs_are_found_in_the_tasks_default_folder(run_command):
    ran: list = []
    for _ in range(2):
        run_command("train", "-m", "seed=1,2", action=finish(ran))
    assert [seed for seed, _ in ran] == [1, 2]
    run_command("evaluate", "-m", "seed=1,2", "backbone=nano", action=finish(ran))
    assert len(ran) == 4


def test_a_single_run_is_never_skipped(run_command):
    ran: list = []
    for _ in range(2):
        run_command("train", "seed=1", action=finish(ran))
    assert len(ran) == 2


def test_failed_jobs_are_listed_and_set_the_exit_code(run_command):
    def action(config):
        if config.seed > 1:
            raise gptask.UserError("too large")

    ended = run_command("train", "-m", "seed=1,2,3", action=action)
    assert ended.code == 2
    assert "2 of 3 jobs failed: 1, 2" in ended.err


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_stop_ends_a_multirun_and_says_how_to_continue(stop, code, run_command):
    def action(config):
        raise stop

    ended = run_command("train", "-m", "seed=1,2", action=action)
    assert ended.code == code
    assert "stopped\nThe same command again skips the finished jobs" in ended.err


def test_a_killed_job_process_is_no_internal_error(run_command):
    from concurrent.futures.process import BrokenProcessPool

    def action(config):
        raise BrokenProcessPool

    ended = run_command("train", "-m", "seed=1,2", action=action)
    assert ended.code == 2
    assert "n_jobs=1" in ended.err


@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm", "submitit_local"])
def test_every_launcher_composes(run_command, launcher):
    ended = run_command("train", f"hydra/launcher={launcher}", "--cfg", "hydra")
    assert ended.code == 0, ended.err
    assert f"hydra/launcher: {launcher}" in ended.out
    assert "_launcher" in ended.out


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "joblib"), ("submitit_slurm", "slurm"), ("submitit_local", "slurm")]
)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(refused, launcher, extra, monkeypatch):
    monkeypatch.setattr("gptask.cli.hydra.launchers.find_spec", lambda name: None)
    message = refused("train", "-m", f"hydra/launcher={launcher}", "seed=1,2")
    assert f"pip install 'gptask[{extra}]'" in message
    assert len(message.splitlines()) == 1


def test_submitit_slurm_is_refused_without_srun(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no srun on the PATH" in refused("train", "-m", "hydra/launcher=submitit_slurm", "seed=1,2")


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        gptask.cli.main(arguments)
    return stop.value.code


@pytest.mark.slow
def test_a_killed_multirun_is_continued_by_the_same_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = [*TRAIN, "seed=1,2", "trainer.max_epochs=4"]
    with (tmp_path / "log").open("w") as output:
        process = subprocess.Popen([sys.executable, "-m", "gptask", *line], stdout=output, stderr=output)
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("outputs/sentiment/*/config.yaml"))) < 2:  # the second job trains
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished, killed = sorted((tmp_path / "outputs/sentiment").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    if not (finished / "manifest.json").exists():
        finished, killed = killed, finished
    assert not (killed / "manifest.json").exists()
    before = contents(tmp_path / "outputs")
    assert call(*line) == 0
    assert f"skipped, already finished: outputs/sentiment/{finished.name}" in capsys.readouterr().err
    assert before.items() <= contents(tmp_path / "outputs").items()
    (new,) = {*(tmp_path / "outputs/sentiment").iterdir()} - {finished, killed}
    assert read_config(new)["seed"] == 2
    assert read_config(new)["command"].endswith(" seed=2 ++trainer.max_epochs=4")
    assert call(*line) == 0
    assert len(list((tmp_path / "outputs/sentiment").iterdir())) == 3


def test_joblib_runs_the_jobs_in_other_processes(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    line = ["evaluate", "-m", *TINY, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "split=test,dev"]
    assert call(*line) == 2
    err = capfd.readouterr().err
    assert "no split 'dev'" in err
    assert "split=dev" in err
    assert "1 of 2 jobs failed: 1" in err
    (metrics,) = Path("outputs/sentiment").glob("*/metrics.json")
    command = read_config(metrics.parent)["command"]
    assert command.replace(" ++", " ") == shlex.join(["gptask", "evaluate", *TINY, "split=test"])
    before = contents(metrics.parent)
    assert call(*line) == 2
    assert f"skipped, already finished: {metrics.parent}" in capfd.readouterr().err
    assert contents(Path("outputs/sentiment")) == before


def test_a_library_that_configures_the_root_logger_does_not_repeat_log_lines(monkeypatch, capfd):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_console()
    logging.basicConfig()  # as absl does below rouge-score
    log.info("once")
    assert capfd.readouterr().err == "once\n"
