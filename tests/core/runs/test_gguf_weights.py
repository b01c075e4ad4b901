"""Weights are laid out as llama.cpp reads them, and what it would compute in another way is refused."""

import json

import numpy as np
import pytest
import torch
from gptask.config.schemas import Quantization
from gptask.errors import UserError
from gptask.model.backbone.gguf import complete_config, llama3_rope_factors
from gptask.runs.gguf_weights import (
    add_hyperparameters,
    check_architecture,
    interleaved_halves,
    stored_array,
    stored_tensors,
)
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.support.tiny_models import FAMILIES, tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SIX = ["sliding_attention"] * 5 + ["full_attention"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_the_parity_grid_is_let_through(family):
    check_architecture(tiny_config(family, 300, 64))


@pytest.mark.parametrize("layers", [SIX * 3, SIX + SIX[:2], SIX[:4], ["sliding_attention", "full_attention"] * 2])
def test_a_gemma_whose_layers_have_a_period_is_let_through(layers):
    check_architecture(Gemma3TextConfig(num_hidden_layers=len(layers), layer_types=layers))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (MistralConfig(), "has no mistral; it has gemma3_text, gpt2, llama, qwen2, qwen3. Leave format=gguf out"),
        (LlamaConfig(hidden_act="gelu"), "does not compute a llama with hidden_act=gelu"),
        (LlamaConfig(attention_bias=True), "attention_bias=True"),
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "rotary.*dynamic"),
        (LlamaConfig(rope_parameters=LLAMA3 | {"partial_rotary_factor": 0.5}), "rotary.*partial_rotary_factor"),
        (GPT2Config(activation_function="relu"), "activation_function=relu"),
        (GPT2Config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
        (Qwen2Config(use_sliding_window=True, max_window_layers=2, num_hidden_layers=4), "layer_types="),
        (Qwen3Config(attention_bias=True), "attention_bias=True"),
        (Gemma3TextConfig(final_logit_softcapping=30.0), "final_logit_softcapping=30.0"),
        (Gemma3TextConfig(num_hidden_layers=6, layer_types=[SIX[5], *SIX[:5]]), "layer_types="),
    ],
)
def test_what_llama_cpp_computes_in_another_way_is_refused(config, problem):
    with pytest.raises(UserError, match=problem):
        check_architecture(config)


def test_rows_of_a_head_are_put_in_pairs():
    rows = np.arange(12)[:, None] * np.ones((1, 2))
    assert interleaved_halves(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_factors_of_llama_3_are_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / llama3_rope_factors(LLAMA3, 128), scaled.numpy(), rtol=1e-5)


class Field:
    def __init__(self, value):
        self.contents = lambda: value


class File:
    """A file's hyperparameters and tensors as `gguf.GGUFReader` gives them."""

    def __init__(self, config, tensors):
        from gguf import GGUFWriter

        writer = GGUFWriter(None, "gemma3" if config.model_type == "gemma3_text" else config.model_type)
        add_hyperparameters(writer, config)
        (values,) = writer.kv_data
        self.values = {name: Field(entry.value) for name, entry in values.items()}
        self.values["general.architecture"] = Field(writer.arch)
        self.tensors = [Tensor(tensor.name, stored_array(tensor, config)) for tensor in tensors]

    def get_field(self, name):
        return self.values.get(name)


class Tensor:
    def __init__(self, name, data):
        self.name, self.data = name, data


@pytest.mark.parametrize(
    ("config", "read"),
    [
        (tiny_config("gpt2", 300, 64), GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=300)),
        (tiny_config("qwen3", 300, 64), Qwen3Config(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)),
        (tiny_config("gemma3", 300, 64), Gemma3TextConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2)),
        (
            LlamaConfig(
                hidden_size=32, num_attention_heads=4, num_hidden_layers=1, vocab_size=50, rope_parameters=LLAMA3
            ),
            LlamaConfig(hidden_size=32, num_attention_heads=4, rope_theta=500000.0),
        ),
        (
            LlamaConfig(
                hidden_size=32,
                num_attention_heads=4,
                num_hidden_layers=1,
                vocab_size=50,
                rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
            ),
            LlamaConfig(hidden_size=32, num_attention_heads=4),
        ),
    ],
)
def test_the_loader_reads_what_transformers_leaves_out(config, read):
    model = AutoModelForCausalLM.from_config(config)
    read.rope_parameters = json.loads(json.dumps(getattr(read, "rope_parameters", None)))
    complete_config(read, File(config, stored_tensors(model, Quantization.f16)))
    names = ("n_positions", "n_inner", "head_dim", "layer_types", "rope_parameters", "attention_bias", "mlp_bias")
    expected = {name: getattr(config, name) for name in names if hasattr(config, name)}
    if config.model_type == "gpt2":
        expected["n_inner"] = 4 * config.n_embd
    assert {name: getattr(read, name) for name in expected} == expected
    if config.model_type == "gemma3_text":
        assert read.query_pre_attn_scalar == config.head_dim  # the difference is in the norms of the queries


def test_other_rotary_embeddings_are_not_read():
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=1, vocab_size=50, rope_parameters=LLAMA3
    )
    file = File(config, stored_tensors(AutoModelForCausalLM.from_config(config), Quantization.f16))
    file.tensors[-1].data = file.tensors[-1].data[::-1]
    with pytest.raises(ValueError, match=r"rope_freqs\.weight, which is not that of Llama 3\.1"):
        complete_config(LlamaConfig(hidden_size=32, num_attention_heads=4), file)
    file.values["llama.rope.scaling.type"] = Field("yarn")
    with pytest.raises(ValueError, match=r"transformers leaves out its rope\.scaling\.type=yarn"):
        complete_config(LlamaConfig(hidden_size=32, num_attention_heads=4), file)


def test_a_weight_that_half_precision_cannot_hold_is_refused():
    config = tiny_config("llama", 300, 64)
    model = AutoModelForCausalLM.from_config(config)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    (tensor,) = (t for t in stored_tensors(model, Quantization.f16) if t.name == "blk.0.ffn_up.weight")
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight has values that are too large for half precision"):
        stored_array(tensor, config)
    (tensor,) = (t for t in stored_tensors(model, Quantization.q8_0) if t.name == "blk.0.ffn_up.weight")
    assert np.isfinite(stored_array(tensor, config)).all()


def test_a_matrix_of_its_own_for_the_vocabulary_is_stored():
    config = tiny_config("qwen3", 300, 64)
    tensors = {tensor.name for tensor in stored_tensors(AutoModelForCausalLM.from_config(config), Quantization.f16)}
    assert {"token_embd.weight", "output.weight"} <= tensors
    config = tiny_config("llama", 300, 64)
    tensors = {tensor.name for tensor in stored_tensors(AutoModelForCausalLM.from_config(config), Quantization.f16)}
    assert "output.weight" not in tensors
