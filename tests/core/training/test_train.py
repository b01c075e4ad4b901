"""`gptask train` from Python: the run folder, what is kept and tested, what is refused."""

import gc
import json
import logging
import re
import subprocess
import sys

import pytest
import torch
from gptask import UserError, load_run, train
from gptask.config.schemas import (
    DType,
    EarlyStopping,
    Files,
    Full,
    HeadOnly,
    Limit,
    Lora,
    Pretrained,
    Scratch,
)
from gptask.runs.config_file import read_config
from gptask.runs.manifest import read_manifest
from gptask.training.builder import build_corpus
from gptask.training.module import GPTModule
from gptask.training.task_runtime import TaskRuntime
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation
from safetensors.numpy import load_file

from tests.support.configs import small_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(small_config(tmp_path_factory.mktemp("outputs")))


def test_the_run_folder_holds_model_metrics_predictions_and_logs(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "config.yaml", "metrics.json", "predictions.jsonl", "model", "checkpoints", "metrics.csv", "train.log",
        "README.md", "manifest.json", "splits.safetensors",
    }  # fmt: skip
    assert (
        not list(finished.folder.rglob("*.bin"))
        + list(finished.folder.rglob("*.pt"))
        + list(finished.folder.rglob("*.pkl"))
    )


def test_existing_objects_are_frozen_for_the_garbage_collector_while_training(tmp_path, monkeypatch):
    frozen_counts = []
    step, before = GPTModule.training_step, gc.get_freeze_count()
    monkeypatch.setattr(
        GPTModule, "training_step", lambda *args: frozen_counts.append(gc.get_freeze_count()) or step(*args)
    )
    train(small_config(tmp_path, trainer={"max_epochs": 1, "accelerator": "cpu"}))
    assert min(frozen_counts) > 100_000
    assert gc.get_freeze_count() <= before
    monkeypatch.setattr(GPTModule, "training_step", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(small_config(tmp_path, trainer={"max_epochs": 1, "accelerator": "cpu"}))
    assert gc.get_freeze_count() <= before


def test_metrics_json_holds_scores_intervals_cost_and_versions(finished):
    metrics = finished.metrics
    accuracy = metrics["metrics"]["accuracy"]
    assert metrics["n"] == accuracy["n"] == 10
    low, high = accuracy["interval"]
    assert low <= accuracy["value"] <= high
    assert accuracy["direction"] == "higher"
    assert metrics["metrics"]["ece"]["direction"] == "lower"
    assert metrics["train_tokens_per_second"] > 0
    assert metrics["peak_memory_mb"] > 0
    assert metrics["trainable_parameters"] == metrics["parameters"]
    assert metrics["versions"]["torch"] == torch.__version__
    assert len(metrics["details"]["confusion_matrix"]["rows_are_true"]) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the figure is the system's own")
def test_peak_memory_does_not_count_the_process_that_started_this_one():
    gigabyte = bytearray(b"x" * 2**30)
    code = "from gptask.training.results import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10 < int(done.stdout) < len(gigabyte) >> 20


def test_predictions_hold_references_and_statistics_for_a_comparison(finished):
    lines = [json.loads(line) for line in (finished.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    first = lines[0]
    assert set(first) >= {"id", "digest", "text", "prediction", "references", "probabilities", "statistics"}
    assert first["statistics"]["accuracy"] == [float(first["prediction"] == first["references"]["label"])]
    value = 100 * sum(line["statistics"]["accuracy"][0] for line in lines) / 10
    assert value == pytest.approx(finished.metrics["metrics"]["accuracy"]["value"])


def test_a_loaded_run_predicts_what_the_training_run_wrote(finished):
    lines = [json.loads(line) for line in (finished.folder / "predictions.jsonl").read_text().splitlines()]
    predictions = list(load_run(finished.folder).predict({"text": line["text"]} for line in lines))
    assert [p.value for p in predictions] == [line["prediction"] for line in lines]
    assert [p.score for p in predictions] == pytest.approx([line["score"] for line in lines], abs=1e-4)


def test_the_manifest_seals_the_run_and_its_splits_are_those_of_the_data(finished, tmp_path):
    manifest = read_manifest(finished.folder)
    manifest.verify()
    assert (manifest.method, manifest.parent) == ("train", None)
    assert manifest.fingerprint == finished.metrics["fingerprint"]
    assert {"config.yaml", "metrics.json", "predictions.jsonl", "splits.safetensors"} <= manifest.files.keys()
    config = small_config(tmp_path)
    corpus = build_corpus(config.task, config.data, config.seed)
    splits = load_file(finished.folder / "splits.safetensors")
    assert {name: digests.tolist() for name, digests in splits.items()} == {
        name: corpus.split(name).digests.tolist() for name in ("train", "validation", "test")
    }
    assert {name: entry["n"] for name, entry in manifest.splits.items()} == {"train": 24, "validation": 8, "test": 10}
    lines = (finished.folder / "predictions.jsonl").read_text().splitlines()
    assert [int(json.loads(line)["digest"], 16) - 2**63 for line in lines] == splits["test"].tolist()


def test_checkpoints_load_without_unpickling_objects(finished):
    for path in (finished.folder / "checkpoints").glob("*.ckpt"):
        torch.load(path, weights_only=True)


def test_the_same_seed_gives_the_same_metrics(finished, tmp_path):
    again = train(small_config(tmp_path))
    assert again.metrics["metrics"] == finished.metrics["metrics"]
    assert again.metrics["test_data_hash"] == finished.metrics["test_data_hash"]


def test_a_run_without_the_upper_layers_loads_without_them(tiny_model, tmp_path):
    backbone = Pretrained(source=str(tiny_model("llama", 128, layers=4)), dtype=DType.float32)
    finished = train(small_config(tmp_path, tuning=Lora(rank=2, layers=0.75), backbone=backbone))
    again = load_run(finished.folder)
    assert len(finished.backbone.layers) == len(again.backbone.layers) == 3
    (prediction,), (expected,) = (list(run.predict([{"text": "good"}])) for run in (again, finished))
    assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    onto = train(small_config(tmp_path, backbone=Pretrained(source=str(finished.folder), dtype=DType.float32)))
    assert len(onto.backbone.layers) == 3


def test_mixed_precision_trains_in_bfloat16_with_clipping_and_scores_in_float32_as_a_loaded_run(tmp_path, monkeypatch):
    formats = {True: set(), False: set()}
    layer = torch.nn.functional.linear

    def linear(x, *args):
        y = layer(x, *args)
        formats[torch.is_grad_enabled()].add(y.dtype)
        return y

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    options = {"max_epochs": 1, "accelerator": "cpu", "precision": "bf16-mixed", "gradient_clip_val": 1e-6}
    run = train(small_config(tmp_path, trainer=options))
    assert formats == {True: {torch.bfloat16}, False: {torch.float32}}
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    predictions = load_run(run.folder).predict([{"text": line["text"]} for line in lines])
    for line, prediction in zip(lines, predictions, strict=True):
        assert line["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)


def test_a_failed_start_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"multiple of backbone\.n_head"):
        train(small_config(tmp_path, backbone=Scratch(n_embd=15, n_head=2)))
    assert not list(tmp_path.rglob("train.log"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"foo": "text"}}, r"^data\.columns\.foo: the task has no field 'foo'; it has label, text"),
        ({"test_columns": {"foo": "text"}}, r"^data\.test_columns\.foo: the task has no field 'foo'"),
        (
            {"columns": {"text": ["text", "label"]}},
            r"^data\.columns\.text=\[text, label\]: text is text, and takes one",
        ),
        ({"labels": "nofile.txt"}, r"^no such file: nofile\.txt"),
        ({"labels": {"1": None}}, r"^data\.labels gives '1' the name None"),
        ({"delimiter": "xx"}, r"^data\.delimiter='xx' must be"),
        ({"quote": "xx"}, r"^data\.quote='xx' must be"),
        ({"encoding": "xx"}, r"^data\.encoding='xx' is unknown"),
        ({"format": "xx"}, r"^data\.format='xx' is unknown"),
        ({"format": "lines", "pattern": "("}, r"^data\.pattern '\(' is not a valid"),
        ({"format": "lines", "pattern": "x"}, r"^data\.pattern 'x' names no group"),
        # what only the rows tell
        ({"labels": {"1": "a"}}, r"^d\.csv:2: label 'good' is not in data\.labels: 1"),
        ({"columns": {"text": "nix"}}, r"^d\.csv:2: no column 'nix' for text"),
        ({"group": "nix"}, r"^d\.csv:2: no column 'nix' for data\.group"),
        ({"test": "bad.csv", "validation": "d.csv"}, r"^bad\.csv:2: the label is null|^bad\.csv:2: the label is empty"),
    ],
)
def test_a_wrong_option_of_data_leaves_no_folder(options, message, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.csv").write_text(
        "text,label\n" + "".join(f"text {n},{'good' if n % 2 else 'bad'}\n" for n in range(1, 9))
    )
    (tmp_path / "bad.csv").write_text("text,label\na text,\n")
    caplog.set_level(logging.INFO, "gptask")
    data = Files(**({"train": "d.csv", "test": "d.csv"} | options))
    with pytest.raises(UserError, match=message) as raised:
        train(small_config(tmp_path / "new" / "outputs", task=Classification(), data=data))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()
    assert message.startswith((r"^d\.csv", r"^bad\.csv")) == ("run folder" in caplog.text)


