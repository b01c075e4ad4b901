"""`gptask evaluate`: run folders and the bare backbone."""

import hashlib
import json
import logging
from dataclasses import replace

import pytest
import yaml
from gptask import GenerationOptions, Lora, Pretrained, UserError, train
from gptask.analysis.compare.records import find_runs
from gptask.analysis.compare.seed_groups import options, seed_groups
from gptask.config.conversion import from_plain
from gptask.config.schemas import DType, Evaluate, Files, Limit, Sample
from gptask.model.backbone.scratch import train_tokenizer
from gptask.runs.config_file import read_config
from gptask.runs.manifest import read_manifest
from gptask.runs.reproduce import reproduce_command
from gptask.runs.run import task_from_config
from gptask.training.builder import build_corpus
from gptask.training.evaluate import demonstrations, evaluate
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

from tests.support.configs import small_config
from tests.support.tiny_models import TEXT

SAMPLE = Sample(limit=Limit(train=24, validation=8, test=10), max_tokens=128)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(small_config(tmp_path_factory.mktemp("outputs"), trainer={"max_steps": 1, "accelerator": "cpu"}))


def evaluated(tmp_path, **changes):
    options = {"task": Sentiment(), "data": SAMPLE, "outputs": str(tmp_path), "trainer": {"accelerator": "cpu"}}
    return evaluate(Evaluate(**(options | changes)))


def test_a_run_scores_the_same_again_and_names_its_parent(run, tmp_path):
    task = task_from_config(read_config(run.folder))[1]
    folder = evaluated(tmp_path, run=str(run.folder), task=task)
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("accuracy", "ece"):
        assert metrics["metrics"][name]["value"] == pytest.approx(run.metrics["metrics"][name]["value"], abs=1e-3)
    assert metrics["test_data_hash"] == run.metrics["test_data_hash"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["parent"] == str(run.folder)
    assert not (folder / "model").exists()
    manifest = read_manifest(folder)
    manifest.verify()
    backbone = "| backbone | from scratch"
    assert backbone in (folder / "README.md").read_text(), "the run's own, which the config leaves out"
    parent_hash = hashlib.sha256((run.folder / "manifest.json").read_bytes()).hexdigest()
    assert (manifest.method, manifest.parent) == ("evaluate", {"folder": str(run.folder), "manifest": parent_hash})
    assert manifest.splits == {"test": read_manifest(run.folder).splits["test"]}


def test_another_split_and_another_file_can_be_scored(run, tmp_path, caplog):
    caplog.set_level("INFO", "gptask")
    task = task_from_config(read_config(run.folder))[1]
    (tmp_path / "mine.jsonl").write_text('{"text": "good", "label": "positive"}\n')
    folder = evaluated(tmp_path, run=str(run.folder), task=task, data=Files(test=str(tmp_path / "mine.jsonl")))
    assert json.loads((folder / "metrics.json").read_text())["n"] == 1
    assert "label: 1 class\n  label     test\n  positive     1" in caplog.messages
    folder = evaluated(tmp_path, run=str(run.folder), task=task, split="validation")
    assert json.loads((folder / "metrics.json").read_text())["n"] == 8
    assert any(text.startswith("label: 3 classes\n  label     validation\n") for text in caplog.messages)
    with pytest.raises(UserError, match="there are train, validation, test"):
        evaluated(tmp_path, run=str(run.folder), task=task, split="dev")


def test_the_folder_of_an_evaluation_cannot_be_loaded(run, tmp_path):
    from gptask import load_run

    folder = evaluated(tmp_path, run=str(run.folder), task=task_from_config(read_config(run.folder))[1])
    with pytest.raises(UserError, match=f"holds no model: it is an evaluation of {run.folder}, which holds one"):
        load_run(folder)


def test_shots_put_solved_examples_before_every_prompt():
    task, tokenizer = Sentiment(), train_tokenizer([TEXT], 300)
    prompt_start = demonstrations(task, build_corpus(task, SAMPLE, 13), 2, 13, tokenizer)
    assert prompt_start.count("Review:") == prompt_start.count("Sentiment: ") == 2
    assert prompt_start.endswith("\n\n")
    assert demonstrations(task, build_corpus(task, SAMPLE, 13), 2, 13, tokenizer) == prompt_start
    task.demonstrations = prompt_start
    assert task.format_prompt({"text": "x"}) == "Review: x\nSentiment:"


def test_shots_are_refused_for_a_trained_run_a_negative_number_and_a_span_answer(run, tmp_path):
    with pytest.raises(UserError, match="bare backbone"):
        evaluated(tmp_path, run=str(run.folder), shots=2)
    with pytest.raises(UserError, match="must be 0 or more"):
        evaluated(tmp_path, shots=-1, backbone=small_config(tmp_path).backbone)
    with pytest.raises(UserError, match=r"shots are for task\.answer=generate"):
        evaluated(tmp_path, task=QuestionAnswering(answer="span"), shots=1, backbone=small_config(tmp_path).backbone)


def test_the_bare_backbone_is_scored_without_training(tmp_path):
    task = Translation()
    task.generation.max_new_tokens = 3
    folder = evaluated(tmp_path, task=task, shots=1, backbone=small_config(tmp_path).backbone)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] == 10
    assert metrics["trainable_parameters"] == 0
    assert metrics["train_tokens_per_second"] is None


