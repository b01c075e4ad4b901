"""Two processes on the CPU: they end together, train as one does, and share out what is scored."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gptask import UserError
from gptask.training.trainer import build_trainer
from safetensors.torch import load_file

from tests.core.training.test_resume_point import outcome
from tests.support.faults import NOTHING, TINY, TWO, run_with, wait_for

SIGNALLED = {
    "step 1 SIGTERM": (143, r"rank 1 \(process \d+\) got SIGTERM: all processes stop"),
    "step 0 SIGTERM": (143, r"rank 0 \(process \d+\) got SIGTERM"),
    "step 1 SIGINT": (130, r"rank 1 \(process \d+\) got SIGINT"),
    "step 0 group-SIGINT": (130, r"rank \d \(process \d+\) got SIGINT"),
    "step 1 group-SIGTERM": (143, r"rank \d \(process \d+\) got SIGTERM"),
    "optimizer 0 SIGTERM": (143, r"rank 0 \(process \d+\) got SIGTERM"),
    "validation 1 SIGTERM": (143, r"rank 1 \(process \d+\) got SIGTERM"),
    "validation 0 SIGINT": (130, r"rank 0 \(process \d+\) got SIGINT"),
    "save 0 SIGTERM": (143, r"rank 0 \(process \d+\) got SIGTERM"),
    "saved 1 SIGTERM": (143, r"rank 1 \(process \d+\) got SIGTERM"),
    "test 1 SIGTERM": (143, r"rank 1 \(process \d+\) got SIGTERM"),
    "test 0 group-SIGINT": (130, r"rank \d \(process \d+\) got SIGINT"),
}
LOST = {
    "start 1 exit": (2, r"rank 1 \(process \d+\) ended with exit code 3: all processes are ended"),
    "start 1 SIGKILL": (2, r"rank 1 \(process \d+\) was killed by SIGKILL \(has memory run out\?\)"),
    "join 1 SIGKILL": (2, r"rank 1 \(process \d+\) was killed by SIGKILL"),
    "join 1 error": (2, r"rank 1 \(process \d+\) failed: a plugin is broken"),
    "join 0 SIGKILL": (-9, "rank 0 has died"),
    "step 1 SIGKILL": (2, r"rank 1 \(process \d+\) was killed by SIGKILL"),
    "step 1 exit": (2, r"rank 1 \(process \d+\) ended with exit code 3"),
    "step 1 error": (2, r"rank 1 \(process \d+\) failed: a plugin is broken"),
    "step 1 bad data": (2, r"rank 1 \(process \d+\) failed: the data is bad"),
    "step 0 SIGKILL": (-9, r"rank 0 has died: rank 1 \(process \d+\) is ended"),
    "step 0 error": (70, "internal error in gptask or a plugin"),
    "step 0 bad data": (2, "gptask: the data is bad"),
    "validation 1 SIGKILL": (2, r"rank 1 \(process \d+\) was killed by SIGKILL"),
    "validation 0 SIGKILL": (-9, "rank 0 has died"),
    "save 0 SIGKILL": (-9, "rank 0 has died"),
    "saved 1 SIGKILL": (2, r"rank 1 \(process \d+\) was killed by SIGKILL"),
    "test 1 SIGKILL": (2, r"rank 1 \(process \d+\) was killed by SIGKILL"),
    "test 1 error": (2, r"rank 1 \(process \d+\) failed: a plugin is broken"),
    "test 0 SIGKILL": (-9, "rank 0 has died"),
}


def check_end(tmp_path: Path, event: str, code: int, message: str) -> None:
    """One process's fault ends both soon, with a message that names the rank and a way to go on."""
    ended = run_with(tmp_path, event)
    assert (ended.code, bool(re.search(message, ended.output))) == (code, True), ended.output
    assert ended.seconds < 30, ended.output
    if event.split()[2] not in ("error", "bad"):
        assert re.search(r"Resume with: gptask train resume=|begins again", ended.output), ended.output
    assert ended.output.count("Traceback") == ("error" in event), ended.output


@pytest.mark.long
def test_a_signal_to_the_second_process_ends_both_with_a_checkpoint(tmp_path):
    check_end(tmp_path, "step 1 SIGTERM", *SIGNALLED["step 1 SIGTERM"])
    assert (tmp_path / "run/checkpoints/interrupted.ckpt").is_file()


