"""Components of the fast engine: switched off, refused with a reason, and never wrong after an edit of the weights."""

import logging
from dataclasses import fields

import pytest
import torch
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Full, Lora
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine import packing
from gptask.model.engine.inference_weights import InferenceWeights

from tests.support.tiny_models import FAMILIES

COMPONENTS = [f.name for f in fields(Fast)]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13], [5, 6, 7, 8, 9, 20, 21, 0, 0], [30, 31, 32, 0, 0, 0, 0, 0, 0]])
LENGTHS = torch.tensor([9, 7, 3])


def states(backbone, **inputs):
    """The last hidden states of the real tokens."""
    with torch.no_grad():
        hidden = backbone.hidden(**({"input_ids": IDS, "lengths": LENGTHS} | inputs))
    return torch.cat([row[:length] for row, length in zip(hidden, LENGTHS, strict=True)])


@pytest.fixture
def adapted(adapted_backbone_of):
    """A backbone in bfloat16, whose merged weights are packed where the processor can, with adapters."""
    backbone = adapted_backbone_of("llama")
    backbone.set_model(backbone.peft.to(torch.bfloat16))
    return backbone.eval()


# --- what is on, and why not --------------------------------------------------------------------------------------


def test_a_llama_has_every_component(backbone_of):
    backbone = backbone_of("llama")
    backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)))
    backbone.use_engine(Fast())
    assert backbone.engine.describe() == {"name": "fast", "off": {}}
    assert backbone.engine.summary() == f"engine: fast, with {', '.join(COMPONENTS)}"


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_that_is_switched_off_says_so(component, backbone_of):
    backbone = backbone_of("llama")
    backbone.use_engine(Fast(**{component: False}))
    assert backbone.engine.off[component] == "switched off"
    assert f"; {component} is off: switched off" in backbone.engine.summary()
    assert not backbone.engine.has(component)


def test_packing_needs_the_attention(backbone_of):
    backbone = backbone_of("llama")
    backbone.use_engine(Fast(attention=False))
    assert backbone.engine.off["packing"] == "it needs the engine's attention"
    assert not backbone.engine.can_pack(4)


def test_reasons_name_what_the_model_has_not(backbone_of):
    backbone = backbone_of("gpt2")
    backbone.use_engine(Fast())
    assert backbone.engine.off == {
        "rotary": "the model has no rotary positions of the common form",
        "norm": "the model has no RMS norms",
    }
    llama = backbone_of("llama")
    llama.set_model(apply_tuning(llama.peft, Full()))
    assert llama.engine.off["norm"] == "the model's norms learn"


@pytest.mark.parametrize("name", ["rotary", "norm", "last_layer", "packing"])
def test_a_check_that_raises_is_logged_with_its_exception_and_switches_off(name, backbone_of, monkeypatch, caplog):
    def check(*_):
        raise IndexError("no such layer\nin this model")

    function = {
        "rotary": "rotary._is_standard_rotation",
        "norm": "norm._fitting_forward",
        "last_layer": "last_layer._is_positionwise",
        "packing": "packing.supports_packing",
    }[name]
    backbone = backbone_of("llama")
    backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)))
    backbone.use_engine(Reference())
    expected = states(backbone.eval())
    monkeypatch.setattr(f"gptask.model.engine.{function}", check)
    with caplog.at_level(logging.DEBUG, "gptask"):
        backbone.use_engine(Fast())
    reason = "its check failed with IndexError: no such layer in this model"
    assert backbone.engine.off == {name: reason}
    warning, details = [record for record in caplog.records if name in record.getMessage()]
    assert (warning.levelname, warning.getMessage()) == ("WARNING", f"engine: {name} is off: {reason}")
    assert "IndexError: no such layer" in logging.Formatter().format(details)  # with the stack trace
    torch.testing.assert_close(states(backbone), expected, rtol=1e-4, atol=1e-5)


def test_a_model_whose_tokens_mix_outside_of_attention_is_not_packed(backbone_of, monkeypatch):
    monkeypatch.setattr(packing, "supports_packing", lambda backbone: False)
    backbone = backbone_of("llama")
    assert backbone.engine.off == {"packing": "layers mix tokens by other means than attention"}


