"""The engine's LoRA layers, RMS norms and loss equal PEFT's, the model's own and torch's."""

import contextlib
from copy import deepcopy

import pytest
import torch
from gptask.config.schemas import Lora
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine import linear, loss
from gptask.model.engine.loss import ChunkedCrossEntropy
from torch import nn

FAMILIES = ["llama", "qwen3", "gemma3"]
SOME_TARGETS = ["q_proj", "v_proj", "up_proj"]
IDS = torch.arange(5, 35).view(2, 15)


def gradients(out, inputs, seed=0):
    torch.manual_seed(seed)
    return torch.autograd.grad(out, inputs, torch.randn_like(out))


def replaced(model):
    """Names of LoRA layers and norms whose forward function is the engine's."""
    forwards = {name: vars(module).get("forward") for name, module in model.named_modules()}
    engine_functions = (linear._lora_forward, linear._norm_forward)
    return {name for name, forward in forwards.items() if forward and forward.__func__ in engine_functions}


def norm_of(family, channels=8, **options):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = {"llama": LlamaRMSNorm, "gemma3": Gemma3RMSNorm}[family](channels, **options)
    nn.init.normal_(norm.weight)
    return norm


@pytest.fixture
def adapted(backbone_of, monkeypatch):
    """``adapted("llama")``: a PEFT model as PEFT makes it, and the same on the engine; B is not zero as at first."""

    def make(family, dtype=torch.float32, **options):
        models = []
        for install in (lambda model: None, linear.install):
            with monkeypatch.context() as patch:
                patch.setattr(linear, "install", install)
                settings = {"rank": 2, "target_modules": [] if family == "gpt2" else SOME_TARGETS} | options
                models.append(apply_tuning(backbone_of(family).peft.to(dtype), Lora(**settings)))
            torch.manual_seed(0)
            for name, parameter in models[-1].named_parameters():
                if "lora_" in name:
                    parameter.data.normal_(0, 0.2)
        return models

    return make


def learn(model, seed=0):
    """The loss, and gradients by name."""
    torch.manual_seed(seed)
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


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


@pytest.mark.parametrize("chunk", [192, 3, 1])  # of seven states
def test_chunked_cross_entropy_is_torchs(chunk, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_STATES", chunk)
    torch.manual_seed(0)
    states, weight, next_ids = torch.randn(7, 6, requires_grad=True), torch.randn(11, 6), torch.arange(7)
    got = ChunkedCrossEntropy.apply(states, weight, next_ids)
    expected = nn.functional.cross_entropy(states @ weight.T, next_ids, reduction="none")
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, [states]), gradients(expected, [states]))
    assert ChunkedCrossEntropy.apply(states[:0], weight, next_ids[:0]).shape == (0,)


def test_cross_entropy_of_a_token_without_probability_is_finite():
    states, weight = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    got = ChunkedCrossEntropy.apply(states, weight, torch.tensor([1]))
    assert got.tolist() == [400.0]
    assert torch.autograd.grad(got, states)[0].tolist() == [[2.0]]


def test_cross_entropy_in_bfloat16_is_about_as_exact_as_torchs(monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_STATES", 20)
    torch.manual_seed(0)
    states, weight = torch.randn(50, 64).bfloat16().requires_grad_(), (torch.randn(300, 64) * 0.2).bfloat16()
    next_ids = torch.randint(300, (50,))
    exact = states.detach().float().requires_grad_()
    truth = nn.functional.cross_entropy(exact @ weight.float().T, next_ids, reduction="none")
    (true_gradient,) = torch.autograd.grad(truth.mean(), exact)

    def errors(nats):
        assert nats.dtype is torch.float32
        (gradient,) = torch.autograd.grad(nats.mean(), states)
        return float((nats.detach() - truth.detach()).norm()), float((gradient - true_gradient).norm())

    torch_errors = errors(nn.functional.cross_entropy((states @ weight.T).float(), next_ids, reduction="none"))
    for got, usual in zip(errors(ChunkedCrossEntropy.apply(states, weight, next_ids)), torch_errors, strict=True):
        assert got < 1.5 * usual


@pytest.mark.parametrize("size", [1.0, 1e-3])  # so small that eps counts
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_frozen_norm_is_the_models_own(family, size):
    torch.manual_seed(0)
    model_norm = norm_of(family).requires_grad_(False)
    norm = deepcopy(model_norm)
    linear.install(nn.ModuleList([norm]))
    assert "forward" in vars(norm)
    x = (torch.randn(2, 3, 8) * size).requires_grad_()
    assert torch.equal(norm(x), model_norm(x))
    assert torch.equal(norm(x.detach()), model_norm(x))
    (got,), (expected,) = gradients(norm(x), x), gradients(model_norm(x), x)
    torch.testing.assert_close(got, expected, atol=1e-5 / size, rtol=1e-4)


class CentredRMSNorm(nn.LayerNorm):
    """A norm that is named like an RMS norm."""


class CappedRMSNorm(nn.RMSNorm):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-6)

    def forward(self, x):
        return super().forward(x).clamp(-0.5, 0.5)


def scaleless(channels):
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRMSNorm

    return Gemma3nRMSNorm(channels, with_scale=False)


@pytest.mark.parametrize("make", [CentredRMSNorm, CappedRMSNorm, scaleless])
def test_a_norm_of_another_formula_stays_as_it_is(make):
    norm = make(8).requires_grad_(False)
    linear.install(nn.ModuleList([norm]))
    assert "forward" not in vars(norm)


