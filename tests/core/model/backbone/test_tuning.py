"""Each tuning chooses which weights learn."""

import re

import pytest
import torch
from gptask.config.schemas import Full, HeadOnly, Lora
from gptask.errors import UserError
from gptask.model.backbone.tuning import apply_tuning, drop_upper_layers, scaled_lora_lr

from tests.support.tiny_models import FAMILIES

IDS = torch.tensor([[5, 6, 7, 8]])
LINEAR = {
    False: {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    True: {"c_attn", "c_fc", "c_proj"},  # GPT-2
}


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapted_names(model):
    return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in learning(model)}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_equal_to_the_backbone_and_only_its_factors_learn(family, backbone_of):
    backbone = backbone_of(family)
    before = backbone.logits(backbone.hidden(IDS))
    backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)).eval())
    assert torch.equal(backbone.logits(backbone.hidden(IDS)), before)
    names = learning(backbone)
    assert names
    assert all("lora_A" in name or "lora_B" in name for name in names)
    assert adapted_names(backbone) == LINEAR[family == "gpt2"]


def test_lora_factors_change_the_states_of_the_backbone(backbone_of):
    backbone = backbone_of("llama")
    before = backbone.hidden(IDS)
    backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)
    assert not torch.allclose(backbone.hidden(IDS), before, atol=1e-2)


def test_lora_adapts_the_named_target_modules(backbone_of):
    model = apply_tuning(
        backbone_of("llama").peft, Lora(rank=2, target_modules=["up_proj", "model.layers.0.self_attn.q_proj"])
    )
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.model.layers.") for name in learning(model)}
    assert layers == {"0.mlp.up_proj", "1.mlp.up_proj", "0.self_attn.q_proj"}


@pytest.mark.parametrize("name", ["q_prj", "lm_head", "embed_tokens", "input_layernorm"])
def test_a_target_module_that_does_not_exist_is_refused_even_beside_a_valid_one(name, backbone_of):
    with pytest.raises(UserError, match=rf"'{name}' names no layer.*down_proj.*q_proj"):
        apply_tuning(backbone_of("llama").peft, Lora(target_modules=["v_proj", name]))


@pytest.mark.parametrize("options", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_lora_out_of_range_is_refused(options, backbone_of):
    with pytest.raises(UserError, match=r"tuning\.rank"):
        apply_tuning(backbone_of("llama").peft, Lora(**options))


@pytest.mark.parametrize(
    ("family", "channels", "expected"),
    [
        ("llama", 576, 1e-3),  # SmolLM2-135M, on which the rates were tuned
        ("llama", 2048, 3.7e-4),  # 5e-4 times (2000 / 2048) ** 0.781, the published rule, over 1.32e-3 there
        ("llama", 64, 1e-3),
        ("qwen3", 1024, 4e-4),
        ("gemma3_text", 640, 4.1e-4),
    ],
)
def test_lora_rate_falls_with_width_and_is_lower_in_other_families(family, channels, expected):
    assert scaled_lora_lr(1e-3, family, channels) == pytest.approx(expected)


def test_full_learns_everything_in_float32(backbone_of):
    model = apply_tuning(backbone_of("llama").peft.bfloat16(), Full())
    assert learning(model) == {name for name, _ in model.named_parameters()}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_head_only_freezes_the_backbone(backbone_of):
    assert learning(apply_tuning(backbone_of("llama").peft, HeadOnly())) == set()


@pytest.mark.parametrize(("tuning", "on"), [(Lora(dropout=0.1), True), (Full(), True), (HeadOnly(), False)])
def test_dropout_is_on_unless_the_backbone_is_frozen(tuning, on, backbone_of):
    model = apply_tuning(backbone_of("gpt2").peft, tuning)
    assert {module.training for module in model.modules()} == {on}


def adapted_layers(model):
    return sorted({int(re.search(r"\.(?:layers|h)\.(\d+)\.", name)[1]) for name in learning(model)})


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("top", "layers"), [(1.0, [0, 1, 2, 3]), (0.5, [2, 3]), (0.25, [3]), (0.01, [3])])
def test_top_adapts_only_the_last_layers(family, top, layers, backbone_of):
    model = apply_tuning(backbone_of(family, layers=4).peft, Lora(rank=2, top=top))
    assert adapted_layers(model) == layers
    assert adapted_names(model) == LINEAR[family == "gpt2"]


