"""Integrated gradients against Captum's, on a model with an adapter beside others, and where there is little memory."""

import numpy as np
import pytest
import torch
from gptask.analysis.explain import integrated_gradients as module
from gptask.analysis.explain.integrated_gradients import input_baseline, integrated_gradients, mean_embedding
from gptask.config.engine import Fast, Reference

IDS = [5, 9, 17, 3, 21, 8, 30, 11]
IS_INPUT = np.array([False, True, True, True, True, True, True, False])


def values_of(backbone, needed=None):
    """Two numbers that depend on the last state, as objectives (B, 2) of embeddings."""
    return lambda embeds: backbone.hidden(embeds=embeds, needed=needed)[:, -1, :2]


@pytest.mark.parametrize("engine", [Fast(), Reference()], ids=["fast", "reference"])
def test_the_parts_are_those_of_captum(engine, adapted_backbone_of):
    captum = pytest.importorskip("captum.attr", reason="captum is not installed: pip install captum")
    backbone = adapted_backbone_of("llama").eval()
    backbone.use_engine(engine)
    values, neutral_C = values_of(backbone), mean_embedding(backbone)
    found = integrated_gradients(backbone, values, IDS, IS_INPUT, neutral_C, steps=16)
    item_1TC = backbone.model.get_input_embeddings()(torch.tensor([IDS])).detach()
    baseline_1TC = input_baseline(item_1TC, IS_INPUT, neutral_C)
    theirs = captum.IntegratedGradients(lambda embeds, number: values(embeds)[:, number])
    for number in range(2):
        parts, delta = theirs.attribute(
            item_1TC, baseline_1TC, additional_forward_args=(number,), n_steps=16, return_convergence_delta=True
        )
        np.testing.assert_allclose(found.parts[number], parts.sum(-1)[0].detach(), rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            difference = (values(item_1TC) - values(baseline_1TC))[0, number]
        expected = float(delta.abs() / max(abs(difference), module.MIN_DIFFERENCE))
        assert found.errors[number] == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_tokens_of_the_prompt_have_no_part(adapted_backbone_of):
    backbone = adapted_backbone_of("llama").eval()
    found = integrated_gradients(backbone, values_of(backbone), IDS, IS_INPUT, mean_embedding(backbone), steps=4)
    assert (found.parts[:, ~IS_INPUT] == 0).all()
    assert found.parts[:, IS_INPUT].any(1).all()


def test_the_baseline_keeps_the_prompt_and_levels_the_input():
    item_1TC, neutral_C = torch.arange(12.0).view(1, 4, 3), torch.tensor([1.0, 0.0, -1.0])
    baseline_1TC = input_baseline(item_1TC, np.array([False, True, True, False]), neutral_C)
    expected_C = (item_1TC[0, 1] + item_1TC[0, 2] + neutral_C) / 3
    torch.testing.assert_close(baseline_1TC[0], torch.stack([item_1TC[0, 0], expected_C, expected_C, item_1TC[0, 3]]))


def test_the_neutral_vector_is_what_the_model_makes_of_its_vocabulary(backbone_of, monkeypatch):
    monkeypatch.setattr(module, "EMBEDDINGS_AT_ONCE", 7)
    backbone = backbone_of("gemma3")  # its embeddings are scaled
    embeddings = backbone.model.get_input_embeddings()
    with torch.no_grad():
        expected_C = embeddings(torch.arange(len(embeddings.weight))).mean(0)
    torch.testing.assert_close(mean_embedding(backbone), expected_C, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", [Fast(), Reference()], ids=["fast", "reference"])
def test_an_adapter_beside_the_model_counts_in_long_rows_too(engine, backbone_of, random_adapters, monkeypatch):
    backbone = backbone_of("llama").eval()
    backbone.use_engine(engine)
    view = backbone.with_adapter(backbone.engine.add_adapter(random_adapters("llama")[0]))
    parts = {}
    for name, model, tokens in (("bare", backbone, 512), ("short", view, 512), ("long", view, 4)):
        monkeypatch.setattr(module, "PASS_TOKENS", tokens)
        parts[name] = integrated_gradients(model, values_of(model), IDS, IS_INPUT, mean_embedding(model), steps=4).parts
    np.testing.assert_allclose(parts["long"], parts["short"], rtol=1e-3, atol=1e-5)
    assert not np.allclose(parts["bare"], parts["short"], rtol=1e-2)


def test_a_long_row_keeps_little_of_its_layers(backbone_of, monkeypatch):
    backbone = backbone_of("llama", layers=6).eval()
    kept = {}
    for tokens in (512, 4):
        monkeypatch.setattr(module, "PASS_TOKENS", tokens)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, module.frozen(backbone), module.checkpointed(backbone, tokens < len(IDS)):
            embeds = backbone.model.get_input_embeddings()(torch.tensor([IDS])).detach().requires_grad_()
            values_of(backbone)(embeds)
        kept[tokens] = sum(sizes)
    assert kept[4] < kept[512] / 3
