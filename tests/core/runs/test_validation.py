"""A stranger's files agree with their manifest: what they hold is looked at before it is used."""

import copy
import json
import os
import shutil

import numpy as np
import pytest
import yaml
from gptask import load_run
from gptask.config.schemas import Lora
from gptask.errors import UserError
from gptask.runs.config_file import read_config
from gptask.runs.manifest import read_manifest, read_splits
from gptask.runs.run import load_task
from gptask.runs.validation import wrong_backbone, wrong_config, wrong_result
from gptask_tasks.sentiment import Sentiment

from tests.support.run_folders import hotel_reviews, seal, write_review_run

BACKBONE = {"source": "local folder", "location": "/x", "weights_hash": "0", "layers": [0, 1]}


@pytest.fixture
def run(tmp_path):
    return write_review_run(tmp_path / "a", hotel_reviews(12))


@pytest.fixture
def model_run(random_run, tmp_path):
    """A copy of a run with its model."""
    folder = random_run(Sentiment(labels=["negative", "positive"]), "llama", Lora(rank=2)).folder
    return shutil.copytree(folder, tmp_path / "run")


def changed(values, path, value):
    values = copy.deepcopy(values)
    *parents, name = path.split(".")
    holder = values
    for parent in parents:
        holder = holder[parent]
    if value is KeyError:
        del holder[name]
    else:
        holder[name] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        ("plugin", KeyError, "no plugin"),
        ("plugin", [], "plugin is '[]'"),
        ("plugin.name", "../x", "plugin.name is '../x'"),
        ("plugin.version", 3, "plugin: version is '3'"),
        ("task", None, "task is 'None'"),
        ("data", "x", "data is 'x'"),
        ("seed", 10**400, "seed is a number of more than 64 bits"),
        ("task_name", "../../x", "task_name is '../../x'"),
        ("parent", 3, "parent is '3'"),
        ("tasks", {}, "tasks is empty"),
        ("tasks", {"../x": {}}, "tasks has the name '../x'"),
        ("tasks", {"a": 3}, "tasks.a: not a mapping"),
    ],
)
def test_what_is_wrong_with_a_config_is_named(run, path, value, wrong):
    config = read_config(run)
    assert not wrong_config(config)
    assert wrong_config(changed(config, path, value)) == wrong
    if path not in ("seed", "tasks"):
        (run / "config.yaml").write_text(yaml.safe_dump(changed(config, path, value)))
        with pytest.raises(UserError, match="is not the config of a gptask run"):
            read_config(seal(run))


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        ("n", True + 2**64, "n is a number of more than 64 bits"),
        ("metrics", [], "metrics is '[]'"),
        ("metrics.accuracy", None, "the entry of 'accuracy': not a mapping"),
        ("metrics.accuracy.value", 10**400, "the entry of 'accuracy': value is a number of more than 64 bits"),
        ("metrics.accuracy.interval", [1], "the entry of 'accuracy': interval is '[1]'"),
        ("metrics.accuracy.interval", [1, "x"], "the entry of 'accuracy': interval is"),
        ("metrics.accuracy.range", ["a", 1], "the entry of 'accuracy': range is"),
        ("wall_seconds", float("inf"), "wall_seconds is 'inf'"),
        ("fit_seconds", "x", "fit_seconds is 'x'"),
        ("overlap", {"train": "x"}, "overlap: train is 'x'"),
        ("baselines", {"most frequent": {"metric": "accuracy"}}, "the baseline 'most frequent': no score"),
    ],
)
def test_what_is_wrong_with_a_result_is_named(run, path, value, wrong):
    result = json.loads((run / "metrics.json").read_text())
    assert not wrong_result(result)
    assert wrong_result(changed(result, path, value)).startswith(wrong)


