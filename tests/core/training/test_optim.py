"""Optimizers decay only matrices; schedules have the shapes of their names."""

import math

import pytest
import torch
from gptask.config.schemas import SGD, AdamW, Lora, Schedule, ScheduleName
from gptask.errors import UserError
from gptask.model.backbone.tuning import apply_tuning
from gptask.training.optim import build_optimizer, schedule_factor


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_all_parameters_but_norms_and_biases_are_decayed(family, backbone_of):
    backbone = backbone_of(family)
    groups = build_optimizer(AdamW(lr=1e-3, weight_decay=0.1), backbone).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(backbone.parameters()))
    for name, parameter in backbone.named_parameters():
        not_decayed = name.endswith(".bias") or ".ln_" in name or "norm" in name
        assert decay[id(parameter)] == (0.0 if not_decayed else 0.1), name


def test_the_optimizer_gets_only_trainable_parameters_and_decays_lora(backbone_of):
    model = apply_tuning(backbone_of("llama").peft, Lora(rank=2))
    (group,) = build_optimizer(AdamW(lr=1e-3, weight_decay=0.1), model).param_groups
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == len([p for p in model.parameters() if p.requires_grad])


def test_options_reach_the_optimizers():
    layer = torch.nn.Linear(2, 2)
    adam = build_optimizer(AdamW(lr=0.5, betas=[0.8, 0.9], eps=1e-3), layer)
    assert isinstance(adam, torch.optim.AdamW)
    assert adam.defaults["fused"]
    assert (adam.defaults["lr"], adam.defaults["betas"], adam.defaults["eps"]) == (0.5, (0.8, 0.9), 1e-3)
    sgd = build_optimizer(SGD(lr=0.5, momentum=0.7, nesterov=True), layer)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.5, 0.7, True)


@pytest.mark.parametrize(
    "options",
    [
        AdamW(lr=0),
        AdamW(lr=1e-3, weight_decay=-1),
        AdamW(lr=1e-3, betas=[0.9]),
        AdamW(lr=1e-3, betas=[0.9, 1.5]),
        SGD(momentum=-1),
        SGD(momentum=0, nesterov=True),
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="optimizer"):
        build_optimizer(options, torch.nn.Linear(2, 2))


def test_nothing_to_train_is_an_error():
    with pytest.raises(UserError, match="nothing to train"):
        build_optimizer(AdamW(lr=1e-3), torch.nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize(
    ("name", "half", "end"),
    [(ScheduleName.linear, 0.5, 0.0), (ScheduleName.cosine, 0.5, 0.0), (ScheduleName.constant, 1.0, 1.0)],
)
def test_schedules_warm_up_then_fall(name, half, end):
    factor = schedule_factor(Schedule(name, warmup=0.2), total=100)
    warmup = [factor(step) for step in range(20)]
    assert 0 < warmup[0] < 0.1
    assert warmup == sorted(warmup)
    assert warmup[-1] < 1
    assert factor(20) == 1.0
    assert factor(60) == pytest.approx(half)
    assert factor(100) == pytest.approx(end)
    assert factor(1000) == pytest.approx(end)


def test_cosine_is_half_a_cosine():
    factor = schedule_factor(Schedule(ScheduleName.cosine, warmup=0), total=100)
    assert factor(25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_warmup_is_a_share_below_one_and_steps_from_one_on():
    assert schedule_factor(Schedule(warmup=0.5), 40)(20) == schedule_factor(Schedule(warmup=20), 40)(20) == 1.0
    assert schedule_factor(Schedule(warmup=0.5), 40)(19) == schedule_factor(Schedule(warmup=20), 40)(19) < 1.0
    with pytest.raises(UserError, match=r"schedule\.warmup"):
        schedule_factor(Schedule(warmup=-1), 10)


def test_a_training_without_end_needs_a_constant_schedule():
    with pytest.raises(UserError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        schedule_factor(Schedule(), math.inf)
    assert schedule_factor(Schedule(ScheduleName.constant, warmup=2), math.inf)(5) == 1.0
