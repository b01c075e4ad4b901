"""A stranger's run folder: nothing outside of it is read, no code runs, no hub is asked, damage is told."""

import json
import os
import shutil
from contextlib import suppress

import pytest
from gptask import UserError, load_run
from gptask.config.schemas import Full, Lora
from gptask.model.engine.adapter_files import check_ranks, read_adapter
from gptask.runs.config_file import read_config
from gptask.runs.manifest import read_manifest
from gptask_tasks.sentiment import Sentiment
from safetensors.torch import load_file, save_file

from tests.support.run_folders import seal

LABELS = ["negative", "positive"]


@pytest.fixture(scope="module")
def sound_run(random_run):
    return random_run(Sentiment(labels=LABELS), "llama", Lora(rank=2)).folder


@pytest.fixture
def run(sound_run, tmp_path):
    return shutil.copytree(sound_run, tmp_path / "run")


def refused(folder, message):
    """Seal the run as its stranger would, and expect the error."""
    seal(folder)
    with pytest.raises(UserError, match=message):
        load_run(folder)


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_run_without_its_adapter_does_not_ask_the_hub(run, no_network, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (run / "model/adapter_model.safetensors").unlink()
    refused(run, r"holds no LoRA adapter: adapter_model\.safetensors: No such file")


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "training_args.bin", "head.pt", "x.pkl"])
def test_a_pickle_among_the_model_is_refused(name, run, no_network):
    (run / "model" / name).write_bytes(b"\x80\x04.")
    (run / "model/adapter_model.safetensors").unlink()
    refused(run, rf"holds {name}, which may run code when loaded")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 10**9}, "has the rank 1000000000, its tensors 2"),
        ({"rank_pattern": {"q_proj": 10**9}}, "has the rank 1000000000"),
        ({"r": "2"}, "has the rank '2'"),
        ({"rank_pattern": 1.5}, r"has rank_pattern=1\.5; expected numbers by layer"),
        ({"alpha_pattern": [["q_proj", 2]]}, r"has alpha_pattern=\[\["),
        ({"target_modules": "(.*)*x"}, "expected plain names of layers"),
        ({"exclude_modules": "(a+)+$"}, "expected plain names of layers"),
        ({"alpha_pattern": {".*.*.*.*.*x": 2}}, "expected plain names of layers"),
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, "megatron_config"),
        ({"layer_replication": [[0, 10**6]]}, "not of low-rank factors alone"),
        ({"peft_type": "XLORA"}, "holds no LoRA adapter|not of low-rank factors"),
    ],
)
def test_an_adapter_config_that_claims_or_runs_more_is_refused(values, message, run, no_network):
    edit(run / "model/adapter_config.json", **values)
    refused(run, message)


def test_any_value_of_an_adapter_config_is_read_or_refused(run):
    file = run / "model/adapter_config.json"
    config = json.loads(file.read_text())
    for name in config:
        for value in (1.5, "x", [1], {"a": "b"}, 10**12):
            file.write_text(json.dumps(config | {name: value}))
            with suppress(UserError):
                check_ranks(read_adapter(run / "model"))


def test_a_tokenizer_with_an_id_that_no_model_has_is_refused(run):
    file = run / "model/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[next(reversed(vocabulary))] = 2**31
    file.write_text(json.dumps(tokenizer))
    refused(run, r"the tokenizer in .* has the token id 2,147,483,648, and gptask takes 16,777,216 at most")


def test_the_base_that_an_adapter_names_is_not_followed(run, no_network):
    edit(
        run / "model/adapter_config.json", base_model_name_or_path="some/model", auto_mapping={"base_model_class": "os"}
    )
    seal(run)
    assert [*load_run(run).predict([{"text": "good"}])]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "head.safetensors"])
def test_weights_that_are_not_finite_are_refused(file, value, run):
    tensors = load_file(run / "model" / file)
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, run / "model" / file)
    refused(run, rf"{file} has numbers that are not finite")


def test_full_weights_that_are_not_finite_are_refused(random_run, tmp_path):
    folder = shutil.copytree(random_run(Sentiment(labels=LABELS), "llama", Full()).folder, tmp_path / "run")
    tensors = load_file(folder / "model/model.safetensors")
    next(iter(tensors.values())).view(-1)[-1] = float("nan")
    save_file(tensors, folder / "model/model.safetensors", {"format": "pt"})
    refused(folder, "has weights that are not finite")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "model/../../secret", "C:/secret", "..\\secret", "a\0b", ""]
)
def test_a_manifest_that_names_files_elsewhere_is_refused_before_they_are_read(name, run, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("secret")
    values = json.loads((run / "manifest.json").read_text())
    values["files"][name] = {"bytes": 6, "sha256": "0" * 64}
    (run / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="lists files outside of the run folder"):
        read_manifest(run)


def test_links_out_of_the_run_folder_are_refused(run, tmp_path):
    secret = tmp_path / "secret.json"
    (run / "model/config.json").rename(secret)
    (run / "model/config.json").symlink_to(secret)
    refused(run, r"model/config\.json is a link to a file outside of the run folder")
    (run / "model/config.json").unlink()
    shutil.copy(secret, run / "model/config.json")
    (run / "model/assets").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"model/assets is a link; a run's model is files in its folder"):
        load_run(run)


def test_a_link_to_the_run_folder_itself_is_fine(run, tmp_path):
    (tmp_path / "latest").symlink_to(run)
    assert load_run(tmp_path / "latest").task


@pytest.mark.parametrize("line", ["task_name: ../../secret", "tasks: {../x: {}}", "tasks: {model: {}}"])
def test_a_task_that_is_no_plain_name_is_refused(line, run):
    (run / "config.yaml").write_text(f"{(run / 'config.yaml').read_text()}\n{line}\n")
    seal(run)
    with pytest.raises(
        UserError, match=r"tasks: 'model' is the name of a folder|task_name is '\.\./|tasks has the name '\.\./x'"
    ):
        read_config(run)


def test_a_config_of_aliases_is_refused(run):
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    (run / "config.yaml").write_text(f"{(run / 'config.yaml').read_text()}\n{laughs}")
    seal(run)
    with pytest.raises(UserError, match=r"config\.yaml: line \d+ has a YAML alias \(\*a0\): write it out"):
        read_config(run)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(run):
    (run / "model/head.safetensors").unlink()
    os.mkfifo(run / "model/head.safetensors")
    with pytest.raises(UserError, match=r"head\.safetensors is missing"):
        load_run(run)
