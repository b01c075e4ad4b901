"""A run's model: saved completely or not at all, loaded as it was, refused where it does not fit."""

import json
import shutil

import pytest
import torch
from gptask import UserError, load_run, load_task
from gptask.config.schemas import DType, Full, HeadOnly, Lora, Scratch
from gptask.runs import saved_model
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from tests.support.run_folders import seal

LABELS = ["negative", "positive"]
EXAMPLES = [{"text": "this film is good"}, {"text": "bad"}, {"text": "is it very good or very bad? 很好"}]
TUNINGS = {"lora": Lora(rank=2), "full": Full(), "head": HeadOnly()}


def probabilities(run):
    return [list(prediction.probabilities.values()) for prediction in run.predict(EXAMPLES)]


@pytest.mark.parametrize(
    ("family", "tuning"), [("llama", "lora"), ("llama", "full"), ("llama", "head"), ("scratch", "full")]
)
def test_a_run_predicts_the_same_after_loading(family, tuning, random_run, no_network):
    saved = random_run(Sentiment(labels=LABELS), family, TUNINGS[tuning])
    loaded = load_run(saved.folder)
    assert loaded.task == saved.task
    assert probabilities(loaded) == probabilities(saved)
    assert len({tuple(p) for p in probabilities(saved)}) == len(EXAMPLES)
    files = {path.suffix or path.name for path in (saved.folder / "model").rglob("*") if path.is_file()}
    assert files <= {".safetensors", ".json", ".jinja", ".txt"}  # never pickle


def test_frozen_weights_are_not_saved_again(lora_run, random_run):
    def size(run):
        return sum(file.stat().st_size for file in (run.folder / "model").glob("*.safetensors"))

    assert size(lora_run) < size(random_run(Sentiment(labels=LABELS), "llama", Full())) / 4


def test_a_run_generates_the_same_text_after_loading(random_run):
    saved = random_run(Translation(), "gpt2", Lora(rank=2))
    rows = [{"source": "good"}, {"source": "the lazy dog"}]
    assert [p.value for p in load_run(saved.folder).predict(rows)] == [p.value for p in saved.predict(rows)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_an_adapter_loads_in_plain_peft_and_transformers(family, random_run):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = random_run(Translation(), family, Lora(rank=2))
    model = run.folder / "model"
    location = json.loads((model / "backbone.json").read_text())["location"]
    base = AutoModelForCausalLM.from_pretrained(location)
    plain, backbone = PeftModel.from_pretrained(base, model).eval().double(), run.backbone.double()
    ids = torch.tensor([AutoTokenizer.from_pretrained(model)("the lazy dog")["input_ids"]])
    expected = backbone.logits(backbone.hidden(ids))
    torch.testing.assert_close(plain(ids).logits, expected, atol=1e-5, rtol=1e-5)
    with plain.disable_adapter():
        assert not torch.allclose(plain(ids).logits, expected, atol=1e-2)


def test_full_weights_load_in_plain_transformers(random_run):
    from transformers import AutoModelForCausalLM

    run = random_run(Translation(), "qwen3", Full())
    ids = torch.tensor([[5, 6, 7]])
    plain = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    torch.testing.assert_close(plain(ids).logits, run.backbone.logits(run.backbone.hidden(ids)))


def test_a_run_can_be_loaded_in_another_number_format(lora_run):
    assert load_run(lora_run.folder).backbone.model.dtype is torch.float32
    assert load_run(lora_run.folder, dtype=DType.bfloat16).backbone.model.dtype is torch.bfloat16


def test_an_adapter_for_other_layers_is_refused(run_copy):
    saved = json.loads((run_copy / "model/backbone.json").read_text())
    assert saved["layers"] == [0, 1]
    (run_copy / "model/backbone.json").write_text(json.dumps(saved | {"layers": [0]}))
    with pytest.raises(UserError, match=r"the adapter in .* can't be loaded: it has other weights .*layers\.1\."):
        load_run(seal(run_copy))
    weights = load_file(run_copy / "model/adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.0" in k}, run_copy / "model/adapter_model.safetensors")
    (run_copy / "model/backbone.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"the adapter in .* can't be loaded: it has other weights .*layers\.1\."):
        load_run(seal(run_copy))


def test_a_changed_backbone_is_refused(run_copy, tiny_model, tmp_path):
    moved = shutil.copytree(tiny_model("llama", 128), tmp_path / "backbone")
    values = OmegaConf.load(run_copy / "config.yaml")
    values.backbone.source = str(moved)
    OmegaConf.save(values, run_copy / "config.yaml")
    load_run(seal(run_copy))  # the same weights elsewhere are the same backbone
    shutil.copy(tiny_model("llama", 128, seed=1) / "model.safetensors", moved)
    with pytest.raises(UserError, match="trained on another backbone"):
        load_run(run_copy)


def test_a_run_is_loaded_with_its_own_tokenizer(run_copy):
    values = json.loads((run_copy / "model/tokenizer_config.json").read_text())
    (run_copy / "model/tokenizer_config.json").write_text(json.dumps(values | {"bos_token": "Ġ"}))
    assert load_run(seal(run_copy)).backbone.tokenizer.bos_token == "Ġ"


def test_a_head_of_another_shape_is_refused(run_copy):
    with pytest.raises(UserError, match=r"head\.safetensors does not fit the task: size mismatch"):
        load_run(run_copy, Sentiment(labels=[*LABELS, "neutral"]))


def test_a_missing_head_is_refused_and_not_initialised(run_copy):
    (run_copy / "model/head.safetensors").unlink()
    with pytest.raises(UserError, match=r"head\.safetensors does not fit"):
        load_run(seal(run_copy))


@pytest.mark.parametrize("name", ["head.safetensors", "adapter_model.safetensors"])
def test_a_damaged_file_is_a_user_error(name, run_copy):
    file = run_copy / "model" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=str(run_copy / "model")):
        load_run(seal(run_copy))