def test_a_norm_that_learns_stays_as_it_is():
    norm = norm_of("llama")
    linear.install(nn.ModuleList([norm]))
    assert "forward" not in vars(norm)
    norm(torch.randn(2, 8)).sum().backward()
    assert norm.weight.grad.abs().sum() > 0


def test_a_copy_of_a_norm_uses_its_own_weights():
    norm = norm_of("llama").requires_grad_(False)
    linear.install(nn.ModuleList([norm]))
    copy, x = deepcopy(norm), torch.randn(2, 8, requires_grad=True)
    before, (gradient,) = copy(x), gradients(copy(x), x)
    norm.weight.zero_()
    norm.rms_scale.zero_()
    assert torch.equal(copy(x), before)
    assert torch.equal(gradients(copy(x), x)[0], gradient)


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
    for model in (ours, deepcopy(ours)):
        products.clear()
        learn(model)
        assert products == [3, 1, 2, 1] * model.config.num_hidden_layers  # q k v, o, gate up, down
    assert all(not group.outputs and group.input is None for group in groups(ours))


def groups(model):
    return [module.lora_group for module in model.modules() if getattr(module, "lora_group", None)]


def test_a_layer_that_reads_other_states_is_computed_alone(adapted, products):
    peft, ours = adapted("llama", target_modules=[])
    for model in (peft, ours):
        for layer in model.base_model.model.model.layers:
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
    for model in adapted("llama", dropout=0.5):
        model.eval()
        plain = model(IDS).logits
        with ADAPTER_STATES[state](model):
            torch.manual_seed(0)
            outs.append(model(IDS).logits.float())
        same = torch.allclose(outs[-1], plain, atol=1e-4)
        assert same == (state in ("merged", "not learning"))  # the other states do change something
        torch.testing.assert_close(model.eval()(IDS).logits, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outs[1], outs[0], atol=1e-4, rtol=1e-4)


def test_loss_and_gradients_under_autocast_are_pefts(adapted):
    results = []
    for model in adapted("llama"):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(learn(model))
    (expected, wanted), (loss, got) = results
    assert torch.equal(loss, expected)
    for name, gradient in got.items():
        assert torch.cosine_similarity(gradient.flatten(), wanted[name].flatten(), 0) > 0.95


def test_a_state_dict_has_the_same_keys(adapted):
    peft, ours = adapted("gemma3")
    assert replaced(ours)
    assert list(ours.state_dict()) == list(peft.state_dict())


def test_inference_merges_the_factors_as_they_are_now(backbone_of):
    model = apply_tuning(backbone_of("llama").peft, Lora(rank=2))
    ids = torch.arange(6)[None]
    layer = next(m for m in model.modules() if getattr(m, "lora_B", None))
    with torch.inference_mode():
        before = model(ids).logits
        assert layer.inference_weight is not None
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    with torch.inference_mode():
        after = model(ids).logits
    assert not torch.allclose(before, after)
    assert torch.allclose(model(ids).logits, after, atol=1e-4), "with gradients the same is computed from the factors"
    assert layer.inference_weight is None, "and keeps no merged weight"


def bfloat16_layer(model):
    return next(m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype is torch.bfloat16)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 products here")
def test_few_rows_use_a_packed_weight_and_many_do_not(backbone_of, monkeypatch):
    model = backbone_of("llama").peft.to(torch.bfloat16)
    layer = bfloat16_layer(model)
    x = torch.randn(2, 3, layer.in_features, dtype=torch.bfloat16)
    with torch.inference_mode():
        monkeypatch.setattr(linear, "PACKED_MAX_ROWS", 5)
        expected = layer(x)
        assert layer.inference_weight is None, "six rows are many"
        monkeypatch.setattr(linear, "PACKED_MAX_ROWS", 6)
        torch.testing.assert_close(layer(x), expected)
        assert layer.inference_weight.packed
        torch.testing.assert_close(deepcopy(model).get_submodule("model.layers.0.mlp.up_proj").weight,
                                   model.model.layers[0].mlp.up_proj.weight)  # fmt: skip
    with torch.no_grad():
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), 2 * expected)
    layer(x)
    assert layer.inference_weight is None, "training keeps no second copy"


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 products here")
def test_merged_weights_are_packed_where_bfloat16_is_fast(backbone_of):
    model = apply_tuning(backbone_of("llama").peft.to(torch.bfloat16), Lora(rank=2))
    layer = next(m for m in model.modules() if getattr(m, "lora_B", None))
    a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
    nn.init.normal_(b)
    x = torch.randn(2, 3, a.shape[1], dtype=torch.bfloat16)
    expected = x.float() @ (layer.base_layer.weight.float() + layer.scaling["default"] * (b @ a)).T
    with torch.inference_mode():
        assert (layer(x) - expected).abs().max() <= 0.02 * expected.abs().max()
    assert layer.inference_weight.packed


def test_float32_weights_have_no_second_copy(backbone_of):
    model = backbone_of("llama").peft
    with torch.inference_mode():
        model(IDS)
    assert all(module.inference_weight is None for module in model.modules() if type(module) is nn.Linear)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_inference_follows_every_step_of_a_fused_optimizer(dropout, backbone_of):
    model = apply_tuning(backbone_of("llama").peft, Lora(rank=2, dropout=dropout))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    logits = []
    for _ in range(3):
        with torch.inference_mode():
            logits.append(model.eval()(IDS).logits)
        model.train()(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert not torch.allclose(logits[1], logits[0])
    assert not torch.allclose(logits[2], logits[1])
