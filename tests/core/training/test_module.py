"""The LightningModule hands a head the states that it needs, and computes no others."""

import logging
from types import SimpleNamespace

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
        trainer.validate(module, loader, verbose=False)
    assert runtime.mean_loss() == pytest.approx(sum(lengths) / len(lengths))
    assert runtime.outputs == {9 - n: n for n in lengths}
    assert "5 rows of up to 9 tokens ran out of memory" in caplog.text
    memory.tokens, memory.error = 1, lambda: RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.validate(module, loader, verbose=False)


@pytest.mark.parametrize(
    ("of_second", "losses"),
    [
        (({2: "c"}, [(1, 5.0)]), [(2, 1.0), (1, 5.0)]),
        (({0: "a", 1: "b"}, [(2, 1.0)]), [(2, 1.0)]),  # a plugin's data module lets every process score everything
    ],
)
def test_outputs_of_all_processes_are_gathered_and_each_example_counts_once(
    of_second, losses, backbone_of, monkeypatch
):
    runtime = TaskRuntime("task", None, RecordingHead(backbone_of("llama")), None)
    runtime.outputs, runtime.losses = {0: "a", 1: "b"}, [(2, torch.tensor(1.0))]
    module = GPTModule(runtime.head.backbone, [runtime])
    module._trainer = SimpleNamespace(world_size=2, is_global_zero=True)
    monkeypatch.setattr(
        torch.distributed, "gather_object", lambda own, parts, dst: parts.__setitem__(slice(2), [own, of_second])
    )
    module.on_test_epoch_end()
    assert runtime.outputs == {0: "a", 1: "b"} | of_second[0]
    assert [(rows, float(loss)) for rows, loss in runtime.losses] == losses


def test_a_process_without_anything_to_score_computes_nothing(backbone_of, states):
    runtime = TaskRuntime("task", None, RecordingHead(backbone_of("llama")), None)
    module = GPTModule(runtime.head.backbone, [runtime])
    states.clear()
    module.validation_step(collate([]), 0)
    module.test_step(collate([]), 0)
    assert (states, runtime.outputs, runtime.losses) == ([], {}, [])