def test_top_is_a_share_of_many_layers(backbone_of):
    assert adapted_layers(apply_tuning(backbone_of("llama", layers=30).peft, Lora(rank=2, top=0.3))) == list(
        range(21, 30)
    )


def test_top_can_be_combined_with_target_modules(backbone_of):
    model = apply_tuning(
        backbone_of("llama", layers=4).peft, Lora(rank=2, top=0.5, target_modules=["up_proj", "q_proj"])
    )
    assert adapted_layers(model) == [2, 3]
    assert adapted_names(model) == {"up_proj", "q_proj"}


@pytest.mark.parametrize("top", [0.0, -0.5, 1.01])
def test_top_out_of_range_is_refused(top, backbone_of):
    with pytest.raises(UserError, match=rf"tuning\.top={top} must be above 0 and at most 1"):
        apply_tuning(backbone_of("llama").peft, Lora(top=top))


@pytest.mark.parametrize(("share", "layers"), [(1.0, 4), (0.75, 3), (0.6, 2), (0.01, 1)])
@pytest.mark.parametrize("top", [1.0, 0.34])
def test_top_is_a_share_of_the_layers_that_remain(share, layers, top, backbone_of):
    backbone, tuning = backbone_of("llama", layers=4), Lora(rank=2, layers=share, top=top)
    drop_upper_layers(backbone, tuning)
    assert len(backbone.layers) == layers
    assert adapted_layers(apply_tuning(backbone.peft, tuning)) == list(range(0 if top == 1 else layers - 1, layers))


@pytest.mark.parametrize("tuning", [Full(), HeadOnly()])
def test_a_tuning_without_layers_option_keeps_all_layers(tuning, backbone_of):
    backbone = backbone_of("llama")
    drop_upper_layers(backbone, tuning)
    assert len(backbone.layers) == 2


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_share_of_layers_out_of_range_is_refused(share, backbone_of):
    with pytest.raises(UserError, match=rf"tuning\.layers={share} must be above 0 and at most 1"):
        drop_upper_layers(backbone_of("llama"), Lora(layers=share))


def test_a_model_that_needs_its_upper_layers_is_refused(backbone_of):
    for make_depend_on_upper_layers in (
        lambda backbone: backbone.body.register_forward_pre_hook(lambda body, _: body.layers[3]),
        lambda backbone: setattr(backbone.model.config, "num_hidden_layers", 7),
    ):
        backbone = backbone_of("llama", layers=4)
        make_depend_on_upper_layers(backbone)
        with pytest.raises(UserError, match=r"tuning\.layers=0\.5: LlamaForCausalLM needs all .* set tuning\.layers=1"):
            drop_upper_layers(backbone, Lora(layers=0.5))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_layers_below_the_top_need_no_gradient(family, backbone_of):
    model = apply_tuning(backbone_of(family, layers=4).peft, Lora(rank=2, top=0.5))
    needs_gradient = []
    body = model.get_base_model().get_decoder()
    for layer in body.layers if family == "llama" else body.h:
        layer.register_forward_hook(
            lambda _, __, out: needs_gradient.append(torch.is_tensor(out) and out.requires_grad)
        )
    model(IDS)
    assert needs_gradient == [False, False, True, True]


def test_a_share_that_drops_no_layer_is_said(backbone_of, caplog):
    backbone = backbone_of("llama")
    drop_upper_layers(backbone, Lora(layers=0.8))
    assert len(backbone.layers) == 2
    assert "tuning.layers=0.8 drops none of the backbone's 2 layers" in caplog.text


def test_a_rank_above_the_channels_is_refused(backbone_of):
    peft = backbone_of("llama").peft
    with pytest.raises(UserError, match=r"tuning\.rank=1000000000 is more than the backbone's \d+ channels"):
        apply_tuning(peft, Lora(rank=10**9))