# --- number formats -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writing_run(random_run):
    task = Translation(generation=GenerationOptions(max_new_tokens=3))
    return random_run(task, "llama", Lora(rank=2), dtype="bfloat16")


def test_an_evaluation_in_int4_is_another_result_and_says_so(writing_run, tmp_path, needs_int4):
    backbone, folders = from_plain("backbone", writing_run.config["backbone"]), {}
    options_of_run = {"run": str(writing_run.folder), "task": writing_run.task, "backbone": backbone, "baseline": False}
    for dtype in (None, DType.int4):
        data = Sample(limit=Limit(train=24, validation=8, test=4))
        folders[dtype] = evaluated(tmp_path / str(dtype), data=data, dtype=dtype, **options_of_run)
    metrics = {name: json.loads((folder / "metrics.json").read_text()) for name, folder in folders.items()}
    assert "weights" not in metrics[None]["engine"]
    weights = metrics[DType.int4]["engine"]["weights"]
    assert (weights["format"], weights["layers"], sum(weights["kept"].values())) == ("int4", 12, 2)
    assert [read_manifest(folder).dtype for folder in folders.values()] == ["bfloat16", "int4"]
    assert metrics[None]["fingerprint"] != metrics[DType.int4]["fingerprint"]
    folder = folders[DType.int4]
    assert read_config(folder)["dtype"] == "int4"
    assert reproduce_command(read_config(folder)).endswith(" dtype=int4")
    card = (folder / "README.md").read_text()
    assert f"An evaluation of the run `{writing_run.folder}`, with weights in int4, made with gptask" in card
    (first, second) = seed_groups(find_runs(map(str, folders.values())))
    assert sorted(options([first, second])) == ["dtype=None", "dtype=int4"]


def test_a_bare_backbone_is_scored_in_int4(tmp_path, tiny_model, needs_int4):
    task = Translation(generation=GenerationOptions(max_new_tokens=3))
    backbone = Pretrained(source=str(tiny_model("gpt2", 128)))
    folder = evaluated(tmp_path, task=task, backbone=backbone, dtype="int4", data=Sample(limit=Limit(test=2)))
    assert json.loads((folder / "metrics.json").read_text())["engine"]["weights"]["layers"] == 8