def test_checks_leave_random_state_and_modes_as_they_were(backbone_of):
    backbone = backbone_of("gpt2")
    backbone.train()
    backbone.layers[0].eval()
    modes, state = [module.training for module in backbone.modules()], torch.get_rng_state()
    backbone.use_engine(Fast())
    assert [module.training for module in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


# --- edited weights -----------------------------------------------------------------------------------------------


def by_load_state_dict(backbone, parameter, new):
    name = next(name for name, own in backbone.named_parameters() if own is parameter)
    backbone.load_state_dict({name: new}, strict=False)


def by_assigning(backbone, parameter, new):
    name = next(name for name, own in backbone.named_parameters() if own is parameter)
    backbone.load_state_dict({name: new}, strict=False, assign=True)


def by_data(backbone, parameter, new):
    parameter.data = new.clone()


def by_copy(backbone, parameter, new):
    with torch.no_grad():
        parameter.copy_(new)


def by_data_between_modes(backbone, parameter, new):
    parameter.data.copy_(new)
    backbone.train()
    backbone.eval()


EDITS = [by_load_state_dict, by_assigning, by_data, by_copy, by_data_between_modes]


@pytest.mark.parametrize("name", ["q_proj.base_layer.weight", "q_proj.lora_A", "q_proj.lora_B", "embed_tokens.weight"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_the_weights_is_seen_in_the_next_pass(edit, name, adapted):
    def logits():
        with torch.inference_mode(), adapted.engine.running():
            return adapted.logits(adapted.hidden(IDS, LENGTHS)[:, -1])

    parameter = next(parameter for own, parameter in adapted.named_parameters() if name in own)
    before = logits()
    edit(adapted, parameter, torch.randn_like(parameter))
    after = logits()
    assert not torch.equal(before, after)
    adapted.engine.drop_inference_weights()
    assert torch.equal(logits(), after)


def test_a_step_of_a_fused_optimizer_is_seen_though_no_mode_is_set(adapted):
    """Lightning returns from validation by setting each module's ``training``, and a fused step changes no version."""
    before = states(adapted)
    learning = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.1, fused=True)
    for module in adapted.modules():
        module.training = True
    adapted.hidden(IDS, LENGTHS).float().square().sum().backward()
    optimizer.step()
    for module in adapted.modules():
        module.training = False
    after = states(adapted)
    assert not torch.equal(before, after)
    adapted.engine.drop_inference_weights()
    assert torch.equal(states(adapted), after)


def test_weights_are_looked_at_once_in_a_pass_and_made_once(adapted, monkeypatch):
    looks, made = [], []
    drop = InferenceWeights.drop_outdated
    monkeypatch.setattr(InferenceWeights, "drop_outdated", lambda self: looks.append(1) or drop(self))
    product = InferenceWeights.adapted_product

    def note_layer(self, layer, x):
        made.append(layer not in self._made)
        return product(self, layer, x)

    monkeypatch.setattr(InferenceWeights, "adapted_product", note_layer)
    states(adapted)
    states(adapted)
    layers = 7 * len(adapted.layers)
    assert (len(looks), len(made), sum(made)) == (2, 2 * layers, layers)


# --- embeddings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [Fast(), Fast(packing=False), Reference()], ids=["fast", "no packing", "reference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_give_the_states_and_gradients_of_their_ids(family, engine, adapted_backbone_of):
    backbone = adapted_backbone_of(family).eval()
    backbone.use_engine(engine)
    embedding = backbone.model.get_input_embeddings()
    embedding.weight.requires_grad_()
    weights = torch.randn(int(LENGTHS.sum()), backbone.channels, generator=torch.Generator().manual_seed(0))
    gradients, all_states = [], []
    for inputs in ({"input_ids": IDS}, {"embeds": embedding(IDS)}):
        hidden = backbone.hidden(lengths=LENGTHS, **inputs)
        real = torch.cat([row[:length] for row, length in zip(hidden, LENGTHS, strict=True)])
        all_states.append(real)
        gradients.append(torch.autograd.grad((real * weights).sum(), embedding.weight)[0])
    torch.testing.assert_close(*all_states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))


def test_only_equal_vectors_without_gradients_share_a_prefix(backbone_of, monkeypatch):
    backbone = backbone_of("llama").eval()
    embeds = backbone.model.get_input_embeddings()(IDS).detach()
    saved = []  # tokens that are read for several rows at once
    split = packing.split_prefixes

    def counting(rows):
        parts = split(rows)
        saved.append(int(LENGTHS.sum()) - parts.size)
        return parts

    monkeypatch.setattr(packing, "split_prefixes", counting)
    expected = states(backbone)
    torch.testing.assert_close(states(backbone, input_ids=None, embeds=embeds), expected, rtol=1e-4, atol=1e-5)
    other = embeds.clone()
    other[1, 2] += 1e-3  # within the shared prefix
    changed = states(backbone, input_ids=None, embeds=other)
    torch.testing.assert_close(changed[:9], expected[:9], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed[9 + 2 : 9 + 7], expected[9 + 2 : 9 + 7], atol=1e-6)
    needs_gradient = embeds.clone().requires_grad_()
    backbone.hidden(lengths=LENGTHS, embeds=needs_gradient)
    assert saved == [5, 5, 2, 0]
