"""A backbone in int4: machines without it, and the change of perplexity, which is measured once."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gptask import Pretrained, Scratch, UserError
from gptask.config.schemas import DType
from gptask.data import cache
from gptask.model.backbone import quantizing
from gptask.model.backbone.backbone import load_or_build_backbone, number_format
from gptask.model.engine import private

from tests.support.tiny_models import TEXT


@pytest.mark.parametrize(
    ("module", "name", "value", "message"),
    [
        (torch.cuda, "is_available", True, r"on this machine's GPU: leave dtype out, or hide the GPU"),
        (private, "has_int4_kernel", False, r"torch \S+ has no int4 products for CPUs: leave dtype out"),
        (
            private,
            "cpu_computes_bfloat16",
            False,
            r"needs a processor that multiplies in bfloat16 \(AVX512-BF16 or AMX\)",
        ),
    ],
)
def test_a_machine_without_it_is_told_before_anything_is_loaded(
    module: Any, name: str, value: bool, message: str, needs_int4: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, lambda: value)
    with pytest.raises(UserError, match=message):
        load_or_build_backbone(Pretrained(source="nowhere"), None, list, dtype=DType.int4)
    assert number_format(DType.bfloat16) is torch.bfloat16


def test_torch_without_the_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "aten", object())
    assert not private.has_int4_kernel()


def test_the_perplexity_is_measured_once_for_the_same_weights(
    int4_backbone_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path))
    caplog.set_level(logging.INFO, "gptask")
    measure, measured = quantizing._nats, []
    monkeypatch.setattr(quantizing, "_nats", lambda backbone: measured.append(measure(backbone)) or measured[-1])
    change = int4_backbone_of("llama").int4.perplexity_change
    assert len(measured) == 2
    assert change == pytest.approx(torch.tensor(measured[1] - measured[0]).expm1().item(), abs=1e-4)
    assert measured[0] != measured[1]
    assert int4_backbone_of("llama").int4.perplexity_change == change
    assert len(measured) == 2
    texts = [text for text in caplog.messages if "the perplexity of local folder on a short English text" in text]
    assert len(texts) == 2, "known or not, it is told"
    int4_backbone_of("llama", seed=1)
    assert len(measured) == 4, "other weights"
    (entry,) = {e.paths[0].parent.name for e in cache.entries() if e.kind == "int4"}
    assert entry == "int4"


def test_a_rise_of_more_than_two_percent_is_a_warning(
    int4_backbone_of: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path))
    for seed, rise in ((2, 0.01), (3, 0.03), (4, float("nan"))):
        values = iter([5.0, 5.0 + rise])
        monkeypatch.setattr(quantizing, "_nats", lambda backbone, values=values: next(values))
        caplog.clear()
        int4_backbone_of("llama", seed=seed)
        warned = [r for r in caplog.records if "evaluate with dtype=int4 before you rely on it" in r.message]
        assert len(warned) == (rise != 0.01)
        assert all(record.levelname == "WARNING" for record in warned)


def test_a_backbone_from_scratch_can_be_in_int4(needs_int4: None) -> None:
    options = Scratch(n_layer=1, n_head=2, n_embd=32, context=64, vocab_size=300)
    backbone = load_or_build_backbone(options, None, lambda: [TEXT] * 3, dtype=DType.int4)
    assert backbone.weight_format == "int4"
    assert (backbone.int4.layers, backbone.int4.kept) == (4, {})


@pytest.mark.parametrize("make", [lambda: Pretrained("x", dtype=DType.int4), lambda: Scratch(dtype=DType.int4)])
def test_no_backbone_is_in_int4_by_itself(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r"backbone\.dtype=int4: weights in int4 can't learn.*by dtype=int4"):
        make()