def test_int4_is_refused_before_data_is_read_where_it_cannot_be_computed(run, tmp_path, monkeypatch, needs_int4):
    monkeypatch.setattr("gptask.training.builder.build_corpora", lambda config: pytest.fail("data is read"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError, match="dtype=int4 is for CPUs"):
        evaluated(tmp_path, run=str(run.folder), dtype=DType.int4)


# --- cuts, limits and overlap -------------------------------------------------------------------------------------


def write_rows(file, numbers):
    rows = [{"text": f"film number {n}", "label": ["negative", "positive"][n % 2]} for n in numbers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    """A run whose three splits are cut from one file, and limited, with other seeds than the default."""
    folder = tmp_path_factory.mktemp("cut")
    data = Files(train=write_rows(folder / "all.jsonl", range(100)), cut=0.2, limit=Limit(test=15), max_tokens=64)
    return train(small_config(folder, data=data, seed=7, trainer={"max_steps": 1, "accelerator": "cpu"}))


@pytest.fixture(scope="module")
def scored(cut_run, tmp_path_factory):
    """``scored(seed=99)``: the folder of an evaluation of that run, with changes of its config and of its data."""

    def call(split="test", data=None, **changes):
        saved = read_config(cut_run.folder)
        options = replace(from_plain("data", saved["data"]), **({"seed": None} | (data or {})))
        task, outputs = task_from_config(saved)[1], tmp_path_factory.mktemp("scored")
        return evaluated(outputs, run=str(cut_run.folder), task=task, data=options, split=split, **changes)

    return call


def result_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("seeds", [{"seed": 7}, {"seed": 99}])
def test_an_evaluation_is_cut_and_limited_by_the_seed_of_its_run(seeds, scored, cut_run, caplog):
    with caplog.at_level(logging.WARNING, "gptask"):
        folder = scored(**seeds)
    assert result_of(folder)["test_data_hash"] == cut_run.metrics["test_data_hash"]
    assert (result_of(folder)["seed"], result_of(folder)["n"]) == (7, 15)  # two such are no two seeds of a method
    assert result_of(folder)["overlap"] == cut_run.metrics["overlap"] == {"train": 0, "validation": 0}
    assert ("seed=99 has no effect" in caplog.text) == (seeds == {"seed": 99})
    assert read_config(folder)["data"]["seed"] == 7


def test_another_seed_for_the_cut_is_refused(scored, cut_run):
    with pytest.raises(UserError, match=rf"data\.seed=99: {cut_run.folder} is evaluated with its own, 7"):
        scored(data={"seed": 99})


def test_the_overlap_with_train_and_validation_is_counted_warned_of_and_kept(scored, cut_run, caplog, tmp_path):
    grown = write_rows(tmp_path / "grown.jsonl", range(120))  # another number of groups is cut in another way
    with caplog.at_level(logging.WARNING, "gptask"):
        folder = scored(data={"train": grown})
    tested = {json.loads(line)["text"] for line in (folder / "predictions.jsonl").read_text().splitlines()}
    own = build_corpus(Sentiment(), from_plain("data", read_config(cut_run.folder)["data"]), 7)
    expected = {
        split: len(tested & {example["text"] for example in own.split(split)}) for split in ("train", "validation")
    }
    overlap = result_of(folder)["overlap"]
    assert overlap == expected
    assert overlap["train"] > 3
    assert f"{overlap['train']} of 15 test inputs also occur in the train data of {cut_run.folder}" in caplog.text
    fresh = write_rows(tmp_path / "fresh.jsonl", range(200, 210))
    assert result_of(scored(data={"test": fresh}, allow_overlap=False))["overlap"] == {"train": 0, "validation": 0}


def test_overlap_can_be_refused(scored, cut_run):
    message = rf"allow_overlap=false: {cut_run.folder}: of 20 validation inputs, 20 occur in its validation data"
    with pytest.raises(UserError, match=message):
        scored("validation", allow_overlap=False)
    with pytest.raises(UserError, match=r"allow_overlap=false is about what a run was trained on: set run="):
        evaluate(Evaluate(task=Sentiment(), data=SAMPLE, backbone=small_config(None).backbone, allow_overlap=False))


def test_a_split_that_is_asked_for_is_no_warning(scored, caplog):
    with caplog.at_level(logging.INFO, "gptask"):
        assert result_of(scored("validation"))["overlap"] == {"train": 0, "validation": 20}
    (record,) = [record for record in caplog.records if "also occur in the validation data" in record.message]
    assert record.levelno == logging.INFO


def test_baselines_learn_from_no_example_that_they_are_scored_on(scored, cut_run, monkeypatch):
    seen = []

    def record(task, metric, rows, examples, splits):
        seen.append([{example["text"] for example in part} for part in (examples, *splits.values())])
        return {}

    monkeypatch.setattr("gptask.training.results.baseline_scores", record)
    train_file = read_config(cut_run.folder)["data"]["train"]
    for split, sizes in (("test", (15, 60, 20)), ("validation", (20, 60, 0))):
        scored(split)
        assert tuple(map(len, seen.pop())) == sizes
    scored("train")
    assert not seen
    scored(data={"test": train_file, "limit": Limit(test=15)})  # a test file that train is cut from
    ((tested, *learned),) = seen
    assert len(tested) == 15
    assert all(part and not tested & part for part in learned)


def test_a_training_keeps_the_overlap_of_its_test_in_metrics_json(tmp_path):
    data = Files(
        train=write_rows(tmp_path / "train.jsonl", range(20)),
        validation=write_rows(tmp_path / "validation.jsonl", range(18, 30)),
        test=write_rows(tmp_path / "test.jsonl", [0, 1, 2, 19, 20, 50]),
        max_tokens=64,
    )
    run = train(small_config(tmp_path, data=data, trainer={"max_steps": 1, "accelerator": "cpu"}))
    assert run.metrics["overlap"] == {"train": 4, "validation": 2}


def test_the_bare_backbone_has_no_overlap_to_count(tmp_path):
    folder = evaluated(tmp_path, backbone=small_config(tmp_path).backbone)
    assert result_of(folder)["overlap"] == {}


def test_ctrl_c_is_ctrl_c_and_leaves_no_folder(run, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gptask.training.module.GPTModule.test_step", stop)
    task = task_from_config(read_config(run.folder))[1]
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, run=str(run.folder), task=task)
    assert not list(tmp_path.iterdir())
