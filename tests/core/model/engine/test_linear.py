"""The engine's LoRA layers and frozen norms equal PEFT's and the model's own."""

import contextlib
from copy import deepcopy

import pytest
import torch
from gptask.config.engine import Fast
from gptask.config.schemas import Lora
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine import linear
from gptask.model.engine.forward_registry import replaced_by
from gptask.model.engine.forward_state import current_state
from gptask.model.engine.norm import NormForward

FAMILIES = ["llama", "qwen3", "gemma3"]
SOME_TARGETS = ["q_proj", "v_proj", "up_proj"]
IDS = torch.arange(5, 35).view(2, 15)


def gradients(out, inputs, seed=0):
    torch.manual_seed(seed)
    return torch.autograd.grad(out, inputs, torch.randn_like(out))


def replaced(backbone):
    """Names of LoRA layers and norms whose forward function is the engine's."""
    engine_functions = (linear.LoraForward, NormForward)
    return {name for name, module in backbone.named_modules() if isinstance(replaced_by(module), engine_functions)}


@pytest.fixture
def adapted(backbone_of):
    """``adapted("llama")``: a backbone with PEFT's LoRA layers and the model's norms, and one with the engine's.

    B is not zero as at first.
    """

    def make(family, dtype=torch.float32, **options):
        backbones = []
        for engine in (Fast(linear=False, norm=False), Fast()):
            backbone = backbone_of(family)
            backbone.use_engine(engine)
            settings = {"rank": 2, "target_modules": [] if family == "gpt2" else SOME_TARGETS} | options
            backbone.set_model(apply_tuning(backbone.peft.to(dtype), Lora(**settings)))
            torch.manual_seed(0)
            for name, parameter in backbone.named_parameters():
                if "lora_" in name:
                    parameter.data.normal_(0, 0.2)
            backbones.append(backbone)
        return backbones

    return make


def learn(backbone, seed=0):
    """The loss, and gradients by name."""
    torch.manual_seed(seed)
    with backbone.engine.running():
        loss = backbone.peft(IDS, labels=IDS).loss
        assert not current_state().lora_outputs, "no states outlive their pass"
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


def logits(backbone):
    with backbone.engine.running():
        return backbone.peft(IDS).logits.float()


@pytest.mark.parametrize("from_gradient", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_fused_lora_is_the_formula(layers, bias, from_gradient):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    frozen, all_a, all_b, formula = [], [], [], []
    for outputs, rank, scale in [(5, 4, 0.7), (3, 4, 2.0), (4, 1, 0.5)][:layers]:
        sizes = [(outputs, 6), (outputs,), (rank, 6), (outputs, rank)]
        weight, offset, a, b = (torch.randn(size, dtype=torch.float64) for size in sizes)
        formula.append((weight.T, offset if bias else 0, a.requires_grad_().T, b.requires_grad_().T, scale))
        frozen.append(linear.FrozenLinear(weight, offset if bias else None, scale))
        all_a.append(a)
        all_b.append(b)
    inputs = [*all_a, *all_b, *([x.requires_grad_()] if from_gradient else [])]
    got = linear.FusedLora.apply(x, frozen, *all_a, *all_b)
    expected = [x @ w + offset + scale * (x @ a @ b) for w, offset, a, b, scale in formula]
    torch.testing.assert_close(list(got), expected)
    pairs = (gradients(torch.cat(list(outs), -1), inputs) for outs in (got, expected))
    for gradient, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-6)  # adapters' gradients are float32


@pytest.mark.parametrize("family", FAMILIES)
def test_adapted_layers_and_frozen_norms_are_replaced(family, adapted):
    peft, ours = adapted(family)
    assert not replaced(peft)
    names = {name.rsplit(".", 1)[-1] for name in replaced(ours)}
    norms = {
        name.rsplit(".", 1)[-1] for name, module in ours.named_modules() if type(module).__name__.endswith("RMSNorm")
    }
    assert norms
    assert names == {*SOME_TARGETS} | norms


def test_layers_of_gpt2_stay_as_they_are(adapted):
    _, ours = adapted("gpt2")
    assert learn(ours)[1]
    assert not replaced(ours)


