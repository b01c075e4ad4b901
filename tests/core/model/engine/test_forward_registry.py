"""One registry replaces forward functions: it puts back what was there, and lives with what others replace."""

from copy import deepcopy

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Lora
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine.forward_registry import original_forward, replace_forward, replaced_by, restore_forwards
from gptask.runs.run import load_run
from gptask_tasks.sentiment import Sentiment
from torch import nn


class Counting(ModelHook):
    """accelerate's form of a hook, which replaces a module's forward function."""

    def __init__(self):
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


def doubled(module, x):
    return 2 * original_forward(module)(x)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


X = torch.ones(1, 3)


def test_a_replaced_forward_is_put_back(linear):
    expected = linear(X)
    assert replace_forward(linear, doubled)
    assert torch.equal(linear(X), 2 * expected)
    assert replace_forward(linear, doubled)  # once more: no second layer
    assert torch.equal(linear(X), 2 * expected)
    restore_forwards(linear)
    assert torch.equal(linear(X), expected)
    assert not {"forward", "engine_forward"} & vars(linear).keys()


def test_a_copy_of_the_module_computes_with_its_own_weights(linear):
    replace_forward(linear, doubled)
    copy = deepcopy(linear)
    with torch.no_grad():
        copy.weight.zero_()
        copy.bias.fill_(1)
    assert torch.equal(copy(X), torch.full((1, 2), 2.0))
    restore_forwards(copy)
    assert torch.equal(copy(X), torch.ones(1, 2))
    assert replaced_by(linear) is doubled


def test_what_was_there_before_is_not_replaced_but_wrapped_and_comes_back(linear):
    expected, hook = linear(X), Counting()
    add_hook_to_module(linear, hook)
    theirs = vars(linear)["forward"]
    assert not replace_forward(linear, lambda module, x: x)  # it would leave their hook out
    assert vars(linear)["forward"] is theirs
    assert replace_forward(linear, doubled, wraps=True)
    assert torch.equal(linear(X), 2 * expected)
    assert hook.calls == 1
    restore_forwards(linear)
    assert vars(linear)["forward"] is theirs
    assert torch.equal(linear(X), expected)


def test_what_wraps_the_engine_later_stays(linear):
    expected, hook = linear(X), Counting()
    replace_forward(linear, doubled)
    add_hook_to_module(linear, hook)
    assert torch.equal(linear(X), 2 * expected)
    restore_forwards(linear)
    assert torch.equal(linear(X), expected)
    assert hook.calls == 2
    assert replace_forward(linear, doubled)  # inside of their wrapper
    assert torch.equal(linear(X), 2 * expected)
    assert hook.calls == 3
    restore_forwards(linear)
    remove_hook_from_module(linear)
    assert torch.equal(linear(X), expected)


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_of_accelerate_on_every_layer_live_with_the_engine(when, backbone_of):
    backbone = backbone_of("llama")
    ids, lengths = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 0]]), torch.tensor([4, 3])
    backbone.use_engine(Reference())
    backbone.eval()
    with torch.no_grad():
        expected = backbone.hidden(ids)
    hooks = []
    if when == "after":
        backbone.use_engine(Fast())
    for module in backbone.peft.modules():
        if not list(module.children()):
            hooks.append(Counting())
            add_hook_to_module(module, hooks[-1])
    if when == "before":
        backbone.use_engine(Fast())
    for _ in range(2):
        with torch.no_grad():
            got = backbone.hidden(ids, lengths)
        for row, row_expected, length in zip(got, expected, lengths, strict=True):
            torch.testing.assert_close(row[:length], row_expected[:length], rtol=1e-4, atol=1e-5)
        assert sum(hook.calls for hook in hooks) > 20
        backbone.use_engine(Fast())
    backbone.use_engine(Reference())
    with torch.no_grad():
        torch.testing.assert_close(backbone.hidden(ids), expected)


def test_the_reference_leaves_nothing_of_the_fast_engine(backbone_of):
    plain = backbone_of("llama")
    plain.use_engine(Reference())
    backbone = backbone_of("llama")
    backbone.set_model(apply_tuning(backbone.peft, Lora(rank=2)))
    assert any("forward" in vars(module) for module in backbone.modules())
    backbone.use_engine(Reference())
    assert not any({"forward", "engine_forward"} & vars(module).keys() for module in backbone.modules())
    assert backbone.model.config._attn_implementation == plain.model.config._attn_implementation == "sdpa"


def test_a_loaded_run_has_each_forward_replaced_once(random_run):
    loaded = load_run(random_run(Sentiment(labels=["bad", "good"]), "llama", Lora(rank=2)).folder)
    replaced = [module for module in loaded.backbone.modules() if replaced_by(module)]
    assert replaced
    for module in replaced:
        assert vars(module)["engine_forward"].before is None  # not a function of the engine
