"""Several tasks on one backbone, from Python: one training, one run folder, each task as if it had a run of its own."""

import dataclasses
import gc
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gptask import Config, Mixing, TaskConfig, UserError, load_run, load_runs, train, train_tasks, weights_hash
from gptask.analysis.compare.comparison import compare
from gptask.analysis.compare.records import find_runs, read_run
from gptask.analysis.report.curves import learning_curves
from gptask.config.schemas import Evaluate, Full, Limit, Lora, Pretrained, Sample, Sampling
from gptask.model.backbone.backbone import GPTBackbone
from gptask.runs.config_file import write_config
from gptask.runs.manifest import read_manifest
from gptask.runs.saved_model import locate_backbone
from gptask.training import builder
from gptask.training.evaluate import evaluate
from gptask.training.fingerprint import _weights_hash, run_fingerprint
from gptask.training.train import build_module
from gptask.training.trainer import monitor
from gptask_tasks.classification import Classification
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config


def sample_data(**options):
    return Sample(**({"limit": Limit(train=24, validation=8, test=10), "max_tokens": 128, "batch_size": 8} | options))


def multitask_config(outputs, **changes):
    """Two classification tasks and a generation task on a tiny GPT-2."""
    tasks = {
        "mood": TaskConfig(Sentiment(), sample_data()),
        "topic": TaskConfig(Classification(), sample_data(), weight=0.5),
        "qa": TaskConfig(QuestionAnswering(), sample_data(limit=Limit(train=8, validation=2, test=3), max_tokens=128)),
    }
    return dataclasses.replace(small_config(outputs), **({"task": None, "data": None, "tasks": tasks} | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train_tasks(multitask_config(tmp_path_factory.mktemp("outputs")))


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_run_folder_holds_one_model_and_a_run_folder_for_each_task(finished):
    assert finished.folder.parent.name == "mood+topic+qa"
    assert {path.name for path in finished.folder.iterdir()} == {
        "config.yaml", "metrics.json", "model", "checkpoints", "metrics.csv", "train.log", "README.md",
        "manifest.json", "mood", "topic", "qa",
    }  # fmt: skip
    for name in ("mood", "topic", "qa"):
        task_files = {path.name for path in (finished.folder / name).iterdir()}
        assert task_files == {
            "config.yaml", "metrics.json", "predictions.jsonl", "splits.safetensors", "README.md", "manifest.json",
        }  # fmt: skip
        result = json.loads((finished.folder / name / "metrics.json").read_text())
        assert result["overlap"] == {"train": 0, "validation": 0}
    heads = {path.name for path in (finished.folder / "model").glob("head*")}
    assert heads == {"head.mood.safetensors", "head.topic.safetensors"}  # generation owns no weights


def test_the_run_and_each_task_have_a_manifest_and_the_model_is_checked_against_the_runs(finished, tmp_path):
    folder = Path(shutil.copytree(finished.folder, tmp_path / "copy"))
    parts = {part: read_manifest(folder / part) for part in (".", "mood", "topic", "qa")}
    for manifest in parts.values():
        manifest.verify()
        assert manifest.fingerprint == finished.metrics["fingerprint"]
    assert (parts["."].splits, parts["qa"].splits["train"]["n"]) == ({}, 8)
    assert "model/head.mood.safetensors" in parts["."].files
    (folder / "mood/predictions.jsonl").unlink()
    load_run(folder / "topic")
    with (folder / "model/head.mood.safetensors").open("ab") as stream:
        stream.write(b"more")
    for load, part in ((load_run, "topic"), (load_runs, "."), (weights_hash, "qa")):
        with pytest.raises(UserError, match=r"model/head\.mood\.safetensors has"):
            load(folder / part)
    assert read_run(folder / "mood").damaged
    assert [record.folder.name for record in find_runs([str(folder)]) if record.damaged] == ["mood"]
    (folder / "mood/metrics.json").unlink()
    assert len(find_runs([str(folder)])) == 3  # a task that lacks a file is not overlooked


def test_the_model_of_one_of_several_tasks_is_a_backbone(finished, tmp_path):
    sources = [Pretrained(source=str(folder)) for folder in (finished.folder, finished.folder / "topic")]
    whole, task = (locate_backbone(source) for source in sources)
    assert (whole.location, whole.weights_hash) == (task.location, task.weights_hash)
    for source in sources:  # of which a fingerprint depends on the weights, not the folder's name alone
        assert _weights_hash(small_config(tmp_path, backbone=source)) == whole.weights_hash


def test_each_task_has_its_own_metrics_and_the_run_repeats_the_main_ones(finished):
    assert list(finished.tasks["qa"].metrics["metrics"]) == ["f1", "em"]
    assert finished.tasks["topic"].metrics["task"] == "classification"
    run_metrics = finished.metrics
    assert run_metrics["tasks"]["qa"]["metrics"]["f1"] == finished.tasks["qa"].metrics["metrics"]["f1"]
    assert [task_metrics["n"] for task_metrics in run_metrics["tasks"].values()] == [10, 10, 3]
    card = (finished.folder / "README.md").read_text()
    assert "[mood](mood/README.md)" in card
    assert f"{run_metrics['trainable_parameters']:,} of" in card


def test_all_tasks_share_one_backbone_whose_parameters_are_counted_once(finished):
    backbone = finished.tasks["mood"].backbone
    shared = sum(p.numel() for p in backbone.parameters())
    heads = {name: sum(p.numel() for p in run.head.parameters()) for name, run in finished.tasks.items()}
    assert all(run.backbone is backbone for run in finished.tasks.values())
    assert finished.metrics["trainable_parameters"] == shared + sum(heads.values())
    for name, run in finished.tasks.items():
        assert run.metrics["trainable_parameters"] == shared + heads[name]


def test_a_loaded_run_holds_the_backbone_once(finished, monkeypatch):
    backbones, original_init = [], GPTBackbone.__init__

    def counting_init(self, *args):
        original_init(self, *args)
        backbones.append(weakref.ref(self))

    monkeypatch.setattr(GPTBackbone, "__init__", counting_init)
    loaded = load_runs(finished.folder)
    gc.collect()
    assert len([backbone for backbone in backbones if backbone()]) == 1
    assert len({id(run.backbone) for run in loaded.tasks.values()}) == 1
    shared = {p.data_ptr() for p in loaded.tasks["mood"].backbone.parameters()}
    for run in loaded.tasks.values():  # nor does a head hold a copy of it
        assert not {p.data_ptr() for p in run.head.parameters()} & shared
        assert sum(p.numel() for p in run.head.parameters()) < sum(p.numel() for p in run.backbone.parameters()) / 10


def test_loaded_tasks_predict_what_the_training_run_wrote(finished):
    for name, run in load_runs(finished.folder).tasks.items():
        rows = lines(finished.folder / name)
        fields = [field.name for field in run.task.inputs()]
        predictions = list(run.predict({field: row[field] for field in fields} for row in rows))
        assert [prediction.value for prediction in predictions] == [row["prediction"] for row in rows]
        single_run = load_run(finished.folder / name)
        (prediction,) = single_run.predict([{field: rows[0][field] for field in fields}])
        assert prediction.value == rows[0]["prediction"]


def test_a_run_of_one_task_loads_the_same_way(tmp_path):
    run = train(small_config(tmp_path))
    assert list(load_runs(run.folder).tasks) == ["sentiment"]


def test_a_run_of_several_tasks_is_refused_where_one_is_needed(finished):
    with pytest.raises(UserError, match=r"a run of several tasks: mood, topic, qa\. Take .*mood"):
        load_run(finished.folder)
    with pytest.raises(UserError, match="train_tasks"):
        train(multitask_config("nowhere"))


def test_evaluation_of_a_task_scores_as_the_training_did(finished, tmp_path):
    run = finished.tasks["topic"]
    folder = evaluate(
        Evaluate(task=run.task, backbone=small_config(tmp_path).backbone, data=sample_data(), run=str(run.folder),
                 outputs=str(tmp_path))
    )  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == run.metrics["metrics"]


def test_training_and_validation_are_logged_by_task(finished):
    names = set(learning_curves(finished.folder))
    assert {"train/loss", "train/qa/loss", "val/mood/accuracy", "val/topic/loss", "val/qa/f1", "val/score"} <= names
    qa_curves = learning_curves(*read_run(finished.folder / "qa").curves_source)
    assert {"train/loss", "val/loss", "val/f1", "val/em"} == set(qa_curves)


def test_compare_sees_a_row_for_each_task_and_tests_it_against_a_run_alone(finished, tmp_path):
    alone = train(small_config(tmp_path, task=Sentiment()))
    records = find_runs([str(finished.folder), str(alone.folder)])
    assert sorted(record.folder.name for record in records if record.folder.parent == finished.folder) == [
        "mood", "qa", "topic",
    ]  # fmt: skip
    pair = [record for record in records if record.task == "sentiment"]
    (table,) = compare(pair, every=True).tables
    assert len(table.verdicts["accuracy"]) == 1
    assert read_run(finished.folder).problem.startswith("a run of several tasks")


def test_another_mixing_gives_the_run_another_digest(finished, tmp_path):
    other = train_tasks(multitask_config(tmp_path, mixing=Mixing(Sampling.uniform)))
    digests = [run.tasks["mood"].config["together"]["digest"] for run in (finished, other)]
    assert digests[0] != digests[1]


def test_the_same_seed_gives_the_same_metrics(finished, tmp_path):
    again = train_tasks(multitask_config(tmp_path))
    for name, run in again.tasks.items():
        assert run.metrics["metrics"] == finished.tasks[name].metrics["metrics"]


def test_resume_continues_all_tasks(tmp_path):
    first = train_tasks(multitask_config(tmp_path))
    before = torch.load(first.folder / "checkpoints/last.ckpt", weights_only=True)
    longer = {"max_epochs": 3, "accelerator": "cpu", "accumulate_grad_batches": 1}
    again = train_tasks(multitask_config(tmp_path, trainer=longer, resume=str(first.folder)))
    after = torch.load(first.folder / "checkpoints/last.ckpt", weights_only=True)
    assert again.folder == first.folder
    assert (before["epoch"], after["epoch"]) == (1, 2)
    for part in (".", "mood", "topic", "qa"):
        read_manifest(again.folder / part).verify()
    write_config(again.folder, multitask_config(tmp_path))  # as the next training would
    assert not list(again.folder.rglob("manifest.json"))
    assert after["global_step"] == before["global_step"] * 3 // 2


def test_a_batch_trains_only_the_head_of_its_task(tmp_path):
    module, mixture, _ = build_module(settings := multitask_config(tmp_path), builder.build_corpora(settings))
    task_index, batch = next(iter(mixture.train_dataloader()))
    module.runtimes[task_index].head.loss(module.backbone.hidden(batch.input_ids, batch.lengths), batch).backward()
    for runtime in module.runtimes:
        learned = [p for p in runtime.head.parameters() if p.grad is not None]
        assert bool(learned) == (
            runtime is module.runtimes[task_index] and any(True for _ in runtime.head.parameters())
        )


def test_the_loss_is_multiplied_by_the_weight_of_the_task(tmp_path, monkeypatch):
    module, mixture, _ = build_module(settings := multitask_config(tmp_path), builder.build_corpora(settings))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    module._trainer = SimpleNamespace(world_size=1)
    task_batch = next(one for one in mixture.train_dataloader() if module.runtimes[one.task_index].name == "topic")
    batch = task_batch.batch
    loss = module.runtimes[task_batch.task_index].head.loss(
        module.backbone.hidden(batch.input_ids, batch.lengths), batch
    )
    assert module.training_step(task_batch, 0).item() == pytest.approx(0.5 * loss.item())


@pytest.mark.parametrize(("best", "expected"), [(None, ("val/score", "max")), ("qa", ("val/qa/f1", "max"))])
def test_the_mean_score_or_the_metric_of_one_task_chooses_the_checkpoint(best, expected, tmp_path):
    assert monitor(multitask_config(tmp_path, mixing=Mixing(best=best))) == expected


def test_the_largest_adapter_share_the_lowest_learning_rate_and_the_smallest_batches_decide(tmp_path):
    tasks = multitask_config(tmp_path).tasks
    tasks["qa"] = TaskConfig(QuestionAnswering(), sample_data(batch_size=2, limit=Limit(train=8)))
    settings = multitask_config(tmp_path, tasks=tasks, tuning=Lora(rank=2), trainer={"accelerator": "cpu"})
    module, _, resolved = build_module(settings, builder.build_corpora(settings))
    assert (resolved.tuning.top, resolved.tuning.lr) == (1.0, 5.5e-4)
    assert resolved.trainer["accumulate_grad_batches"] == 8
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trainable} == {"backbone", "mood_head", "topic_head"}


def test_the_fingerprint_depends_on_the_data_of_every_task(tmp_path):
    tasks = multitask_config(tmp_path).tasks
    less_data = tasks | {"qa": TaskConfig(QuestionAnswering(), sample_data(limit=Limit(train=7)))}
    assert run_fingerprint(multitask_config(tmp_path)) == run_fingerprint(
        dataclasses.replace(multitask_config(tmp_path), outputs="elsewhere")
    )
    assert run_fingerprint(multitask_config(tmp_path, tasks=less_data)) != run_fingerprint(multitask_config(tmp_path))


def test_errors_name_the_task(tmp_path):
    broken = multitask_config(tmp_path).tasks | {"topic": TaskConfig(Classification(), sample_data(cut=3))}
    with pytest.raises(UserError, match=r"tasks\.topic: data\.cut=3"):
        train_tasks(multitask_config(tmp_path, tasks=broken))
    with pytest.raises(UserError, match=r"one task or several: .*, not both"):
        train_tasks(multitask_config(tmp_path, task=Sentiment()))
    with pytest.raises(UserError, match="one task or several"):
        train(Config())
    with pytest.raises(UserError, match=r"one process, not in 2: set trainer\.devices=1"):
        train_tasks(multitask_config(tmp_path, trainer={"devices": 2, "accelerator": "cpu"}))


def test_the_cost_probe_runs_for_several_tasks(tmp_path, caplog):
    with caplog.at_level("INFO"):
        train_tasks(multitask_config(tmp_path, probe=True, trainer={"max_steps": 2, "accelerator": "cpu"}))
    assert "expected:" in caplog.text


def test_options_chosen_on_validation_are_saved_by_task(tmp_path):
    tasks = {
        "many": TaskConfig(Classification(multi_label=True), sample_data()),
        "mood": TaskConfig(Sentiment(), sample_data()),
    }
    runs = train_tasks(multitask_config(tmp_path, tasks=tasks, tuning=Full(lr=1e-3)))
    threshold = runs.tasks["many"].task.threshold
    assert threshold is not None
    assert load_run(runs.folder / "many").task.threshold == threshold
    assert runs.tasks["many"].config["tuned_options"] == {"threshold": threshold}
    assert runs.tasks["mood"].config["tuned_options"] == {}
