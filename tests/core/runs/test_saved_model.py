"""A run folder's model: saved whole or not at all, loaded as it was, refused where it does not fit."""

import json
import shutil

import pytest
import torch
from gptask import Config, UserError, load_run
from gptask.config.schemas import DType, Full, HeadOnly, Lora
from gptask.model.heads import GenerationHead
from gptask.runs import run, saved_model
from gptask.runs.config_file import FORMAT, read_config
from gptask.runs.folder import create_run_folder
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation
from omegaconf import OmegaConf

LABELS = ["negative", "positive"]
EXAMPLES = [{"text": "this film is good"}, {"text": "bad"}, {"text": "is it very good or very bad? 很好"}]
TUNINGS = {"lora": Lora(rank=2), "full": Full(), "head": HeadOnly()}


def probabilities(said):
    return [list(prediction.probabilities.values()) for prediction in said.predict(EXAMPLES)]


@pytest.fixture(scope="module")
def lora(random_run):
    return random_run(Sentiment(labels=LABELS), "llama", Lora(rank=2))


@pytest.fixture
def copied(lora, tmp_path):
    """A run folder to be broken."""
    return shutil.copytree(lora.folder, tmp_path / "run")


@pytest.mark.parametrize("family", ["llama", "scratch"])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_run_predicts_the_same_after_loading(family, tuning, random_run, no_network):
    made = random_run(Sentiment(labels=LABELS), family, TUNINGS[tuning])
    loaded = load_run(made.folder)
    assert loaded.task == made.task
    assert probabilities(loaded) == probabilities(made)
    assert len({tuple(p) for p in probabilities(made)}) == len(EXAMPLES)
    files = {path.suffix or path.name for path in (made.folder / "model").rglob("*") if path.is_file()}
    assert files <= {".safetensors", ".json", ".jinja", ".txt"}  # never pickle


def test_frozen_weights_are_not_saved_again(lora, random_run):
    def size(saved):
        return sum(file.stat().st_size for file in (saved.folder / "model").glob("*.safetensors"))

    assert size(lora) < size(random_run(Sentiment(labels=LABELS), "llama", Full())) / 4


def test_text_after_loading_is_the_same(random_run):
    made = random_run(Translation(), "gpt2", Lora(rank=2))
    told = [{"source": "good"}, {"source": "the lazy dog"}]
    assert [p.value for p in load_run(made.folder).predict(told)] == [p.value for p in made.predict(told)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "scratch"])
def test_an_adapter_loads_in_plain_peft_and_transformers(family, random_run):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = random_run(Translation(), family, Lora(rank=2))
    model = made.folder / "model"
    location = json.loads((model / "backbone.json").read_text())["location"] or model / "base"
    base = AutoModelForCausalLM.from_pretrained(location)
    plain = PeftModel.from_pretrained(base, model).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(model)("the lazy dog")["input_ids"]])
    ours = made.backbone.logits(made.backbone.hidden(ids))
    torch.testing.assert_close(plain(ids).logits, ours, atol=1e-5, rtol=1e-5)
    with plain.disable_adapter():
        assert not torch.allclose(plain(ids).logits, ours, atol=1e-2)


def test_full_weights_load_in_plain_transformers(random_run):
    from transformers import AutoModelForCausalLM

    made = random_run(Translation(), "qwen3", Full())
    ids = torch.tensor([[5, 6, 7]])
    plain = AutoModelForCausalLM.from_pretrained(made.folder / "model")
    torch.testing.assert_close(plain(ids).logits, made.backbone.logits(made.backbone.hidden(ids)))


def test_the_number_format_can_be_another_at_loading(lora):
    assert load_run(lora.folder).backbone.model.dtype is torch.float32
    assert load_run(lora.folder, dtype=DType.bfloat16).backbone.model.dtype is torch.bfloat16


def test_a_changed_backbone_is_refused(copied, tiny_model, tmp_path):
    moved = shutil.copytree(tiny_model("llama", 128), tmp_path / "backbone")
    values = OmegaConf.load(copied / "config.yaml")
    values.backbone.source = str(moved)
    OmegaConf.save(values, copied / "config.yaml")
    load_run(copied)  # the same weights elsewhere are the same backbone
    shutil.copy(tiny_model("llama", 128, seed=1) / "model.safetensors", moved)
    with pytest.raises(UserError, match="trained on another backbone"):
        load_run(copied)