def test_an_existing_folder_is_never_reused(tmp_path):
    with pytest.raises(UserError, match="exists: choose another"):
        train(small_config(tmp_path, folder=str(tmp_path)))


def test_early_stopping_watches_the_main_metric(tmp_path):
    run = train(
        small_config(
            tmp_path,
            tuning=Full(lr=1e-9),  # nothing can improve
            early_stopping=EarlyStopping(patience=1),
            trainer={"max_epochs": 9, "accelerator": "cpu"},
        )
    )
    assert torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2 * 2


def test_without_validation_a_warning_says_that_the_last_weights_are_tested(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "gptask"):
        run = train(small_config(tmp_path, trainer={"max_steps": 1, "accelerator": "cpu", "limit_val_batches": 0}))
    assert "no validation ran" in caplog.text
    assert run.metrics["n"] == 10


def test_a_test_without_examples_warns_and_keeps_the_model(tmp_path, caplog):
    options = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "limit_test_batches": 0,
    }  # what validation found is not the test's
    with caplog.at_level(logging.WARNING, "gptask"):
        run = train(small_config(tmp_path, trainer=options))
    assert "no example was scored" in caplog.text
    assert run.metrics["metrics"] == {}
    assert load_run(run.folder).predict([{"text": "Good."}])


def test_the_threshold_chosen_on_validation_belongs_to_the_best_checkpoint_and_is_saved(tmp_path, monkeypatch):
    thresholds = iter((0.11, 0.22, 0.33, 0.44))
    example_counts = []

    def best_threshold(probabilities, truth):
        example_counts.append(len(probabilities))
        return next(thresholds)

    monkeypatch.setattr("gptask_tasks.classification.metrics.best_threshold", best_threshold)
    scores = iter((50.0, 90.0, 90.0, 40.0))  # the second and third epochs are best: the later one counts
    monkeypatch.setattr("gptask_tasks.classification.metrics.MultiMicroF1.aggregate", lambda *_: next(scores, 1.0))
    options = {"max_epochs": 4, "accelerator": "cpu"}
    run = train(small_config(tmp_path, task=Classification(multi_label=True), trainer=options))
    assert example_counts == [8, 8, 8, 8]
    assert run.task.threshold == load_run(run.folder).task.threshold == 0.33


