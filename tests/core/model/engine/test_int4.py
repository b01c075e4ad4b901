"""Weights in int4: their values, which products use the kernel, and that all passes compute with the same weights."""

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from gptask import Fast, Lora, Reference, UserError
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine import private
from gptask.model.engine.inference_weights import OWN
from gptask.model.engine.int4 import GROUP, is_int4, quantize_layers, quantized
from gptask.model.engine.interface import DecodingRow
from gptask.plugins.generation_options import GenerationOptions
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

pytestmark = pytest.mark.usefixtures("needs_int4")
PROMPTS = [[7, 3, 90, 41, 12, 5, 20], [7, 3, 90, 41, 60], [33, 34], [8] * 12]


@pytest.fixture
def kernel_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each product by the kernel from here on."""
    rows: list[int] = []
    multiply = private.int4_linear

    def spy(x: Tensor, *rest: Any) -> Tensor:
        rows.append(len(x))
        return multiply(x, *rest)

    monkeypatch.setattr(private, "int4_linear", spy)
    return rows


def linear_layers(backbone: Any) -> list[Any]:
    return [module for module in backbone.body.modules() if type(module) in (nn.Linear, Conv1D)]


def decoded(backbone: Any, prompts: list[list[int]], adapters: Any = None, tokens: int = 8) -> list[DecodingRow]:
    """Greedy texts, written together; in their first pass, layers see as many rows as the prompts have tokens."""
    options = GenerationOptions(max_new_tokens=tokens, min_new_tokens=tokens)
    adapters = adapters or [None] * len(prompts)
    rows = [
        DecodingRow(list(prompt), tokens, options, adapter) for prompt, adapter in zip(prompts, adapters, strict=True)
    ]
    backbone.engine.decode(rows)
    return rows


def exact(backbone: Any) -> Any:
    """The same model by plain transformers and PEFT in float32, with the values of the int4 weights."""
    backbone.engine.uninstall()
    copied = deepcopy(backbone.peft).float().eval()
    backbone.engine.install()
    return copied


@torch.inference_mode()
def assert_greedy(model: Any, rows: list[DecodingRow]) -> None:
    """Each token is the likeliest by the model, or next to it by less than rounding, and scored as the model does."""
    for row in rows:
        logits_TV = model(input_ids=torch.tensor([row.ids[:-1]])).logits[0, len(row.prompt) - 1 :]
        scores_TV = logits_TV.log_softmax(-1)
        chosen_T = scores_TV.gather(1, torch.tensor(row.new_ids)[:, None])[:, 0]
        bound = 0.03 * logits_TV.abs().max().item()  # bfloat16 keeps two to three digits
        assert (scores_TV.max(-1).values - chosen_T).max() <= bound
        assert chosen_T.tolist() == pytest.approx(row.log_probabilities, abs=bound)


# --- the values of a weight ---------------------------------------------------------------------------------------


def test_a_weight_from_q4_1_keeps_its_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    codes_NGK = torch.randint(0, 16, (64, 6, GROUP), generator=generator)
    codes_NGK[..., :2] = torch.tensor([0, 15])  # llama.cpp puts the codes between the least and the largest weight
    scale_NG1 = (torch.rand(64, 6, 1, generator=generator) * 0.1 + 1e-3).half().float()
    least_NG1 = (-7.5 * scale_NG1 * (0.5 + torch.rand(64, 6, 1, generator=generator))).half().float()
    weight_NC = (scale_NG1 * codes_NGK + least_NG1).view(64, -1).bfloat16()
    values_NC = quantized(weight_NC)[1]
    found_NGK = ((values_NC.view(64, 6, GROUP).float() - least_NG1) / scale_NG1).round()
    assert torch.equal(found_NGK, codes_NGK.float())
    error = (values_NC.float() - weight_NC.float()).abs().view(64, 6, GROUP)
    assert (error <= 0.15 * scale_NG1).all(), "bfloat16 rounds scale and zero point, by far less than a step"


@pytest.mark.parametrize("value", [0.0, -0.3125, 1e-3])
def test_a_group_of_equal_weights_is_exact(value: float) -> None:
    weight_NC = torch.full((16, 64), value).bfloat16()
    assert torch.equal(quantized(weight_NC)[1], weight_NC)


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 48).bfloat16()])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (1, 2)])
def test_the_kernel_multiplies_with_the_values(shape: tuple[int, ...], bias: Tensor | None) -> None:
    torch.manual_seed(0)
    int4, values_NC = quantized(torch.randn(48, 96))
    x = torch.randn(*shape, 96).bfloat16()
    expected = nn.functional.linear(x.float(), values_NC.float(), None if bias is None else bias.float())
    got = int4.product(x, bias)
    assert (got.shape, got.dtype) == (expected.shape, torch.bfloat16)
    assert (got.float() - expected).abs().max() <= 0.01 * expected.abs().max()
    assert int4.nbytes == 48 * 96 * 5 // 8


# --- the layers of a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_linear_layers_are_int4_and_those_the_kernel_cannot_take_are_counted(
    family: str, int4_backbone_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gptask")
    backbone = int4_backbone_of(family)
    layers = linear_layers(backbone)
    kept = [layer for layer in layers if not is_int4(layer)]
    assert backbone.int4.layers == len(layers) - len(kept) > 0
    ends = backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()
    assert not any(is_int4(end) for end in ends)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.bfloat16}
    if family == "gpt2":
        assert not kept
    else:
        assert {layer.in_features for layer in kept} == {48}
        assert backbone.int4.kept == {"32 does not divide their 48 input channels": 2}
        said = "int4: 12 linear layers; 2 stay bfloat16 (32 does not divide their 48 input channels)"
        assert caplog.messages.count(said) == 1
    weights = backbone.engine.describe()["weights"]
    assert (weights["format"], weights["layers"]) == ("int4", backbone.int4.layers)
    assert backbone.weight_format == "int4"
    assert backbone.engine.summary().endswith("; weights in int4")


def test_a_layer_whose_shape_the_kernel_refuses_stays_as_it_is() -> None:
    body = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 24)).bfloat16()
    before = body[1].weight.clone()
    (reason,) = quantize_layers(body).kept
    assert reason == "16 does not divide their 24 output channels"
    with pytest.raises(RuntimeError, match="16"):
        private.int4_pack(torch.zeros(24, 32, dtype=torch.int32))
    assert torch.equal(body[1].weight, before)
    assert not is_int4(body[1])
    with pytest.raises(UserError, match=r"Sequential has no linear layer that can be int4.*48 input channels"):
        quantize_layers(nn.Sequential(nn.Linear(48, 32)))


def test_a_kernel_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = private.int4_linear
    monkeypatch.setattr(private, "int4_linear", lambda *arguments: 1.1 * multiply(*arguments))
    with pytest.raises(UserError, match="computes wrong products on this processor"):
        quantize_layers(nn.Sequential(nn.Linear(64, 32).bfloat16()))


def test_int4_weights_do_not_learn(int4_backbone_of: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="weights in int4 can't learn"):
        int4_backbone_of("llama").train()


# --- passes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma3"])
def test_texts_are_those_of_plain_torch_with_the_same_weights_alone_and_together(
    family: str, int4_backbone_of: Callable[..., Any], kernel_rows: list[int]
) -> None:
    backbone = int4_backbone_of(family)
    model = exact(backbone)
    kernel_rows.clear()
    for prompts in ([PROMPTS[0]], PROMPTS[:2], PROMPTS):
        assert_greedy(model, decoded(backbone, prompts))
        assert bool(kernel_rows) == (len(prompts) <= 2), "few rows are multiplied by the kernel, more are not"
        assert set(kernel_rows) <= {1, 2}
        kernel_rows.clear()
    backbone.use_engine(Reference())
    assert_greedy(model, decoded(backbone, PROMPTS[:2]))
    assert not kernel_rows, "the reference engine computes the same by plain torch"
    assert "weights in int4" in backbone.engine.summary()


def test_without_the_component_linear_the_kernel_is_not_used(
    int4_backbone_of: Callable[..., Any], kernel_rows: list[int]
) -> None:
    backbone = int4_backbone_of("llama", Fast(linear=False))
    kernel_rows.clear()
    assert_greedy(exact(backbone), decoded(backbone, PROMPTS[:1]))
    assert not kernel_rows


@pytest.fixture
def adapted(int4_backbone_of: Callable[..., Any]) -> Iterator[Callable[[str], Any]]:
    """``adapted("llama")``: a backbone in int4 with an adapter of its own."""

    def make(family: str) -> Any:
        backbone = int4_backbone_of(family)
        torch.manual_seed(0)
        backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2, alpha=2)))
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3)
        return backbone.eval()

    return make


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_runs_own_adapter_stays_apart_and_is_followed_when_it_changes(
    family: str, adapted: Callable[[str], Any], kernel_rows: list[int]
) -> None:
    backbone = adapted(family)
    model = exact(backbone)
    kernel_rows.clear()
    for _ in range(2):
        rows = decoded(backbone, PROMPTS[:1]) + decoded(backbone, PROMPTS)
        assert_greedy(model, rows)
        with pytest.raises(AssertionError), model.disable_adapter():
            assert_greedy(model, rows)
        with torch.no_grad():
            for name, parameter in [*backbone.named_parameters(), *model.named_parameters()]:
                if "lora_B" in name:
                    parameter.mul_(-1)
    assert set(kernel_rows) == {1}
    factors = [p for name, p in backbone.named_parameters() if "lora_" in name]
    assert factors
    assert all(parameter.dtype is torch.float32 for parameter in factors)


def test_rows_of_several_adapters_are_those_of_each_alone(
    int4_backbone_of: Callable[..., Any], random_adapters: Callable[..., Any], kernel_rows: list[int]
) -> None:
    backbone = int4_backbone_of("llama")
    models: dict[str | None, Any] = {None: exact(backbone)}
    digests: list[str] = []
    for folder in random_adapters("llama")[:2]:
        digests.append(backbone.engine.add_adapter(folder))
        if len(digests) == 1:
            assert backbone.engine.sole_adapter == digests[0]
        models[digests[-1]] = exact(backbone)
        models[digests[-1]].set_adapter(digests[-1])
        kernel_rows.clear()
        assert_greedy(models[digests[-1]], decoded(backbone, PROMPTS[:1], digests[-1:]))
        assert set(kernel_rows) == {1}
    for adapters in (digests, [digests[1], None], [*digests, None, digests[0]]):
        kernel_rows.clear()
        for row in decoded(backbone, PROMPTS[: len(adapters)], adapters):
            assert_greedy(models[row.adapter], [row])
        assert set(kernel_rows) <= {1, 2}
        assert len(adapters) > 2 or 2 in kernel_rows
    for digest in digests:
        backbone.engine.remove_adapter(digest)
    assert_greedy(models[None], decoded(backbone, PROMPTS[:1]))
    assert OWN not in getattr(backbone.peft, "peft_config", {})