def test_a_run_keeps_its_tokenizer(copied, tiny_model, lora):
    values = json.loads((copied / "model/tokenizer_config.json").read_text())
    (copied / "model/tokenizer_config.json").write_text(json.dumps(values | {"bos_token": "Ġ"}))
    assert load_run(copied).backbone.tokenizer.bos_token == "Ġ"


@pytest.mark.parametrize(("format", "said"), [(0, "run format 0"), (None, "run format None"), (99, "run format 99")])
def test_another_format_is_refused(format, said, copied):
    values = OmegaConf.load(copied / "config.yaml")
    values.format = format
    OmegaConf.save(values, copied / "config.yaml")
    with pytest.raises(UserError, match=rf"{said}.*reads format {FORMAT}"):
        load_run(copied)


def test_a_head_of_another_shape_is_refused(copied):
    with pytest.raises(UserError, match=r"head\.safetensors does not fit the task: size mismatch"):
        load_run(copied, Sentiment(labels=[*LABELS, "neutral"]))


def test_a_missing_head_is_refused_not_made_anew(copied):
    (copied / "model/head.safetensors").unlink()
    with pytest.raises(UserError, match=r"head\.safetensors does not fit"):
        load_run(copied)


@pytest.mark.parametrize("name", ["head.safetensors", "adapter_model.safetensors"])
def test_a_damaged_file_is_a_users_error(name, copied):
    file = copied / "model" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=str(copied / "model")):
        load_run(copied)


def test_what_is_no_run_folder_says_so(tmp_path, copied):
    with pytest.raises(UserError, match="no run folder at"):
        load_run(tmp_path / "nothing")
    shutil.rmtree(copied / "model")
    with pytest.raises(UserError, match="holds no model"):
        load_run(copied)


@pytest.mark.parametrize("broken", ["safetensors.torch.save_file", "gptask.runs.saved_model.write_json"])
def test_a_save_that_fails_leaves_the_earlier_model(broken, copied, lora, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in (copied / "model").iterdir()}
    monkeypatch.setattr(broken, full)
    with pytest.raises(OSError, match="No space"):
        saved_model.save_model(copied, lora.backbone, {"": lora.head}, Lora(rank=2))
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in (copied / "model").iterdir()} == before
    assert {path.name for path in copied.iterdir()} == {"config.yaml", "model"}
    assert probabilities(load_run(copied)) == probabilities(lora)


def test_saving_again_replaces_the_model(copied, random_run):
    other = random_run(Sentiment(labels=LABELS), "llama", Lora(rank=2), seed=1)
    saved_model.save_model(copied, other.backbone, {"": other.head}, Lora(rank=2))
    assert probabilities(load_run(copied)) == probabilities(other)
    assert {path.name for path in copied.iterdir()} == {"config.yaml", "model"}


def test_a_class_without_entry_point_is_loaded_by_naming_it(random_run):
    class Own(Sentiment):
        """Somebody's own."""

    made = random_run(Own(labels=LABELS), "llama", HeadOnly())
    with pytest.raises(UserError, match="own"):
        load_run(made.folder)
    assert isinstance(load_run(made.folder, Own).head, type(made.head))
    assert not isinstance(made.head, GenerationHead)


def test_a_run_folder_is_never_reused(tmp_path):
    first = create_run_folder(str(tmp_path), "qa", None)
    second = create_run_folder(str(tmp_path), "qa", None)
    assert first != second
    assert first.parent == second.parent == tmp_path / "qa"
    with pytest.raises(UserError, match="exists"):
        create_run_folder(str(tmp_path), "qa", str(first))


def test_config_comes_back_typed(lora):
    values = read_config(lora.folder)
    assert values["plugin"]["name"] == "sentiment"
    assert values["plugin"]["distribution"] == "gptask"
    values["task"]["threshold"] = "high"
    with pytest.raises(UserError, match="don't fit"):
        run.task_from_config(values)
    assert run.task_from_config(read_config(lora.folder))[1] == Sentiment(labels=LABELS)
    assert Config(task=Sentiment()).tuning == Lora()