def test_a_threshold_from_the_config_is_not_tuned(tmp_path):
    run = train(small_config(tmp_path, task=Classification(multi_label=True, threshold=0.4)))
    assert run.task.threshold == 0.4


def test_a_lora_run_saves_the_adapter_alone(tiny_model, tmp_path):
    backbone = Pretrained(source=str(tiny_model("llama", 128)), dtype=DType.float32)
    run = train(small_config(tmp_path, backbone=backbone, tuning=Lora(rank=2)))
    assert (run.folder / "model/adapter_model.safetensors").exists()
    assert not (run.folder / "model/model.safetensors").exists()
    assert run.metrics["trainable_parameters"] < run.metrics["parameters"]
    texts = [{"text": "good"}, {"text": "a long and dull evening"}]
    assert [p.score for p in load_run(run.folder).predict(texts)] == pytest.approx(
        [p.score for p in run.predict(texts)], abs=1e-5
    )


def test_a_trainer_option_that_does_not_exist_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'max_epochs'"):
        train(small_config(tmp_path, trainer={"max_epoch": 2}))


def test_a_generation_task_is_validated_by_bleu(tmp_path):
    task = Translation()
    task.generation.max_new_tokens = 4
    run = train(small_config(tmp_path, task=task, trainer={"max_epochs": 1, "accelerator": "cpu"}))
    assert "val/bleu" in (run.folder / "metrics.csv").read_text()
    assert set(run.metrics["metrics"]) == {"bleu", "chrf"}


