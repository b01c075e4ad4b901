"""Inference multiplies with weights that are as they are now: adapters merged, and packed where that is faster."""

from copy import deepcopy

import pytest
import torch
from gptask.config.schemas import Lora
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine import linear
from torch import nn

IDS = torch.arange(5, 35).view(2, 15)
bfloat16_products = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 products here"
)


@pytest.fixture
def adapted(backbone_of):
    """``adapted()``: a backbone with adapters."""

    def make(dtype=torch.float32, **options):
        backbone = backbone_of("llama")
        backbone.set_model(apply_tuning(backbone.peft.to(dtype), Lora(**{"rank": 2} | options)))
        return backbone.eval()

    return make


def logits(backbone):
    with backbone.engine.running():
        return backbone.peft(IDS).logits


def lora_layer(backbone):
    return next(module for module in backbone.modules() if getattr(module, "lora_B", None))


def made(backbone, layer):
    """The layer's weight for inference, None where there is none."""
    return backbone.engine.weights._made.get(layer)


def test_inference_merges_the_factors_as_they_are_now(adapted):
    backbone = adapted()
    layer = lora_layer(backbone)
    with torch.inference_mode():
        before = logits(backbone)
        assert made(backbone, layer)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    with torch.inference_mode():
        after = logits(backbone)
    assert not torch.allclose(before, after)
    assert torch.allclose(logits(backbone), after, atol=1e-4), "with gradients the same is computed from the factors"
    backbone.train()
    assert not made(backbone, layer), "training keeps no merged weight"


def test_a_pass_for_the_gradient_of_its_input_keeps_the_weights_unless_some_learn(adapted):
    backbone = adapted()
    layer, learning = lora_layer(backbone), [p for p in backbone.parameters() if p.requires_grad]
    embeds = backbone.model.get_input_embeddings()(IDS).detach().requires_grad_()
    with torch.inference_mode():
        logits(backbone)
    for parameter in learning:
        parameter.requires_grad_(False)
    backbone.hidden(embeds=embeds).sum().backward()
    assert embeds.grad.abs().sum() > 0
    assert made(backbone, layer), "all weights are as they were"
    learning[0].requires_grad_(True)
    backbone.hidden(embeds=embeds)
    assert not made(backbone, layer)


@bfloat16_products
def test_few_rows_use_a_packed_weight_and_many_do_not(backbone_of, monkeypatch):
    backbone = backbone_of("llama")
    backbone.set_model(backbone.peft.to(torch.bfloat16))
    layer = next(m for m in backbone.modules() if type(m) is nn.Linear and m.weight.dtype is torch.bfloat16)
    x = torch.randn(2, 3, layer.in_features, dtype=torch.bfloat16)

    def product():
        with backbone.engine.running():
            return layer(x)

    with torch.inference_mode():
        monkeypatch.setattr(linear, "PACKED_MAX_ROWS", 5)
        expected = product()
        assert not made(backbone, layer), "six rows are many"
        monkeypatch.setattr(linear, "PACKED_MAX_ROWS", 6)
        torch.testing.assert_close(product(), expected)
        assert made(backbone, layer).packed
        torch.testing.assert_close(deepcopy(backbone).layers[0].mlp.up_proj.weight,
                                   backbone.layers[0].mlp.up_proj.weight)  # fmt: skip
    with torch.no_grad():
        layer.weight.mul_(2)
        torch.testing.assert_close(product(), 2 * expected)
    backbone.train()
    product()
    assert not made(backbone, layer), "training keeps no second copy"


@bfloat16_products
def test_merged_weights_are_packed_where_bfloat16_is_fast(adapted):
    backbone = adapted(torch.bfloat16)
    layer = lora_layer(backbone)
    a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
    nn.init.normal_(b)
    x = torch.randn(2, 3, a.shape[1], dtype=torch.bfloat16)
    expected = x.float() @ (layer.base_layer.weight.float() + layer.scaling["default"] * (b @ a)).T
    with torch.inference_mode(), backbone.engine.running():
        assert (layer(x) - expected).abs().max() <= 0.02 * expected.abs().max()
    assert made(backbone, layer).packed


def test_float32_weights_have_no_second_copy(backbone_of):
    backbone = backbone_of("llama")
    with torch.inference_mode():
        logits(backbone)
    assert not any(made(backbone, module) for module in backbone.modules() if type(module) is nn.Linear)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_inference_follows_every_step_of_a_fused_optimizer(dropout, adapted):
    backbone = adapted(dropout=dropout)
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=0.1, fused=True)
    all_logits = []
    for _ in range(3):
        backbone.peft.eval()
        with torch.inference_mode():
            all_logits.append(logits(backbone))
        backbone.peft.train()
        with backbone.engine.running():
            backbone.peft(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert not torch.allclose(all_logits[1], all_logits[0])
    assert not torch.allclose(all_logits[2], all_logits[1])
