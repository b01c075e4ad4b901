"""The rotation equals the model's own function, and replaces it only where both are the same."""

from copy import deepcopy

import pytest
import torch
from gptask.model.engine import rotary
from gptask.model.engine.forward_registry import restore_forwards
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partial
from transformers.models.llama import modeling_llama as llama

IDS = torch.arange(5, 35).view(2, 15)


@pytest.fixture
def rotations(monkeypatch):
    """The states that `Rotation` rotated."""
    rotated, apply = [], rotary.Rotation.apply

    def spy(x, cos, sin):
        rotated.append(x)
        return apply(x, cos, sin)

    monkeypatch.setattr(rotary.Rotation, "apply", spy)
    return rotated


def states(channels=8, dtype=torch.float64):
    torch.manual_seed(0)
    q, k = (torch.randn(2, heads, 5, 8, dtype=dtype, requires_grad=True) for heads in (4, 2))
    cos, sin = (torch.randn(2, 5, channels, dtype=dtype) for _ in range(2))
    return q, k, cos, sin


def values_and_gradients(function, q, k, cos, sin):
    outputs = function(q, k, cos, sin)
    return [*outputs, *torch.autograd.grad([(out**2).sum() for out in outputs], (q, k))]


def test_values_and_gradients_are_the_models_own(rotations):
    ours = values_and_gradients(lambda *args: rotary.rotate(llama.apply_rotary_pos_emb, *args), *states())
    assert len(rotations) == 2
    torch.testing.assert_close(ours, values_and_gradients(llama.apply_rotary_pos_emb, *states()))


@pytest.mark.parametrize("case", ["a part of the channels", "cosines in another format", "no gradient", "other axis"])
def test_an_unsupported_call_goes_to_the_models_own_function(case, rotations):
    q, k, cos, sin = states(4 if case == "a part of the channels" else 8)
    axis = ()
    if case == "cosines in another format":
        cos, sin = cos.float(), sin.float()
    if case == "no gradient":
        q, k = q.detach(), k.detach()
    if case == "other axis":
        q, k, axis = q.transpose(1, 2), k.transpose(1, 2), (2,)
    got = rotary.rotate(partial, q, k, cos, sin, *axis)
    assert not rotations
    torch.testing.assert_close(got, partial(q, k, cos, sin, *axis))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_training_uses_the_rotation_and_inference_the_models_own(family, backbone_of, rotations):
    model = backbone_of(family).peft
    layers = model.config.num_hidden_layers
    rotations.clear()  # those tried at installation
    with torch.inference_mode():
        model(IDS)
    assert not rotations
    gradients = []
    for copy in (model, deepcopy(model)):
        rotations.clear()
        copy(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in copy.parameters()])
        assert len(rotations) == 2 * layers
    rotations.clear()
    model.zero_grad()
    restore_forwards(model)
    model(IDS, labels=IDS).loss.backward()
    assert not rotations
    for expected, *got in zip([p.grad for p in model.parameters()], *gradients, strict=True):
        assert all((gradient - expected).abs().max() <= 1e-4 * expected.abs().max() for gradient in got)


def test_a_copy_uses_its_own_weights(backbone_of):
    model = backbone_of("llama").peft
    copy = deepcopy(model)
    before = model(IDS).logits
    torch.nn.init.zeros_(copy.model.layers[0].self_attn.o_proj.weight)
    assert torch.equal(model(IDS).logits, before)
    assert not torch.allclose(copy(IDS).logits, before)


def test_the_transformers_module_stays_as_it_is(backbone_of):
    backbone_of("llama")
    assert llama.LlamaAttention.forward.__globals__["apply_rotary_pos_emb"] is llama.apply_rotary_pos_emb
    assert not rotary._is_standard_rotation(interleaved)
    with pytest.raises(TypeError):  # the engine logs it and leaves rotary off
        rotary._is_standard_rotation(lambda x, cos, sin: x)


def test_a_model_without_rotation_stays_as_it_is(backbone_of):
    model = backbone_of("gpt2").peft
    assert "no rotary positions" in rotary.install(model)
    assert not any("forward" in vars(module) for name, module in model.named_modules() if name.endswith("attn"))
