"""`gptask train` from Python: the run folder, checkpoints, resume, and what an interruption leaves."""

import errno
import gc
import json
import logging
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from gptask import UserError, load_run, train
from gptask.config.schemas import (
    AdamW,
    DType,
    EarlyStopping,
    Files,
    Full,
    Limit,
    Lora,
    Pretrained,
    Sample,
    Schedule,
    ScheduleName,
    Scratch,
)
from gptask.model.backbone import backbone as model
from gptask.training import builder
from gptask.training.callbacks import LineProgress
from gptask.training.module import GPTModule
from gptask.training.train import build_module, resolve_schedule
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

from tests.support.configs import small_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(small_config(tmp_path_factory.mktemp("outputs")))


def test_run_folder_holds_everything_that_was_promised(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "config.yaml", "metrics.json", "predictions.jsonl", "model", "checkpoints", "metrics.csv", "train.log",
        "README.md",
    }  # fmt: skip
    assert (
        not list(finished.folder.rglob("*.bin"))
        + list(finished.folder.rglob("*.pt"))
        + list(finished.folder.rglob("*.pkl"))
    )


def test_garbage_is_searched_for_among_new_objects_only_while_training(tmp_path, monkeypatch):
    spared = []
    loss, before = GPTModule.training_step, gc.get_freeze_count()
    monkeypatch.setattr(GPTModule, "training_step", lambda *args: spared.append(gc.get_freeze_count()) or loss(*args))
    train(small_config(tmp_path, trainer={"max_epochs": 1, "accelerator": "cpu"}))
    assert min(spared) > 100_000
    assert gc.get_freeze_count() <= before
    monkeypatch.setattr(GPTModule, "training_step", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(small_config(tmp_path, trainer={"max_epochs": 1, "accelerator": "cpu"}))
    assert gc.get_freeze_count() <= before


def test_metrics_say_what_was_measured_and_how(finished):
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
    held = bytearray(b"x" * 2**30)
    said = "from gptask.training.results import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert 10 < int(done.stdout) < len(held) >> 20


def test_predictions_carry_what_a_comparison_needs(finished):
    lines = [json.loads(line) for line in (finished.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    first = lines[0]
    assert set(first) >= {"id", "digest", "text", "prediction", "references", "probabilities", "statistics"}
    assert first["statistics"]["accuracy"] == [float(first["prediction"] == first["references"]["label"])]
    value = 100 * sum(line["statistics"]["accuracy"][0] for line in lines) / 10
    assert value == pytest.approx(finished.metrics["metrics"]["accuracy"]["value"])


def test_a_loaded_run_predicts_what_the_training_run_wrote(finished):
    lines = [json.loads(line) for line in (finished.folder / "predictions.jsonl").read_text().splitlines()]
    said = list(load_run(finished.folder).predict({"text": line["text"]} for line in lines))
    assert [p.value for p in said] == [line["prediction"] for line in lines]
    assert [p.score for p in said] == pytest.approx([line["score"] for line in lines], abs=1e-4)


def test_checkpoints_load_without_unpickling_objects(finished):
    for path in (finished.folder / "checkpoints").glob("*.ckpt"):
        torch.load(path, weights_only=True)


def test_a_seed_decides_everything(finished, tmp_path):
    again = train(small_config(tmp_path))
    assert again.metrics["metrics"] == finished.metrics["metrics"]
    assert again.metrics["test_data_hash"] == finished.metrics["test_data_hash"]


@pytest.mark.parametrize("scratch", [True, False])
def test_a_run_that_leaves_out_upper_layers_loads_without_them(scratch, tiny_model, tmp_path):
    options = Scratch(n_layer=4, n_head=2, n_embd=16, context=128, vocab_size=300)
    backbone = options if scratch else Pretrained(source=str(tiny_model("llama", 128, layers=4)), dtype=DType.float32)
    finished = train(small_config(tmp_path, tuning=Lora(rank=2, layers=0.75), backbone=backbone))
    again = load_run(finished.folder)
    assert len(finished.backbone.layers) == len(again.backbone.layers) == 3
    (said,), (expected,) = (list(run.predict([{"text": "good"}])) for run in (again, finished))
    assert said.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    onto = train(small_config(tmp_path, backbone=Pretrained(source=str(finished.folder), dtype=DType.float32)))
    assert len(onto.backbone.layers) == 3


@pytest.mark.parametrize(
    ("task", "tuning", "optimizer", "expected"),
    [
        (Sentiment(), Lora(rank=2), AdamW(), (5.5e-4, 1.0)),
        (TokenTagging(), Lora(rank=2), AdamW(), (5.5e-4, 0.5)),
        (Translation(), Lora(rank=2), AdamW(), (1.6e-3, 1.0)),
        (Translation(), Lora(rank=2, lr=1e-4, top=0.5), AdamW(), (1e-4, 0.5)),
        (Translation(), Lora(rank=2, lr=1e-4), AdamW(lr=0.5), (0.5, 1.0)),
        (Translation(), Full(), AdamW(), (1e-3, None)),  # random weights
        (Translation(), Full(lr=5e-5), AdamW(), (5e-5, None)),
    ],
)
def test_what_a_config_leaves_open_head_and_model_decide(task, tuning, optimizer, expected, tmp_path):
    settings = small_config(tmp_path, task=task, tuning=tuning, optimizer=optimizer)
    module, _ = build_module(settings, builder.build_corpora(settings))
    assert (module.optimizer.lr, getattr(settings.tuning, "top", None)) == expected


@pytest.mark.parametrize(
    ("options", "train", "size", "expected"),
    [
        ({}, 24, 8, (8, 2)),  # 3 batches: as often as we dare, and two of them a step
        ({}, 70, 1, (6, 16)),
        ({}, 150, 1, (3, 16)),
        ({}, 70, 32, (8, 1)),
        ({"max_epochs": None}, 250, 1, (2, 16)),
        ({"max_epochs": 5, "accumulate_grad_batches": 1}, 70, 1, (5, 1)),
        ({"max_steps": 9}, 70, 1, (None, 16)),
    ],
)
def test_small_data_gets_more_epochs_and_small_batches_share_a_step(options, train, size, expected, tmp_path):
    data = Sample(limit=Limit(train=train, validation=8, test=8), batch_size=size)
    settings = small_config(tmp_path, data=data)
    _, made = build_module(settings, builder.build_corpora(settings))
    paced = resolve_schedule(options, made)
    assert (paced.get("max_epochs"), paced["accumulate_grad_batches"]) == expected


def test_a_stream_of_unknown_length_gets_two_epochs():
    stream = SimpleNamespace(train_dataloader=lambda: iter(()))
    assert resolve_schedule({"max_epochs": None}, stream) == {"max_epochs": 2, "accumulate_grad_batches": 1}


def test_a_run_says_at_what_pace_it_learned(tmp_path):
    given = {"accelerator": "cpu", "precision": "32-true"}
    run = train(small_config(tmp_path, trainer=given))
    assert run.values["trainer"] == {**given, "max_epochs": 8, "accumulate_grad_batches": 2}


@pytest.mark.parametrize("fast", [True, False])
def test_full_tuning_computes_in_bfloat16_where_the_processor_does(fast, monkeypatch):
    monkeypatch.setattr(model, "number_format", lambda _: torch.bfloat16 if fast else torch.float32)
    stream = SimpleNamespace(train_dataloader=lambda: iter(()))
    assert resolve_schedule({}, stream, full=True).get("precision") == ("bf16-mixed" if fast else None)
    assert resolve_schedule({"precision": "32-true"}, stream, full=True)["precision"] == "32-true"
    assert "precision" not in resolve_schedule({}, stream)


def test_mixed_precision_learns_in_bfloat16_clips_and_scores_the_weights_as_they_are_saved(tmp_path, monkeypatch):
    formats = {True: set(), False: set()}
    layer = torch.nn.functional.linear

    def linear(x, *rest):
        made = layer(x, *rest)
        formats[torch.is_grad_enabled()].add(made.dtype)
        return made

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    options = {"max_epochs": 1, "accelerator": "cpu", "precision": "bf16-mixed", "gradient_clip_val": 1e-6}
    run = train(small_config(tmp_path, trainer=options))
    assert formats == {True: {torch.bfloat16}, False: {torch.float32}}
    said = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    again = load_run(run.folder).predict([{"text": line["text"]} for line in said])
    for line, one in zip(said, again, strict=True):
        assert line["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)


def test_resume_goes_on_in_the_same_folder(tmp_path):
    first = train(small_config(tmp_path))
    steps = torch.load(first.folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    longer = {"max_epochs": 4, "accelerator": "cpu", "accumulate_grad_batches": 1}
    second = train(small_config(tmp_path, resume=str(first.folder), trainer=longer))
    assert second.folder == first.folder
    last = torch.load(first.folder / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2 * steps


def test_resume_without_checkpoint_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        train(small_config(tmp_path, resume=str(tmp_path / "empty")))


def test_ctrl_c_keeps_the_work_and_says_how_to_go_on(tmp_path):
    task = Sentiment()
    endless = small_config(
        tmp_path, task=task, folder=str(tmp_path / "run"), trainer={"max_epochs": 500, "accelerator": "cpu"}
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

    def interrupt():
        while not (tmp_path / "run/checkpoints/last.ckpt").exists() and alive.is_set():
            threading.Event().wait(0.05)
        signal.raise_signal(signal.SIGINT) if alive.is_set() else None

    alive = threading.Event()
    alive.set()
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt, match=r"interrupted\.ckpt.*gptask train resume="):
            train(endless)
    finally:
        alive.clear()
        thread.join()
        signal.signal(signal.SIGINT, before)
    going_on = torch.load(tmp_path / "run/checkpoints/interrupted.ckpt", weights_only=True)
    more = {"max_epochs": going_on["epoch"] + 2, "accelerator": "cpu"}
    done = train(small_config(tmp_path, task=task, resume=str(tmp_path / "run"), trainer=more))
    assert done.metrics["n"] == 10
    assert not (tmp_path / "run/checkpoints/interrupted.ckpt").exists()


def test_ctrl_c_during_validation_keeps_the_epoch_before_it(tmp_path, monkeypatch):
    step = GPTModule.validation_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        step(self, batch, batch_idx)

    monkeypatch.setattr(GPTModule, "validation_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted\.ckpt"):
        train(small_config(tmp_path, folder=str(tmp_path / "run")))
    monkeypatch.setattr(GPTModule, "validation_step", step)
    assert torch.load(tmp_path / "run/checkpoints/interrupted.ckpt", weights_only=True)["global_step"] == 6
    done = train(small_config(tmp_path, resume=str(tmp_path / "run"), trainer={"max_epochs": 3, "accelerator": "cpu"}))
    assert done.metrics["n"] == 10


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path, monkeypatch):
    real, calls = torch.save, []

    def full_after_one(value, target, *rest, **more):
        calls.append(1)
        if len(calls) > 2:  # best and last of the first epoch are written
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(value, target, *rest, **more)

    monkeypatch.setattr(torch, "save", full_after_one)
    with pytest.raises(UserError, match=r"No space left on device.*last\.ckpt.*resume="):
        train(small_config(tmp_path, folder=str(tmp_path / "run")))
    monkeypatch.undo()
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] > 0


def test_a_failed_start_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"multiple of backbone\.n_head"):
        train(small_config(tmp_path, backbone=Scratch(n_embd=15, n_head=2)))
    assert not list(tmp_path.rglob("train.log"))


def test_an_existing_folder_is_never_reused(tmp_path):
    with pytest.raises(UserError, match="exists; choose another"):
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


def test_without_validation_the_last_weights_are_tested_and_said_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "gptask"):
        run = train(small_config(tmp_path, trainer={"max_steps": 1, "accelerator": "cpu"}))
    assert "no validation ran" in caplog.text
    assert run.metrics["n"] == 10


def test_a_test_without_examples_is_told_and_the_model_is_kept(tmp_path, caplog):
    options = {"max_steps": 1, "accelerator": "cpu", "limit_test_batches": 0}
    with caplog.at_level(logging.WARNING, "gptask"):
        run = train(small_config(tmp_path, trainer=options))
    assert "no example was scored" in caplog.text
    assert run.metrics["metrics"] == {}
    assert load_run(run.folder).predict([{"text": "Good."}])


def test_what_validation_chooses_is_kept_with_the_best_checkpoint_and_saved(tmp_path, monkeypatch):
    chosen = iter((0.11, 0.22, 0.33, 0.44))
    told = []

    def best(probabilities, truth):
        told.append(len(probabilities))
        return next(chosen)

    monkeypatch.setattr("gptask_tasks.classification.metrics.best_threshold", best)
    scores = iter((50.0, 90.0, 90.0, 40.0))  # the second and third epochs are best: the later one counts
    monkeypatch.setattr("gptask_tasks.classification.metrics.MultiMicroF1.aggregate", lambda *_: next(scores, 1.0))
    options = {"max_epochs": 4, "accelerator": "cpu"}
    run = train(small_config(tmp_path, task=Classification(multi_label=True), trainer=options))
    assert told == [8, 8, 8, 8]
    assert run.task.threshold == load_run(run.folder).task.threshold == 0.33


def test_a_given_threshold_stays(tmp_path):
    run = train(small_config(tmp_path, task=Classification(multi_label=True, threshold=0.4)))
    assert run.task.threshold == 0.4


def test_lora_keeps_frozen_weights_out_of_checkpoints_except_those_that_cannot_be_had_again(tmp_path):
    run = train(small_config(tmp_path, tuning=Lora(rank=2)))
    assert (run.folder / "model/adapter_model.safetensors").exists()
    assert (run.folder / "model/base/model.safetensors").exists()
    assert run.metrics["trainable_parameters"] < run.metrics["parameters"]
    texts = [{"text": "good"}, {"text": "a long and dull evening"}]
    assert [p.score for p in load_run(run.folder).predict(texts)] == pytest.approx(
        [p.score for p in run.predict(texts)], abs=1e-5
    )


def test_a_trainer_option_that_does_not_exist_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'max_epochs'"):
        train(small_config(tmp_path, trainer={"max_epoch": 2}))


def test_generation_is_validated_by_its_own_metric(tmp_path):
    task = Translation()
    task.generation.max_new_tokens = 4
    run = train(small_config(tmp_path, task=task, trainer={"max_epochs": 1, "accelerator": "cpu"}))
    assert "val/bleu" in (run.folder / "metrics.csv").read_text()
    assert set(run.metrics["metrics"]) == {"bleu", "chrf"}


def test_answers_may_become_as_long_as_those_that_are_learned(tmp_path):
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


def test_labels_come_from_all_training_data_even_if_a_part_is_trained_on(tmp_path):
    rows = [{"text": f"{label} {n}", "label": label} for n in range(9) for label in "abcdef"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Files(train=str(tmp_path / "train.jsonl"), cut=0.2, limit=Limit(train=3, validation=4), max_tokens=128)
    run = train(small_config(tmp_path, task=Sentiment(), data=data, trainer={"max_steps": 1, "accelerator": "cpu"}))
    assert run.task.labels == list("abcdef")


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
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 1


def test_the_first_step_is_told_at_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("gptask.training.callbacks.progress_bar", lambda: LineProgress(every=1e9))
    with caplog.at_level(logging.INFO, "gptask"):
        train(small_config(tmp_path))
    assert re.findall(r"step (\d)/6 loss", caplog.text) == ["1"]


def test_lines_tell_loss_speed_and_time_left(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("gptask.training.callbacks.progress_bar", lambda: LineProgress(every=0))
    with caplog.at_level(logging.INFO, "gptask"):
        train(small_config(tmp_path))
        endless = {"max_epochs": -1, "max_time": "00:00:00:01", "accelerator": "cpu"}
        train(small_config(tmp_path, trainer=endless, schedule=Schedule(ScheduleName.constant, warmup=0)))
    assert re.search(r"epoch 2 step 4/6 loss \d\.\d{4} \d+ tokens/s, 0:00:0\d left", caplog.text)
    assert re.search(r"epoch 2 step 6 val/loss \S+ val/accuracy", caplog.text)
    assert re.search(r"step 4/inf .* \? left", caplog.text)
