"""The LightningModule hands a head the states that it needs, and computes no others."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from gptask import Head
from gptask.data.datamodule import collate
from gptask.model.backbone.backbone import GPTBackbone
from gptask.training.module import GPTModule
from gptask.training.task_runtime import TaskRuntime

BATCH = collate([{"ids": [5, 6, 7], "target": None, "label": None, "extra": None}] * 2)


class RecordingHead(Head):
    """Keeps what `predict` is given."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.given = []

    def loss(self, hidden, batch):
        return hidden.mean()

    def predict(self, hidden, batch):
        self.given.append(hidden)
        return [0.0, 1.0]


class DecodingHead(RecordingHead):
    decodes = True


@pytest.fixture
def states(monkeypatch):
    """All states that backbones compute, in order."""
    computed, hidden = [], GPTBackbone.hidden
    monkeypatch.setattr(GPTBackbone, "hidden", lambda *args: computed.append(hidden(*args)) or computed[-1])
    return computed


@pytest.mark.parametrize("cls", [RecordingHead, DecodingHead])
def test_predictions_get_the_states_of_the_loss_unless_the_head_decodes(cls, backbone_of, states, monkeypatch):
    backbone = backbone_of("llama")
    head = cls(backbone)
    runtime = TaskRuntime("task", None, head, None)
    module = GPTModule(backbone, [runtime])
    monkeypatch.setattr(module, "log", lambda *args, **options: None)  # there is no trainer
    states.clear()  # those of loading
    module.validation_step(BATCH, 0)
    assert len(states) == 1
    assert head.given[0] is (None if head.decodes else states[0])
    module.test_step(BATCH, 0)
    assert len(states) == (1 if head.decodes else 2)
    assert head.given[1] is (None if head.decodes else states[1])
    assert runtime.outputs == {0: 0.0, 1: 1.0}


class LengthHead(Head):
    """Its loss is the mean length of the sequences, and what it says of each is its length."""

    def loss(self, hidden, batch):
        return batch.lengths.float().mean() + 0 * hidden.mean()

    def predict(self, hidden, batch):
        return batch.lengths.tolist()


def test_a_batch_that_is_validated_in_parts_has_the_loss_and_the_outputs_of_the_whole(backbone_of, memory, caplog):
    backbone = backbone_of("llama")
    lengths = [9, 7, 5, 2, 1]
    items = [{"ids": [5] * n, "target": None, "label": None, "extra": None, "row": 9 - n} for n in lengths]
    runtime = TaskRuntime("task", None, LengthHead(backbone), None)
    module = GPTModule(backbone, [runtime])
    module.on_validation_epoch_end = lambda: None
    loader = torch.utils.data.DataLoader([collate(items)], batch_size=None)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    memory.tokens = 14
    with caplog.at_level(logging.WARNING, "gptask"):
        (logged,) = trainer.validate(module, loader, verbose=False)
    assert logged["val/loss"] == pytest.approx(sum(lengths) / len(lengths))
    assert runtime.outputs == {9 - n: n for n in lengths}
    assert "5 rows of up to 9 tokens ran out of memory" in caplog.text
    memory.tokens, memory.error = 1, lambda: RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.validate(module, loader, verbose=False)
