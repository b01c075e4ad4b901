"""Which weights learn under each tuning."""

import pytest
import torch
from gptask.backbone.tuning import apply
from gptask.config import Full, Head, Lora
from gptask.errors import UserError

FAMILIES = ["gpt2", "llama", "qwen2", "qwen3", "gemma3"]
IDS = torch.tensor([[5, 6, 7, 8]])


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_as_the_backbone_and_only_its_factors_learn(family, backbone_of):
    backbone = backbone_of(family)
    before = backbone.logits(backbone.hidden(IDS))
    backbone.peft = apply(backbone.peft, Lora(rank=2)).eval()
    assert torch.equal(backbone.logits(backbone.hidden(IDS)), before)
    names = learning(backbone)
    assert names
    assert all("lora_A" in name or "lora_B" in name for name in names)
    attention = {"gpt2": {"c_attn"}}.get(family, {"q_proj", "v_proj"})
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} == attention


def test_lora_changes_what_the_shared_backbone_computes(backbone_of):
    backbone = backbone_of("llama")
    before = backbone.hidden(IDS)
    backbone.peft = apply(backbone.peft, Lora(rank=2))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)
    assert not torch.allclose(backbone.hidden(IDS), before, atol=1e-2)


def test_lora_takes_the_layers_it_is_told(backbone_of):
    model = apply(
        backbone_of("llama").peft, Lora(rank=2, target_modules=["up_proj", "model.layers.0.self_attn.q_proj"])
    )
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.model.layers.") for name in learning(model)}
    assert layers == {"0.mlp.up_proj", "1.mlp.up_proj", "0.self_attn.q_proj"}


@pytest.mark.parametrize("name", ["q_prj", "lm_head", "embed_tokens", "input_layernorm"])
def test_a_target_that_is_no_layer_is_refused_even_beside_a_good_one(name, backbone_of):
    with pytest.raises(UserError, match=rf"'{name}' names no layer.*down_proj.*q_proj"):
        apply(backbone_of("llama").peft, Lora(target_modules=["v_proj", name]))


@pytest.mark.parametrize("options", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_lora_out_of_range_is_refused(options, backbone_of):
    with pytest.raises(UserError, match=r"tuning\.rank"):
        apply(backbone_of("llama").peft, Lora(**options))


def test_full_learns_everything_in_float32(backbone_of):
    model = apply(backbone_of("llama").peft.bfloat16(), Full())
    assert learning(model) == {name for name, _ in model.named_parameters()}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_head_freezes_the_backbone(backbone_of):
    assert learning(apply(backbone_of("llama").peft, Head())) == set()


@pytest.mark.parametrize("tuning", [Lora(dropout=0.1), Full(), Head()])
def test_dropout_is_on(tuning, backbone_of):
    model = apply(backbone_of("gpt2").peft, tuning)
    assert all(module.training for module in model.modules())
