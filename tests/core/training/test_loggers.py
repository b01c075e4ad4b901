"""Trackers hold the values of metrics.csv and metrics.json, read back from each tracker's own files; no network."""

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
    """Fail a test in which this process, or one that it starts, sends an HTTP request."""
    requests = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen():
        while True:
            try:
                connection = server.accept()[0]
            except OSError:
                return
            requests.append(connection.recv(200))
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_home"))
    yield
    server.close()
    assert not requests


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One database for all MLflow runs of this module: creating its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


def csv_metrics(folder):
    """``{(metric, step): value}`` of metrics.csv, checked against metrics.json."""
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    values = {
        (name, int(row["step"])): float(value)
        for row in rows
        for name, value in row.items()
        if value and name != "step"
    }
    tested = {name.partition("/")[2]: value for (name, _), value in values.items() if name.startswith("test/")}
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert tested == {name: score["value"] for name, score in metrics.items()}
    assert {"train/loss", "val/loss", "val/accuracy", "test/accuracy", "epoch"} <= {name for name, _ in values}
    return values


def wandb_records(folder):
    """The records of an offline run, protobuf messages in LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2 as messages

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    raw, offset, message = file.read_bytes(), 7, b""
    while offset + 7 <= len(raw):
        if 2**15 - offset % 2**15 < 7:  # no header crosses the end of a block
            offset += 2**15 - offset % 2**15
            continue
        size, kind = struct.unpack("<HB", raw[offset + 4 : offset + 7])
        message += raw[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # the last part of a record
            yield messages.Record.FromString(message)
            message = b""


def test_metrics_csv_has_the_scores_of_metrics_json(tmp_path):
    csv_metrics(train(small_config(tmp_path)).folder)


def test_tensorboard_has_the_same_metrics(tmp_path, no_network):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(small_config(tmp_path, logger=TensorBoardLog()))
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    values = {(name, e.step): e.value for name in events.Tags()["scalars"] for e in events.Scalars(name)}
    assert values == pytest.approx(csv_metrics(run.folder), rel=1e-6)


def test_mlflow_has_the_same_metrics_and_the_config(tmp_path, no_network, database):
    from mlflow import MlflowClient

    run = train(small_config(tmp_path, logger=MLflowLog(uri=database)))
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("sentiment")
    (tracked_run,) = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == run.folder.name]
    history = {name: client.get_metric_history(tracked_run.info.run_id, name) for name in tracked_run.data.metrics}
    assert {(name, m.step): m.value for name, points in history.items() for m in points} == csv_metrics(run.folder)
    assert tracked_run.info.status == "FINISHED"
    assert tracked_run.data.params["tuning.lr"] == "0.001"
    assert tracked_run.data.params["data.limit.test"] == "10"


def test_mlflow_is_a_local_file_unless_the_environment_names_a_server(tmp_path, monkeypatch, database):
    settings = small_config(tmp_path, logger=MLflowLog())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("pytorch_lightning.loggers.MLFlowLogger", lambda *_, **arguments: arguments)
    arguments = loggers._mlflow(settings, tmp_path / "run")
    assert arguments["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert arguments["artifact_location"] == (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert loggers._mlflow(settings, tmp_path / "run")["tracking_uri"] == database


def test_mlflow_sends_no_telemetry():
    """In its own process, since under pytest mlflow sends none anyway; a stub for Lightning makes it start fast."""
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
    values, hyperparameters, name, code = {}, {}, None, None
    for record in wandb_records(run.folder):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            step = row.pop("trainer/global_step")
            values |= {(key, step): value for key, value in row.items() if not key.startswith("_")}
        elif kind == "config":
            hyperparameters |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "run":
            name = record.run.display_name
        elif kind == "exit":
            code = record.exit.exit_code
    assert values == csv_metrics(run.folder)
    assert (name, code) == (run.folder.name, 0)
    assert (hyperparameters["tuning.lr"], hyperparameters["data.limit.test"]) == (0.001, 10)


def test_a_crash_after_the_training_marks_the_run_as_failed(tmp_path, proxy, database, monkeypatch):
    from mlflow import MlflowClient

    def crash(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("gptask.training.results.write_results", crash)
    for kind, folder in ((MLflowLog(uri=database), tmp_path / "mlflow"), (WandbLog(), tmp_path / "wandb")):
        with pytest.raises(RuntimeError, match="out of luck"):
            train(small_config(tmp_path, logger=kind, folder=str(folder)))
    client = MlflowClient(database)
    tracked_runs = client.search_runs([client.get_experiment_by_name("sentiment").experiment_id])
    assert {r.info.status for r in tracked_runs if r.info.run_name == "mlflow"} == {"FAILED"}
    deadline = time.monotonic() + 20  # wandb's own process writes asynchronously
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
def test_a_missing_package_is_an_error_before_data_is_read(kind, missing, extra, tmp_path, monkeypatch):
    find_spec = loggers.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(UserError, match=rf"^logger={extra} needs .* pip install 'gptask\[{extra}\]'$"):
        train(small_config(tmp_path, logger=kind))
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_start_is_an_error_with_the_cause_and_leaves_no_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^logger=mlflow can't start: \S"):
        train(small_config(tmp_path, logger=MLflowLog(uri=f"sqlite:///{tmp_path}/file/runs.db")))
    assert not list(tmp_path.glob("sentiment/*"))


def test_a_config_is_flattened_and_maps_with_a_users_own_keys_become_json():
    values = {"seed": 1, "data": {"limit": {"test": None}, "labels": {"+/-": "mixed"}, "columns": {}}, "on": [1, "b"]}
    assert loggers.flatten_config(values) == {
        "seed": 1, "data.limit.test": None, "data.labels": '{"+/-": "mixed"}', "data.columns": "{}", "on": '[1, "b"]',
    }  # fmt: skip