def test_processes_that_would_be_forked_are_refused(tmp_path):
    options = {"devices": 2, "accelerator": "cpu", "strategy": "ddp_spawn"}
    with pytest.raises(UserError, match=r"trainer\.strategy=ddp_spawn: .*; with trainer\.strategy=ddp they run"):
        build_trainer(tmp_path, options, logger=False)


@pytest.mark.long
@pytest.mark.parametrize("event", SIGNALLED | LOST)
def test_what_happens_to_one_process_ends_both(event, tmp_path):
    check_end(tmp_path, event, *(SIGNALLED | LOST)[event])


@pytest.mark.long
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    "what", ["SIGTERM 0", "SIGTERM 1", "SIGINT 0", "SIGINT 1", "SIGINT all", "SIGKILL 0", "SIGKILL 1"]
)
def test_signals_at_random_moments_end_both(what, number, tmp_path, record_property):
    """From before the second process is there until the results are written."""
    name, target = what.split()
    delay = random.Random(f"{what} {number}").uniform(0, 20)
    record_property("delay", delay)

    def send(process: "subprocess.Popen[bytes]") -> None:
        wait_for(lambda: (tmp_path / "pid-1").exists() and (tmp_path / "pid-1").read_text())
        time.sleep(delay)  # any moment will do
        (tmp_path / "event").write_text(str(time.time()))
        pid = process.pid if target in ("0", "all") else int((tmp_path / "pid-1").read_text())
        try:
            (os.killpg if target == "all" else os.kill)(pid, signal.Signals[name])
        except ProcessLookupError:
            return

    ended = run_with(tmp_path, NOTHING, *TINY, *TWO, "trainer.max_epochs=20", f"folder={tmp_path / 'run'}", send=send)
    if (tmp_path / "run/manifest.json").is_file():
        return  # it was over: the first process may have printed its results, or not
    expected = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9 if target == "0" else 2}[name]
    assert ended.code == expected, (delay, ended.output)
    assert ended.seconds < 30, (delay, ended.output)
    assert re.search(r"gptask: .*(Resume with: gptask train resume=|begins again)", ended.output), ended.output
    assert re.search(r"rank \d (\(process \d+\) (got|was killed)|has died)", ended.output), ended.output


