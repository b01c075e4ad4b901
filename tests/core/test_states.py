"""Kept hidden states: read back exactly, computed once, keyed by what they depend on."""

import pytest
import torch
from gptask import Config, assembly, states
from gptask.config import DType, Head, Limit, Pretrained, Sample
from gptask.data.module import collate
from gptask.training import assemble, train
from gptask_tasks.qa import Answer, QuestionAnswering
from gptask_tasks.sentiment import Sentiment


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))


def config(tiny, task, outputs="outputs", seed=0):
    return Config(
        task=task,
        backbone=Pretrained(source=str(tiny("llama", 256, seed)), dtype=DType.float32),
        tuning=Head(),
        data=Sample(limit=Limit(train=8, validation=4, test=4), max_tokens=256, batch_size=4),
        trainer={"max_epochs": 3, "accelerator": "cpu"},
        outputs=str(outputs),
        probe=False,
    )


def kept(tiny, task, seed=0):
    options = config(tiny, task, seed=seed)
    module, data = assemble(options, assembly.corpora(options))
    items = data.items("train")
    batch = collate([items[row] | {"row": row} for row in (2, 0, 5)])
    return module, module.seats[0].states["train"], batch


def test_states_of_every_real_token_are_read_back(tiny):
    module, held, batch = kept(tiny, QuestionAnswering(answer=Answer.span, stride=8))
    expected = module.backbone.hidden(batch.input_ids, batch.lengths)
    assert torch.equal(held.hidden(batch), expected)
    module.backbone.hidden = None  # from here on nothing may be computed
    real = torch.arange(expected.shape[1])[None] < batch.lengths[:, None]
    assert torch.equal(held.hidden(batch)[real], expected[real])
    assert torch.isfinite(module.head.loss(held.hidden(batch), batch))


def test_a_head_that_reads_the_last_token_keeps_one_state_an_item(tiny):
    module, held, batch = kept(tiny, Sentiment())
    assert held.table.shape == (8, module.backbone.channels)
    expected = module.head.logits(module.backbone.hidden(batch.input_ids), batch)
    held.hidden(batch)
    module.backbone.hidden = None
    assert torch.allclose(module.head.logits(held.hidden(batch), batch), expected)


def test_a_batch_with_one_new_item_is_computed(tiny):
    module, held, batch = kept(tiny, Sentiment())
    held.hidden(batch)
    held.done[batch.rows[1]] = False
    calls = []
    compute = module.backbone.hidden
    module.backbone.hidden = lambda *inputs: calls.append(1) or compute(*inputs)
    held.hidden(batch)
    held.hidden(batch)
    assert len(calls) == 1


def test_another_backbone_has_its_own_states(tiny):
    _, held, batch = kept(tiny, Sentiment())
    held.hidden(batch)
    assert kept(tiny, Sentiment())[1].done.sum() == 3, "the same backbone finds them again"
    assert not kept(tiny, Sentiment(), seed=1)[1].done.any()


def test_the_second_run_computes_no_training_state(tiny, tmp_path, monkeypatch):
    first = train(config(tiny, Sentiment(), tmp_path / "a"))
    computed = []
    monkeypatch.setattr(states.States, "_keep", lambda *_: computed.append(1))
    second = train(config(tiny, Sentiment(), tmp_path / "b"))
    assert not computed
    assert torch.equal(first.head.linear.weight, second.head.linear.weight)


def test_a_disk_with_too_little_room_is_told(tiny, monkeypatch, caplog):
    monkeypatch.setattr(states.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    assert kept(tiny, Sentiment())[1] is None
    assert "every epoch computes them again" in caplog.text