@pytest.mark.parametrize(("name", "value"), [("layers", []), ("layers", 0), ("layers", 10**9), ("layers", "x")])
def test_a_backbone_keeps_some_layers(name, value):
    assert not wrong_backbone(BACKBONE)
    assert not wrong_backbone(BACKBONE | {"layers": 2})
    assert wrong_backbone(BACKBONE | {name: value}).startswith("layers is")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model/backbone.json", b"\xff", r"backbone.json can't be read, .* \(UnicodeDecodeError\)"),
        ("model/backbone.json", b"[" * 10_000, r"backbone.json can't be read, .* \(RecursionError\)"),
        ("model/backbone.json", b'{"source": 1}', "backbone.json is damaged: source is '1'"),
        ("model/tokenizer.json", b"{}", "the tokenizer in .* can't be read|is no causal language model"),
        ("model/tokenizer_config.json", b'{"eos_token": 3}', "can't be read|is no causal language model"),
        (
            "model/tokenizer_config.json",
            b'{"model_max_length": [1]}',
            r"the tokenizer in .* can't be read.*\(TypeError\)",
        ),
        ("model/head.safetensors", b"\xff" * 9, "head.safetensors does not fit the task"),
        ("model/adapter_model.safetensors", b"", "the adapter in .* does not fit the model"),
        ("model/adapter_config.json", b'{"peft_type": "LORA", "r": "x"}', "adapter_config.json has the rank 'x'"),
        ("model/adapter_config.json", b"[]", "holds no LoRA adapter: adapter_config.json"),
    ],
)
def test_a_damaged_file_of_the_model_is_named(model_run, file, content, message):
    (model_run / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_run(seal(model_run))


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)]
)
def test_a_pipe_or_a_device_in_the_model_is_never_read(model_run, make):
    make(model_run / "model" / "chat_template.jinja")
    with pytest.raises(UserError, match=r"model/chat_template.jinja is not listed"):
        load_run(model_run)
    with pytest.raises(UserError, match=r"model/chat_template.jinja is not listed"):
        load_run(seal(model_run))


@pytest.mark.parametrize("path", ["data.kind", "backbone.dtype", "data.max_tokens"])
def test_options_that_no_schema_has_are_named(model_run, path):
    config = read_config(model_run)
    (model_run / "config.yaml").write_text(yaml.safe_dump(changed(config, path, {"x": 1})))
    seal(model_run)
    with pytest.raises(UserError, match=r"the saved options of (data|backbone)"):
        next(iter(load_run(model_run).predict(["x"])))


def test_the_task_of_a_run_of_several_is_asked_for(run):
    config = read_config(run)
    task = {name: config[name] for name in ("plugin", "task", "data")} | {"weight": 1.0}
    (run / "config.yaml").write_text(yaml.safe_dump(changed(config, "tasks", {"a": task, "b": copy.deepcopy(task)})))
    with pytest.raises(UserError, match="is a run of several tasks: a, b"):
        load_task(seal(run))


@pytest.mark.parametrize("content", [b"", b"\xff" * 20])
def test_damaged_splits_are_named(run, content):
    (run / "splits.safetensors").write_bytes(content)
    manifest = json.loads((run / "manifest.json").read_text())
    seal(run)
    new = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(new | {"splits": manifest["splits"]}))
    with pytest.raises(UserError, match=r"splits.safetensors can't be read"):
        read_splits(run)


def test_splits_are_lists_of_64_bit_digests(run):
    from safetensors.numpy import save

    (run / "splits.safetensors").write_bytes(save({"test": np.zeros((2, 2), dtype="int64")}))
    manifest = json.loads((run / "manifest.json").read_text())
    seal(run)
    new = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(new | {"splits": manifest["splits"]}))
    with pytest.raises(UserError, match=r"splits.safetensors is damaged: test is no list of 64-bit digests"):
        read_splits(run)


@pytest.mark.parametrize("value", [float("inf"), 10**400, "[" * 30])
def test_a_manifest_with_other_values_is_damaged(run, value):
    values = json.loads((run / "manifest.json").read_text())
    values["files"]["config.yaml"]["bytes"] = value
    (run / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"manifest.json is damaged|config.yaml has"):
        read_manifest(run).verify()
