"""Options left open by the config are chosen from the data, the backbone and the heads."""

import logging
from types import SimpleNamespace

import pytest
import torch
from gptask import train
from gptask.config.schemas import AdamW, Full, Limit, Lora, Sample
from gptask.model.backbone import backbone as backbone_module
from gptask.training import builder
from gptask.training.resolve import resolve_schedule
from gptask.training.train import build_module
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

from tests.support.configs import small_config


@pytest.mark.parametrize(
    ("task", "tuning", "optimizer", "expected"),
    [
        (Sentiment(), Lora(rank=2), AdamW(), (5.5e-4, 1.0)),
        (TokenTagging(), Lora(rank=2), AdamW(), (5.5e-4, 0.5)),
        (Translation(), Lora(rank=2), AdamW(), (1.6e-3, 1.0)),
        (Translation(), Lora(rank=2, lr=1e-4, top=0.5), AdamW(), (1e-4, 0.5)),
        (Translation(), Lora(rank=2, lr=1e-4), AdamW(lr=0.5), (0.5, 1.0)),
        (Translation(), Full(), AdamW(), (1e-3, None)),  # random weights
        (Translation(), Full(lr=5e-5), AdamW(), (5e-5, None)),
    ],
)
def test_head_and_backbone_choose_learning_rate_and_adapter_share(task, tuning, optimizer, expected, tmp_path):
    settings = small_config(tmp_path, task=task, tuning=tuning, optimizer=optimizer)
    module, _ = build_module(settings, builder.build_corpora(settings))
    assert (module.optimizer.lr, getattr(settings.tuning, "top", None)) == expected


@pytest.mark.parametrize(
    ("options", "train", "size", "expected"),
    [
        ({}, 24, 8, (8, 2)),  # 3 batches an epoch: most epochs, two batches a step
        ({}, 70, 1, (6, 16)),
        ({}, 150, 1, (3, 16)),
        ({}, 70, 32, (8, 1)),
        ({"max_epochs": None}, 250, 1, (2, 16)),
        ({"max_epochs": 5, "accumulate_grad_batches": 1}, 70, 1, (5, 1)),
        ({"max_steps": 9}, 70, 1, (None, 16)),
    ],
)
def test_small_data_gets_more_epochs_and_a_step_takes_several_small_batches(options, train, size, expected, tmp_path):
    data = Sample(limit=Limit(train=train, validation=8, test=8), batch_size=size)
    settings = small_config(tmp_path, data=data)
    _, data_module = build_module(settings, builder.build_corpora(settings))
    resolved = resolve_schedule(options, data_module)
    assert (resolved.get("max_epochs"), resolved["accumulate_grad_batches"]) == expected


def test_a_stream_of_unknown_length_gets_two_epochs():
    stream = SimpleNamespace(train_dataloader=lambda: iter(()))
    assert resolve_schedule({"max_epochs": None}, stream) == {"max_epochs": 2, "accumulate_grad_batches": 1}


def test_a_run_writes_the_chosen_epochs_and_accumulation_into_its_config(tmp_path):
    options = {"accelerator": "cpu", "precision": "32-true"}
    run = train(small_config(tmp_path, trainer=options))
    assert run.config["trainer"] == {**options, "max_epochs": 8, "accumulate_grad_batches": 2}


def test_the_log_names_what_was_chosen_and_why(caplog):
    stream = SimpleNamespace(train_dataloader=lambda: range(100))
    with caplog.at_level(logging.INFO, "gptask"):
        resolve_schedule({"accumulate_grad_batches": 1}, stream)
    assert caplog.messages == ["chosen for this data: trainer.max_epochs=4 (100 batches per epoch)"]


@pytest.mark.parametrize("fast", [True, False])
def test_full_tuning_computes_in_bfloat16_where_the_processor_does(fast, monkeypatch):
    monkeypatch.setattr(backbone_module, "number_format", lambda _: torch.bfloat16 if fast else torch.float32)
    stream = SimpleNamespace(train_dataloader=lambda: iter(()))
    assert resolve_schedule({}, stream, full=True).get("precision") == ("bf16-mixed" if fast else None)
    assert resolve_schedule({"precision": "32-true"}, stream, full=True)["precision"] == "32-true"
    assert "precision" not in resolve_schedule({}, stream)