@pytest.mark.long
@pytest.mark.parametrize(
    "event", ["step 1 SIGTERM", "step 1 SIGKILL", "validation 0 SIGINT", "saved 1 SIGKILL", "test 1 SIGTERM"]
)
def test_a_run_that_goes_on_in_two_processes_ends_as_if_nothing_had_happened(event, tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = run_with(tmp_path / "whole", NOTHING)
    assert whole.code == 0, whole.output
    assert run_with(tmp_path / "stopped", event).code != 0
    folder = tmp_path / "stopped/run"
    goes_on = run_with(tmp_path / "stopped", NOTHING, "train", f"resume={folder}", "baseline=false")
    assert goes_on.code == 0, goes_on.output
    assert outcome(folder) == outcome(tmp_path / "whole/run")


@pytest.fixture(scope="module")
def same_batches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training in one process and one in two on the same global batches, of which the last is smaller."""
    options = [*TINY, "data.limit.train=36", "backbone.dropout=0"]  # nine batches an epoch
    folder = tmp_path_factory.mktemp("same_batches")
    for name, more in {"one": ["trainer.accumulate_grad_batches=2"], "two": TWO}.items():
        (folder / name).mkdir()
        gradients, run = folder / f"{name}.pt", folder / name / "run"
        ended = run_with(folder / name, NOTHING, *options, *more, f"folder={run}", GRADIENTS=str(gradients))
        assert ended.code == 0, ended.output
    return folder / "one", folder / "two"


@pytest.mark.long
def test_gradients_of_two_processes_equal_those_of_one(same_batches):
    one, two = (torch.load(folder.with_suffix(".pt"), weights_only=True) for folder in same_batches)
    assert len(one) == len(two) == 15  # five steps an epoch
    for step in (0, 1, 2, 4):  # the fifth is of one batch and a filler
        assert one[step].keys() == two[step].keys()
        for name, gradient in one[step].items():
            torch.testing.assert_close(two[step][name], gradient, rtol=1e-4, atol=1e-6, msg=f"{name} in step {step}")


@pytest.mark.long
def test_metrics_and_predictions_of_two_processes_equal_those_of_one(same_batches):
    one, two = (folder / "run" for folder in same_batches)
    weights, others = (load_file(next((run / "model").glob("*.safetensors"))) for run in (one, two))
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], rtol=1e-3, atol=1e-4)
    metrics, other_metrics = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    assert other_metrics["n"] == metrics["n"] == 40
    for name, metric in metrics["metrics"].items():
        assert other_metrics["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-3)
    predictions, others = ((run / "predictions.jsonl").read_text().splitlines() for run in (one, two))
    assert [json.loads(line)["id"] for line in others] == [json.loads(line)["id"] for line in predictions]
    assert [json.loads(line)["prediction"] for line in others] == [
        json.loads(line)["prediction"] for line in predictions
    ]


@pytest.mark.long
def test_an_evaluation_in_two_processes_writes_the_same_predictions_as_in_one(same_batches, tmp_path):
    run = same_batches[0] / "run"
    options = ["evaluate", f"run={run}", "split=validation", "trainer.accelerator=cpu"]
    outcomes = []
    for name, more in {"one": [], "two": TWO}.items():
        (tmp_path / name).mkdir()
        ended = run_with(tmp_path / name, NOTHING, *options, *more, f"folder={tmp_path / name / 'scores'}")
        assert ended.code == 0, ended.output
        outcomes.append((tmp_path / name / "scores/predictions.jsonl").read_bytes())
    assert outcomes[0] == outcomes[1]


@pytest.mark.long
def test_jobs_of_a_multirun_have_processes_of_their_own(tmp_path):
    options = [*TINY, *TWO, "-m", "seed=1,2", f"outputs={tmp_path / 'outputs'}"]
    ended = run_with(tmp_path, NOTHING, *options)
    assert ended.code == 0, ended.output
    assert len(list((tmp_path / "outputs").rglob("manifest.json"))) == 2


@pytest.mark.long
def test_processes_that_another_launcher_starts_end_together(tmp_path):
    """As torchrun starts them, which leaves it to the processes themselves here."""
    from lightning_fabric.plugins.environments.lightning import find_free_network_port

    (tmp_path / "empty").mkdir()
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "WORLD_SIZE": "2"}
    program = Path(__file__).parents[2] / "support/two_processes.py"
    ranks = []
    for rank in range(2):
        variables = {"LOCAL_RANK": str(rank), "FAULT": "step 1 SIGKILL", "FAULT_FOLDER": str(tmp_path)}
        with (tmp_path / f"output-{rank}").open("w") as output:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, str(program), *TINY, *TWO, f"folder={tmp_path / 'run'}"],
                    env=os.environ | places | variables, stdout=output, stderr=output,
                )
            )  # fmt: skip
    try:
        codes = [process.wait(240) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    output = (tmp_path / "output-0").read_text()
    assert codes == [2, -9], output
    assert re.search(r"rank 1 \(process \d+\) has died: all processes are ended\. Checkpoints in", output), output
    assert (tmp_path / "run/checkpoints/interrupted.ckpt").is_file()


@pytest.mark.long
def test_a_process_that_waits_for_others_in_vain_ends_at_a_signal(tmp_path):
    """As a launcher sends it where another process did not start."""
    from lightning_fabric.plugins.environments.lightning import find_free_network_port

    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "WORLD_SIZE": "2"}
    event = {"LOCAL_RANK": "0", "FAULT": "join 0 nothing", "FAULT_FOLDER": str(tmp_path)}
    program = Path(__file__).parents[2] / "support/two_processes.py"
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(program), *TINY, *TWO, f"folder={tmp_path / 'run'}"],
            env=os.environ | variables | event, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for((tmp_path / "event").exists)
        time.sleep(1)  # until it waits
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    message = r"rank 0 \(process \d+\) got SIGTERM.*: .* ended.* begins again"
    assert re.search(message, (tmp_path / "output").read_text().replace("\n", " "))