@pytest.mark.parametrize("failing", ["safetensors.torch.save_file", "gptask.runs.saved_model.write_json"])
def test_a_save_that_fails_leaves_the_earlier_model(failing, run_copy, lora_run, monkeypatch):
    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in (run_copy / "model").iterdir()}
    monkeypatch.setattr(failing, disk_full)
    with pytest.raises(OSError, match="No space"):
        saved_model.save_model(run_copy, lora_run.backbone, {"": (lora_run.task, lora_run.head)}, Lora(rank=2))
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in (run_copy / "model").iterdir()} == before
    assert {path.name for path in run_copy.iterdir()} == {"config.yaml", "model", "manifest.json"}
    assert probabilities(load_run(run_copy)) == probabilities(lora_run)


def test_who_may_read_the_config_may_read_the_weights(lora_run):
    modes = {file.suffix: file.stat().st_mode for file in (lora_run.folder / "model").iterdir()}
    assert modes[".safetensors"] == modes[".json"]


def test_saving_again_replaces_the_model(run_copy, random_run):
    other = random_run(Sentiment(labels=LABELS), "llama", Lora(rank=2), seed=1)
    saved_model.save_model(run_copy, other.backbone, {"": (other.task, other.head)}, Lora(rank=2))
    assert probabilities(load_run(seal(run_copy))) == probabilities(other)
    assert {path.name for path in run_copy.iterdir()} == {"config.yaml", "model", "manifest.json"}


# --- a task's own files -------------------------------------------------------------------------------------------


@pytest.fixture
def words(monkeypatch):
    """Give the sentiment task a file of its own, which its head needs."""
    head = Sentiment.head

    def save_assets(task, folder):
        (folder / "words.txt").write_text(task.words)

    def load_assets(task, folder):
        task.words = (folder / "words.txt").read_text()

    for method in (save_assets, load_assets):
        monkeypatch.setattr(Sentiment, method.__name__, method)
    monkeypatch.setattr(Sentiment, "head", lambda task, backbone: head(task, backbone) if task.words else None)


def task_with(words):
    task = Sentiment(labels=LABELS)
    task.words = words
    return task


def test_a_tasks_own_files_are_loaded_before_its_head_is_built(words, random_run):
    saved = random_run(task_with("good bad"), "llama", HeadOnly())
    assert (saved.folder / "model/assets/words.txt").read_text() == "good bad"
    assert load_run(saved.folder).task.words == load_task(saved.folder).words == "good bad"
    assert load_run(saved.folder, task_with("other")).task.words == "good bad"
    assert probabilities(load_run(saved.folder)) == probabilities(saved)


def test_each_of_several_tasks_has_a_folder(words, run_copy, lora_run):
    tasks = {name: (task_with(name), lora_run.head) for name in ("mood", "topic")}
    saved_model.save_model(run_copy, lora_run.backbone, tasks, Lora(rank=2))
    for name in tasks:
        task = Sentiment()
        saved_model.load_assets(task, run_copy / "model", name)
        assert task.words == name


def test_a_task_without_files_of_its_own_leaves_no_folder(run_copy, monkeypatch):
    monkeypatch.setattr(Sentiment, "load_assets", lambda task, folder: pytest.fail("nothing to load"))
    assert not list((run_copy / "model").glob("assets*"))
    load_run(run_copy)
    load_task(run_copy)


def test_a_hook_that_fails_is_named_and_the_earlier_model_stays(words, run_copy, lora_run):
    before = {path.name: path.read_bytes() for path in (run_copy / "model").iterdir()}
    task = Sentiment(labels=LABELS)  # without words
    message = (
        r"task 'sentiment' \(gptask \S+\): Sentiment\.save_assets\(\) fails\n"
        r'.*test_saved_model\.py", line \d+: .*\n.*AttributeError: .*words'
    )
    with pytest.raises(UserError, match=message):
        saved_model.save_model(run_copy, lora_run.backbone, {"": (task, lora_run.head)}, Lora(rank=2))
    assert {path.name: path.read_bytes() for path in (run_copy / "model").iterdir()} == before
    (run_copy / "model/assets").mkdir()
    with pytest.raises(UserError, match=r"Sentiment\.load_assets\(\) fails\n(.*\n)*.*words\.txt"):
        load_task(run_copy)


def test_a_run_from_scratch_without_its_weights_says_what_is_missing():
    with pytest.raises(UserError, match="has no weights: all of a backbone from scratch belong to the run"):
        saved_model._locate_frozen(Scratch(), {"weights_hash": ""})