@pytest.mark.parametrize("targets", [SOME_TARGETS, []], ids=["some", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_pefts(family, targets, adapted):
    peft, ours = adapted(family, target_modules=targets)
    (expected, wanted), (loss, got) = learn(peft), learn(ours)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert got.keys() == wanted.keys()
    assert all("lora_" in name for name in got)
    for name, gradient in got.items():
        assert gradient.abs().max() > 0
        assert (gradient - wanted[name]).abs().max() < 1e-4 * wanted[name].abs().max()


@pytest.fixture
def products(monkeypatch):
    """How many layers each call of `FusedLora` was for."""
    counts, apply = [], linear.FusedLora.apply

    def spy(x, layers, *factors):
        counts.append(len(layers))
        return apply(x, layers, *factors)

    monkeypatch.setattr(linear.FusedLora, "apply", spy)
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_read_the_same_states_share_products(family, adapted, products):
    _, ours = adapted(family, target_modules=[])
    for backbone in (ours, deepcopy(ours)):
        products.clear()
        learn(backbone)
        assert products == [3, 1, 2, 1] * backbone.config.num_hidden_layers  # q k v, o, gate up, down


def test_a_layer_that_reads_other_states_is_computed_alone(adapted, products):
    peft, ours = adapted("llama", target_modules=[])
    for backbone in (peft, ours):
        for layer in backbone.layers:
            layer.mlp.up_proj.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    for _ in range(2):
        products.clear()
        (expected, wanted), (loss, got) = learn(peft), learn(ours)
    assert products == [3, 1, 1, 1, 1] * ours.config.num_hidden_layers
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in got.items():
        assert (gradient - wanted[name]).abs().max() < 1e-4 * wanted[name].abs().max()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_in_bfloat16_adapters_and_their_gradients_are_float32(family, adapted):
    peft, ours = adapted(family, torch.bfloat16)
    (expected, wanted), (loss, got) = learn(peft), learn(ours)
    torch.testing.assert_close(loss, expected, atol=0, rtol=0.02)
    dtypes = {name: p.dtype for name, p in ours.named_parameters()}
    assert {dtypes.pop(name) for name in got} == {torch.float32}
    assert set(dtypes.values()) == {torch.bfloat16}
    for name, gradient in got.items():
        assert gradient.dtype is torch.float32
        assert torch.cosine_similarity(gradient.flatten(), wanted[name].flatten(), 0) > 0.95


@contextlib.contextmanager
def merged(model):
    model.merge_adapter()
    yield
    model.unmerge_adapter()


ADAPTER_STATES = {
    "learning, with dropout": lambda model: contextlib.nullcontext(model.train()),
    "not learning": lambda model: contextlib.nullcontext(model.eval()),
    "disabled": lambda model: model.disable_adapter(),
    "merged": merged,
    "autocast": lambda model: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("state", ADAPTER_STATES)
def test_adapters_in_every_state_are_pefts(state, adapted):
    outs = []
    for backbone in adapted("llama", dropout=0.5):
        backbone.eval()
        plain = logits(backbone)
        with ADAPTER_STATES[state](backbone.peft):
            torch.manual_seed(0)
            outs.append(logits(backbone))
        same = torch.allclose(outs[-1], plain, atol=1e-4)
        assert same == (state in ("merged", "not learning"))  # the other states do change something
        backbone.eval()
        torch.testing.assert_close(logits(backbone), plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outs[1], outs[0], atol=1e-4, rtol=1e-4)


def test_loss_and_gradients_under_autocast_are_pefts(adapted):
    results = []
    for backbone in adapted("llama"):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(learn(backbone))
    (expected, wanted), (loss, got) = results
    assert torch.equal(loss, expected)
    for name, gradient in got.items():
        assert torch.cosine_similarity(gradient.flatten(), wanted[name].flatten(), 0) > 0.95


def test_a_state_dict_has_the_same_keys(adapted):
    peft, ours = adapted("gemma3")
    assert replaced(ours)
    assert list(ours.state_dict()) == list(peft.state_dict())
