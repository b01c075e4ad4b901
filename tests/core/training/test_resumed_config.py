"""What a run that goes on may change, and what makes it another training."""

import dataclasses
import json

import pytest
from gptask import UserError, train
from gptask.config.engine import Reference
from gptask.config.schemas import AdamW, Checkpoint, EarlyStopping, Files, Full, Limit
from gptask.plugins.discovery import plugin_of
from gptask.training.checkpoint_files import latest_checkpoint
from gptask.training.resume import check_resume
from gptask.training.resumed_config import resumed_config
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config

REVIEWS = [{"text": f"{word} film {number}", "label": label} for number in range(12)
           for word, label in (("good", "positive"), ("bad", "negative"))]  # fmt: skip


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def files_config(root, **changes):
    """One epoch of three steps on files in ``folder``."""
    data = {name: str(root / f"{name}.jsonl") for name in ("train", "validation", "test")}
    options = {
        "task": Classification(labels=["negative", "positive"]),
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    data = Files(**data, max_tokens=64, batch_size=8)
    return small_config(root, **({"data": data, "folder": str(root / "run")} | options | changes))


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """The folder of a finished run on files, which no test may change."""
    folder = tmp_path_factory.mktemp("files")
    for name, rows in (("train", REVIEWS), ("validation", REVIEWS[:6]), ("test", REVIEWS[6:12])):
        write_lines(folder / f"{name}.jsonl", rows)
    train(files_config(folder))
    return folder


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resumed(root, **changes):
    trainer = {"max_epochs": 2, "accelerator": "cpu"} | changes.pop("trainer", {})
    return files_config(root, **({"folder": None, "resume": str(root / "run"), "trainer": trainer} | changes))


def with_data(folder, **options):
    return {"data": dataclasses.replace(files_config(folder).data, **options)}


OTHER_TRAININGS = [
    ({"data.train": "test.jsonl"}, r'data\.train: ".*train\.jsonl" in the run, "test\.jsonl" now'),
    ({"data.limit": Limit(train=8)}, r"data\.limit\.train: null in the run, 8 now"),
    ({"data.max_tokens": 32}, r"data\.max_tokens: 64 in the run, 32 now"),
    ({"data.batch_size": 4}, r"data\.batch_size: 8 in the run, 4 now"),
    ({"seed": 14}, r"seed: 13 in the run, 14 now"),
    (
        {"task": Classification(labels=["positive", "negative"])},
        r'task\.labels: \["negative", "positive"\] in the run, \["positive", "negative"\] now',
    ),
    ({"tuning": Full(lr=2e-3)}, r"tuning\.lr: 0\.001 in the run, 0\.002 now"),
    ({"optimizer": AdamW(lr=1e-4)}, r"optimizer\.lr: 0\.001 in the run, 0\.0001 now"),
    ({"trainer": {"gradient_clip_val": 0.5}}, r"gradient_clip_val: not set in the run, 0\.5 now"),
    ({"trainer": {"precision": "64-true"}}, r'trainer\.precision: ".*" in the run, "64-true" now'),
    (
        {"trainer": {"accumulate_grad_batches": 5}},
        r"accumulate_grad_batches: \d in the run, 5 now\n  devices times .*: \d in the run, 5 now",
    ),
    ({"compile": True}, r"compile: false in the run, true now"),
    ({"task": Sentiment(labels=["negative", "positive"])}, "started with the task classification of"),
    ({"folder": "another"}, r"goes on in the folder of the run; leave folder= out"),
    ({"trainer": {"max_epochs": 1}}, r"allows no more: set trainer\.max_epochs above 1"),
]


@pytest.mark.parametrize(("changes", "message"), OTHER_TRAININGS)
def test_options_that_make_it_another_training_are_refused_with_both_values(changes, message, started):
    data = {name.removeprefix("data."): value for name, value in changes.items() if name.startswith("data.")}
    options = {name: value for name, value in changes.items() if not name.startswith("data.")}
    before = content(started)
    with pytest.raises(UserError, match=message):
        train(resumed(started, **options, **(with_data(started, **data) if data else {})))
    assert content(started) == before


def test_all_differences_are_named_at_once_with_what_may_change(started):
    with pytest.raises(UserError) as error:
        train(resumed(started, seed=14, tuning=Full(lr=2e-3)))
    first, *lines = str(error.value).splitlines()
    assert first.endswith("goes on with the options it started with, and these differ:")
    assert lines[:2] == ["  seed: 13 in the run, 14 now", "  tuning.lr: 0.001 in the run, 0.002 now"]
    assert "may change trainer.max_epochs, trainer.max_steps" in lines[2]


def test_a_run_whose_labels_are_named_by_number_goes_on(tmp_path):
    numbered = [row | {"label": int(row["label"] == "positive")} for row in REVIEWS]
    for name in ("train", "validation", "test"):
        write_lines(tmp_path / f"{name}.jsonl", numbered)
    labels = {"labels": {0: "negative", 1: "positive"}}
    train(files_config(tmp_path, **with_data(tmp_path, **labels)))
    assert check_resume(resumed(tmp_path, **with_data(tmp_path, **labels))).checkpoint
    with pytest.raises(UserError, match=r"data\.labels\.1: \"positive\" in the run, \"good\" now"):
        check_resume(resumed(tmp_path, **with_data(tmp_path, labels={0: "negative", 1: "good"})))


def test_a_changed_data_file_is_refused_and_the_same_one_is_not(started):
    file, text = started / "train.jsonl", (started / "train.jsonl").read_text()
    try:
        file.write_text(text.replace("good film 3", "good films"))
        before = content(started / "run")
        with pytest.raises(UserError, match=r"train has changed: its content hashes were .* and are"):
            train(resumed(started))
        assert content(started / "run") == before
    finally:
        file.write_text(text)
    assert check_resume(resumed(started)).config.trainer["max_epochs"] == 2


def test_another_version_of_the_plugin_is_refused(started, monkeypatch):
    monkeypatch.setattr(plugin_of(Classification()), "version", "99")
    with pytest.raises(UserError, match=r"started with the task .*, and this would go on with .* 99"):
        train(resumed(started))


def test_options_that_may_change_act_and_those_chosen_at_the_start_stay(started, monkeypatch):
    monkeypatch.setattr("gptask.training.resolve.MAX_EPOCHS", 1)  # would choose other epochs today
    changes = with_data(started, workers=1, eval_batch_size=2)
    changes |= {"early_stopping": EarlyStopping(patience=3), "checkpoint": Checkpoint(minutes=None)}
    changes |= {"engine": Reference(), "probe": True}
    start = check_resume(resumed(started, **changes, trainer={"log_every_n_steps": 1, "devices": 1, "max_steps": 9}))
    config = start.config
    assert (config.data.workers, config.data.eval_batch_size, config.probe) == (1, 2, True)
    assert (config.early_stopping.patience, config.checkpoint.minutes, config.engine) == (3, None, Reference())
    assert {"max_epochs": 2, "max_steps": 9, "devices": 1}.items() <= config.trainer.items()
    assert config.trainer["accumulate_grad_batches"] >= 1
    assert (config.tuning.lr, config.optimizer.lr, config.data.seed) == (1e-3, 1e-3, 13)
    assert (config.folder, config.resume) == (str(started / "run"), str(started / "run"))


@pytest.mark.parametrize(("devices", "accumulate", "accepted"), [(2, 2, True), (2, 4, False), (4, 1, True)])
def test_other_devices_go_on_where_the_global_batch_is_the_same(devices, accumulate, accepted, started):
    _, checkpoint = latest_checkpoint(started / "run")
    record = checkpoint["gptask"]["record"]
    record["config"]["trainer"]["accumulate_grad_batches"] = 4
    trainer = {"devices": devices, "accumulate_grad_batches": accumulate}
    config = resumed(started, trainer=trainer)
    if accepted:
        assert trainer.items() <= resumed_config(config, record, started / "run", devices).trainer.items()
    else:
        with pytest.raises(UserError, match=r"accumulate_grad_batches: 4 in the run, 8 now"):
            resumed_config(config, record, started / "run", devices)
