"""The fast engine gives what the reference gives: a family × a component off × a number format × what is computed.

In float32 they are equal but for rounding; in bfloat16 the fast engine is about as near to float32 as the reference.
That is a mean over tensors and models: how near one of them is depends on which of its roundings happen to cancel.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from statistics import geometric_mean
from typing import Any

import pytest
import torch
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Lora
from gptask.data.datamodule import collate
from gptask.model.backbone.backbone import GPTBackbone
from gptask.model.backbone.locate import BackboneOrigin
from gptask.model.backbone.scratch import train_tokenizer
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine.activation_cache import cacheable_layers, capture_or_resume
from gptask.model.engine.interface import DecodingRow
from gptask.plugins.generation_options import GenerationOptions
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.tiny_models import TEXT, tiny_config

FAMILIES = ("gpt2", "llama", "qwen2", "gemma3")
COMPONENTS = tuple(f.name for f in fields(Fast))
SHARED = [7, 3, 90, 41, 12, 5]
ITEMS = [  # of different lengths, longer and shorter than Gemma's tiny window of 8; some begin alike
    {"ids": [*SHARED, *range(20, 20 + prompt)], "target": list(range(40, 40 + target)), "label": None, "extra": None}
    for prompt, target in [(1, 4), (14, 3), (5, 9)]
] + [{"ids": list(range(60, 63)), "target": [70, 71], "label": None, "extra": None}]


SEEDS = range(4)  # of the models in bfloat16


@pytest.fixture(scope="module")
def adapted() -> Callable[..., Any]:
    """``adapted("llama", torch.float32)``: a backbone with adapters, not zero, on its upper layer."""

    @cache
    def make(family: str, dtype: torch.dtype, seed: int = 0) -> Any:
        tokenizer = train_tokenizer([TEXT] * 3, 320)
        torch.manual_seed(seed)
        config = tiny_config(family, len(tokenizer), context=64)
        config.initializer_range = 0.1
        model = AutoModelForCausalLM.from_config(config).eval().to(dtype)
        backbone = GPTBackbone(model, tokenizer, BackboneOrigin("", "scratch", ""))
        backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2, top=0.5)))
        for module in backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # GPT-2 has some, whose random draws no two engines share
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1)
        return backbone

    return make


def train_step(backbone: Any) -> list[Tensor]:
    """Loss and gradients of the adapters; with the states of the lower layer from the cache where there is one."""
    backbone.train()
    batch = collate(ITEMS)
    needed = batch.predicting()
    states = None
    for _ in range(2 if (lower := cacheable_layers(backbone)) else 0):
        hidden, states = capture_or_resume(backbone, lower, batch, states, needed)
    if not lower:
        hidden = backbone.hidden(batch.input_ids, batch.lengths, needed)
    loss = backbone.token_nll(hidden[needed], batch.input_ids.roll(-1, 1)[needed]).mean()
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, learning)]


@torch.no_grad()
def score(backbone: Any) -> list[Tensor]:
    """Hidden states of the real tokens, and the log-probabilities of the targets."""
    backbone.eval()
    batch = collate(ITEMS)
    hidden = backbone.hidden(batch.input_ids, batch.lengths)
    needed = batch.predicting()
    nats = backbone.token_nll(hidden[needed], batch.input_ids.roll(-1, 1)[needed])
    return [*(row[:length] for row, length in zip(hidden, batch.lengths, strict=True)), -nats]


def decode(backbone: Any, texts: list[list[int]] | None = None) -> tuple[list[list[int]], list[Tensor]]:
    """Greedy texts, or the given ones, and the log-probabilities of their tokens; two rows enter two steps later."""
    backbone.eval()
    rows = [DecodingRow(item["ids"], 8, GenerationOptions()) for item in ITEMS]
    batch = backbone.engine.decoding_batch()
    given = {row: [*text, 0] for row, text in zip(rows, texts, strict=True)} if texts else {}
    with pytest.MonkeyPatch.context() as patch:
        if given:
            patch.setattr(
                "gptask.model.engine.sampling.Sampler._choose",
                lambda _, some, scores: torch.tensor([[given[row][len(row.new_ids)]] for row in some]),
            )
        batch.admit(rows[:2])
        batch.step()
        batch.step()
        batch.admit(rows[2:])
        while batch.rows:
            batch.step()
    return [row.new_ids for row in rows], [torch.tensor(row.log_probabilities) for row in rows]


@pytest.fixture(scope="module")
def reference(adapted: Callable[..., Any]) -> Callable[..., Any]:
    """``reference(train_step, "llama", torch.float32)``: the result of the reference engine."""

    @cache
    def compute(action: Callable[[Any], Any], family: str, dtype: torch.dtype, seed: int = 0) -> Any:
        backbone = adapted(family, dtype, seed)
        backbone.use_engine(Reference())
        if action is decode and dtype is not torch.float32:
            return decode(backbone, compute(decode, family, torch.float32, seed)[0])
        return action(backbone)

    return compute


def distance(got: list[Tensor], expected: list[Tensor]) -> float:
    """The norm of the difference, relative to that of what is expected."""
    pairs = [(g.double().flatten(), e.double().flatten()) for g, e in zip(got, expected, strict=True)]
    got_all, expected_all = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return float((got_all - expected_all).norm() / expected_all.norm())


def error_ratios(got: list[Tensor], plain: list[Tensor], exact: list[Tensor]) -> list[float]:
    """For each tensor, the distance of what the engine ``got`` from the ``exact``, relative to that of ``plain``."""
    tensors = [(g, p, e) for g, p, e in zip(got, plain, exact, strict=True) if distance([p], [e]) > 0]
    return [max(distance([g], [e]), 1e-9) / distance([p], [e]) for g, p, e in tensors]


@pytest.mark.parametrize("off", [None, *COMPONENTS])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_the_engines_are_equal(family, off, adapted, reference):
    expected = {action: reference(action, family, torch.float32) for action in (train_step, score, decode)}
    backbone = adapted(family, torch.float32)
    backbone.use_engine(Fast(**({off: False} if off else {})))
    assert off is None or backbone.engine.off[off] == "switched off"
    for action in (train_step, score):
        for got, wanted in zip(action(backbone), expected[action], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    texts, log_probabilities = decode(backbone)
    expected_texts, expected_log_probabilities = expected[decode]
    assert texts == expected_texts
    assert all(texts)
    assert distance(log_probabilities, expected_log_probabilities) <= 1e-4


@pytest.mark.parametrize("off", [None, *COMPONENTS])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_the_fast_engine_is_as_near_to_float32_as_the_reference(family, off, adapted, reference):
    ratios: dict[str, list[float]] = {"train_step": [], "score": [], "decode": []}
    for seed in SEEDS:
        exact, plain = (
            {action: reference(action, family, dtype, seed) for action in (train_step, score, decode)}
            for dtype in (torch.float32, torch.bfloat16)
        )
        backbone = adapted(family, torch.bfloat16, seed)
        backbone.use_engine(Fast(**({off: False} if off else {})))
        for action in (train_step, score):
            ratios[action.__name__] += error_ratios(action(backbone), plain[action], exact[action])
        texts, log_probabilities = exact[decode]
        ratios["decode"] += error_ratios(decode(backbone, texts)[1], plain[decode][1], log_probabilities)
    for name, of_tensors in ratios.items():
        assert geometric_mean(of_tensors) <= 1.5, name