def test_generated_answers_may_be_as_long_as_the_training_targets(tmp_path):
    rows = [{"source": f"word {n}", "target": "xyzzy " * 30} for n in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Files(train=str(tmp_path / "train.jsonl"), cut=0.2, max_tokens=512)
    run = train(small_config(tmp_path, task=Translation(), data=data, trainer={"max_steps": 1, "accelerator": "cpu"}))
    needed = len(run.backbone.tokenizer(" " + rows[0]["target"].strip())["input_ids"]) + 1
    assert needed <= load_run(run.folder).task.generation.max_new_tokens < needed + 8


def test_python_values_are_checked_and_converted_as_on_the_command_line(tmp_path):
    with pytest.raises(UserError, match=r"threshold.*could not be converted to Float"):
        train(small_config(tmp_path, task=Sentiment(threshold="high")))
    task = Translation(target_lang="zh")
    train(small_config(tmp_path, task=task, folder=tmp_path / "run", trainer={"max_steps": 1, "accelerator": "cpu"}))
    assert (tmp_path / "run/metrics.json").exists()


def test_labels_come_from_all_training_data_even_if_it_is_limited_and_the_log_counts_them(tmp_path, caplog):
    caplog.set_level("INFO", "gptask")
    rows = [{"text": f"{label} {n}", "label": label} for n in range(9) for label in "abcdef"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Files(train=str(tmp_path / "train.jsonl"), cut=0.2, limit=Limit(train=3, validation=4), max_tokens=128)
    run = train(small_config(tmp_path, task=Sentiment(), data=data, trainer={"max_steps": 1, "accelerator": "cpu"}))
    assert run.task.labels == list("abcdef")
    (table,) = [text for text in caplog.messages if text.startswith("label: 6 classes\n")]
    header, *rows = [line.split() for line in table.splitlines()[1:8]]
    assert header == ["label", "train", "validation", "test"]
    assert sorted(name for name, *_ in rows) == list("abcdef")
    assert [sum(int(row[split]) for row in rows) for split in (1, 2)] == [3, 4]


@pytest.mark.slow
def test_two_processes_write_one_run_folder(tmp_path):
    small = "backbone.n_layer=1 backbone.n_embd=16 backbone.n_head=2 data.limit.train=32 data.limit.validation=8"
    command = [sys.executable, "-m", "gptask", "train", "backbone=nano", *small.split(), "trainer.max_epochs=1"]
    options = ["trainer.devices=2", "trainer.accelerator=cpu", "task.prompt=Text (a, b): {text}\\nMood:", "probe=false"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs/sentiment").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["n"] == 100
    assert done.stdout.count("run folder:") == 1
    assert (done.stdout + done.stderr).count("label: 3 classes") == 1
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 1


# --- random weights and options that would leave them as they are --------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tuning": Lora(rank=2)},
            "tuning=lora keeps the weights of the backbone, .* are random: set tuning=full",
        ),
        ({"tuning": HeadOnly()}, "tuning=head keeps the weights of the backbone"),
        ({"trainer": {"max_epochs": 0}}, r"trainer\.max_epochs=0 trains nothing, and the weights .* are random"),
        ({"trainer": {"max_steps": 0}}, r"trainer\.max_steps=0 trains nothing"),
        ({"trainer": {"limit_train_batches": 0.0}}, r"trainer\.limit_train_batches=0 trains nothing"),
    ],
)
def test_options_that_leave_random_weights_as_they_are_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(small_config(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_a_tuning_that_python_leaves_open_is_full_for_random_weights(tmp_path, caplog):
    config = small_config(tmp_path, tuning=None, trainer={"max_steps": 1, "accelerator": "cpu"})
    assert config.tuning is None
    with caplog.at_level(logging.INFO, "gptask"):
        run = train(config)
    assert re.search(r"^  tuning +full +random weights have to learn$", caplog.text, re.M)
    assert read_config(run.folder)["tuning"] == {"kind": "full_schema", "lr": 1e-3}
    assert run.metrics["trainable_parameters"] == run.metrics["parameters"]


def test_no_epoch_on_pretrained_weights_is_said(tiny_model, tmp_path, caplog):
    backbone = Pretrained(source=str(tiny_model("gpt2", 128)), dtype=DType.float32)
    settings = small_config(tmp_path, backbone=backbone, trainer={"max_epochs": 0, "accelerator": "cpu"})
    with caplog.at_level(logging.WARNING, "gptask"):
        run = train(settings)
    assert "nothing was trained (trainer.max_epochs=0): backbone and heads are tested as they are" in caplog.text
    assert run.metrics["n"] == 10


def test_a_best_epoch_far_before_the_last_is_said(tmp_path, monkeypatch, caplog):
    values = iter([50.0, 60.0, 55.0, 54.0, 53.0])
    monkeypatch.setattr(TaskRuntime, "validation_scores", lambda self: [(self.task.metrics()[0], next(values))])
    with caplog.at_level("INFO"):
        train(small_config(tmp_path, trainer={"max_epochs": 5, "accelerator": "cpu"}))
    assert "validation was best after epoch 2 of 5" in caplog.text
    assert "early_stopping.patience=2" in caplog.text
