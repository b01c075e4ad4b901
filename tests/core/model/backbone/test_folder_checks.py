"""A model folder from elsewhere is refused before it is read where it reaches beyond itself or claims too much."""

import json
import shutil

import pytest
import torch
from gptask.errors import UserError
from gptask.model.backbone import folder_checks
from gptask.model.backbone.backbone import from_folder, load_tokenizer
from gptask.model.backbone.folder_checks import check_model_folder
from gptask.model.backbone.locate import BackboneOrigin
from safetensors.torch import load_file, save_file


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model("llama"), tmp_path / "m")


def load(folder):
    return from_folder(BackboneOrigin(str(folder), "local folder", ""))


def edit(file, **values):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma3"])
def test_a_sound_folder_passes(family, tiny_model):
    check_model_folder(tiny_model(family))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_hidden_layers", 1_000_000, r"num_hidden_layers is 1,000,000, but the weights beside it are \d+ tensors"),
        ("vocab_size", 10**12, r"vocab_size is 1,000,000,000,000, .* at most 320 rows"),
        ("intermediate_size", 10**9, "intermediate_size is"),
        ("max_position_embeddings", 10**12, "max_position_embeddings is"),
        ("transformers_weights", "adapter_model.bin", "names its weights"),
        ("attn_implementation", "someone/kernel", "would be code from the hub, which is never run"),
        ("attn_implementation", {"": "someone/kernel@v1"}, "would be code from the hub"),
        ("text_config", {"n_layer": 10**7}, "n_layer is 10,000,000"),
    ],
)
def test_a_config_that_claims_more_than_its_weights_is_refused(name, value, message, folder, no_network):
    edit(folder / "config.json", **{name: value})
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", 3, None])
def test_an_index_that_names_files_elsewhere_is_refused(name, folder):
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    edit(folder / "model.safetensors.index.json", weight_map={"model.norm.weight": name})
    with pytest.raises(UserError, match="expected names of files beside it"):
        load(folder)


def test_a_header_that_claims_more_than_the_file_is_refused(folder):
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(UserError, match=r"model\.safetensors can't be read"):
        load(folder)


def test_an_adapter_beside_a_model_is_not_followed(folder, tmp_path, no_network):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model", "peft_type": "LORA"}')
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config\.json\) beside a model"):
        load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_a_file_too_large_for_its_name_is_refused(name, folder, monkeypatch):
    monkeypatch.setitem(folder_checks.MAX_BYTES, name, 10)
    (folder / name).write_text("{" + " " * 20 + "}")
    with pytest.raises(UserError, match=rf"{name} has 22 bytes, and gptask reads at most 10"):
        load(folder)
    if name.startswith("tokenizer"):
        with pytest.raises(UserError, match="reads at most 10"):
            load_tokenizer(str(folder))  # a run's own


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "training_args.bin"])
def test_only_safetensors_is_read_of_a_folder_that_has_pickles_too(pickle, folder, no_network):
    (folder / pickle).write_bytes(b"\x80\x04never read")
    assert load(folder).channels


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_code_of_a_folder_never_runs(place, folder, no_network, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    names = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    edit(folder / place, auto_map=names, tokenizer_class="EvilTokenizer")
    try:
        load(folder)
    except UserError as error:
        assert "contains custom code" in str(error)  # noqa: PT017
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["embed_tokens", "layers.1.mlp.up_proj", "norm.weight"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_that_are_not_finite_are_refused(family, place, value, tiny_model, tmp_path):
    place = place if family == "llama" else {"embed_tokens": "wte", "norm.weight": "ln_f"}.get(place, "h.1.mlp.c_fc")
    folder = shutil.copytree(tiny_model(family), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if place in name)
    tensors[name].view(-1)[-1] = value  # of embeddings the row of the last token
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="has weights that are not finite"):
        load(folder)
    assert torch.isfinite(load(tiny_model(family)).model.get_input_embeddings().weight).all()


def test_embeddings_apart_from_the_projection_are_looked_at(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    edit(folder / "config.json", tie_word_embeddings=False)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert load(folder).channels
    tensors["model.embed_tokens.weight"][-1, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="has weights that are not finite"):
        load(folder)
