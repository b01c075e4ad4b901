"""Trackers: what metrics.csv and metrics.json hold, read back from where each tracker keeps it; no network."""

import csv
import json
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from gptask import UserError, train
from gptask.config.schemas import MLflowLog, TensorBoardLog, WandbLog
from gptask.training import loggers

from tests.support.configs import small_config


@pytest.fixture
def proxy(monkeypatch, tmp_path):
    """A test in which something asks for a page, in this process or in one it starts, fails."""
    asked = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen():
        while True:
            try:
                connection = server.accept()[0]
            except OSError:
                return
            asked.append(connection.recv(200))
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_home"))
    yield
    server.close()
    assert not asked


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database for all of MLflow's runs here: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


def written(folder):
    """``{(metric, step): value}`` of metrics.csv, but for what depends on the clock."""
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    found = {
        (name, int(row["step"])): float(value)
        for row in rows
        for name, value in row.items()
        if value and name != "step"
    }
    tested = {name.partition("/")[2]: value for (name, _), value in found.items() if name.startswith("test/")}
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert tested == {name: score["value"] for name, score in metrics.items()}
    assert {"train/loss", "val/loss", "val/accuracy", "test/accuracy", "epoch"} <= {name for name, _ in found}
    return found


def wandb_records(folder):
    """The records of an offline run: LevelDB's log format behind seven bytes, a protobuf message each."""
    from wandb.proto import wandb_internal_pb2 as messages

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    raw, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if 2**15 - at % 2**15 < 7:  # no header is put across the end of a block
            at += 2**15 - at % 2**15
            continue
        size, kind = struct.unpack("<HB", raw[at + 4 : at + 7])
        whole += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the last part of a record
            yield messages.Record.FromString(whole)
            whole = b""


def test_metrics_csv_has_what_metrics_json_says(tmp_path):
    written(train(small_config(tmp_path)).folder)


def test_tensorboard_has_the_same_metrics(tmp_path, no_network):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(small_config(tmp_path, logger=TensorBoardLog()))
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    found = {(name, e.step): e.value for name in events.Tags()["scalars"] for e in events.Scalars(name)}
    assert found == pytest.approx(written(run.folder), rel=1e-6)


def test_mlflow_has_the_same_metrics_and_the_config(tmp_path, no_network, database):
    from mlflow import MlflowClient

    run = train(small_config(tmp_path, logger=MLflowLog(uri=database)))
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("sentiment")
    (kept,) = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == run.folder.name]
    history = {name: client.get_metric_history(kept.info.run_id, name) for name in kept.data.metrics}
    assert {(name, m.step): m.value for name, past in history.items() for m in past} == written(run.folder)
    assert kept.info.status == "FINISHED"
    assert kept.data.params["tuning.lr"] == "0.001"
    assert kept.data.params["data.limit.test"] == "10"


def test_mlflow_is_a_local_file_unless_something_else_is_asked_for(tmp_path, monkeypatch, database):
    settings = small_config(tmp_path, logger=MLflowLog())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("pytorch_lightning.loggers.MLFlowLogger", lambda *_, **given: given)
    given = loggers._mlflow(settings, tmp_path / "run")
    assert given["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert given["artifact_location"] == (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert loggers._mlflow(settings, tmp_path / "run")["tracking_uri"] == database


def test_mlflow_sends_no_telemetry():
    """In a process of its own: under pytest mlflow keeps still anyway. Without Lightning it starts in no time."""
    code = (
        "import sys, types; from pathlib import Path; from gptask.training import loggers\n"
        "from gptask.config.schemas import MLflowLog, Train; from gptask_tasks.sentiment import Sentiment\n"
        "sys.modules['pytorch_lightning.loggers'] = types.SimpleNamespace(MLFlowLogger=lambda *_, **__: None)\n"
        "loggers._mlflow(Train(task=Sentiment(), logger=MLflowLog()), Path('run'))\n"
        "from mlflow.telemetry import get_telemetry_client; assert get_telemetry_client() is None"
    )
    clean = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_wandb_has_the_same_metrics_and_the_config(tmp_path, proxy):
    run = train(small_config(tmp_path, logger=WandbLog()))
    found, hyperparameters, name, code = {}, {}, None, None
    for record in wandb_records(run.folder):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            step = row.pop("trainer/global_step")
            found |= {(key, step): value for key, value in row.items() if not key.startswith("_")}
        elif kind == "config":
            hyperparameters |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "run":
            name = record.run.display_name
        elif kind == "exit":
            code = record.exit.exit_code
    assert found == written(run.folder)
    assert (name, code) == (run.folder.name, 0)
    assert (hyperparameters["tuning.lr"], hyperparameters["data.limit.test"]) == (0.001, 10)


def test_a_crash_marks_the_run_as_failed_even_behind_the_training(tmp_path, proxy, database, monkeypatch):
    from mlflow import MlflowClient

    def crash(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("gptask.training.train.write_results", crash)
    for kind, folder in ((MLflowLog(uri=database), tmp_path / "mlflow"), (WandbLog(), tmp_path / "wandb")):
        with pytest.raises(RuntimeError, match="out of luck"):
            train(small_config(tmp_path, logger=kind, folder=str(folder)))
    client = MlflowClient(database)
    kept = client.search_runs([client.get_experiment_by_name("sentiment").experiment_id])
    assert {r.info.status for r in kept if r.info.run_name == "mlflow"} == {"FAILED"}
    deadline = time.monotonic() + 20  # wandb's own process writes behind ours
    while not (codes := [r.exit.exit_code for r in wandb_records(tmp_path / "wandb") if r.HasField("exit")]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert codes == [1]


@pytest.mark.parametrize(
    ("kind", "missing", "extra"),
    [
        (TensorBoardLog(), "tensorboard", "tensorboard"),
        (MLflowLog(), "sqlalchemy", "mlflow"),
        (WandbLog(), "wandb", "wandb"),
    ],
)
def test_a_missing_package_is_told_before_anything_is_read(kind, missing, extra, tmp_path, monkeypatch):
    real = loggers.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(UserError, match=rf"^logger={extra} needs .* pip install 'gptask\[{extra}\]'$"):
        train(small_config(tmp_path, logger=kind))
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_start_says_why_and_leaves_no_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^logger=mlflow can't start: \S"):
        train(small_config(tmp_path, logger=MLflowLog(uri=f"sqlite:///{tmp_path}/file/runs.db")))
    assert not list(tmp_path.glob("sentiment/*"))


def test_a_config_becomes_flat_and_a_users_own_keys_stay_values():
    values = {"seed": 1, "data": {"limit": {"test": None}, "labels": {"+/-": "mixed"}, "columns": {}}, "on": [1, "b"]}
    assert loggers.flat(values) == {
        "seed": 1, "data.limit.test": None, "data.labels": '{"+/-": "mixed"}', "data.columns": "{}", "on": '[1, "b"]',
    }  # fmt: skip
