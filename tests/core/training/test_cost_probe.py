"""The cost probe leaves no trace in weights, gradients or random state."""

import dataclasses

import pytorch_lightning as pl
import torch
from gptask.config.schemas import AdamW, Sample, Schedule, Scratch
from gptask.model.backbone.backbone import load_or_build_backbone
from gptask.training import builder
from gptask.training.cost_probe import probe_cost
from gptask.training.module import GPTModule
from gptask.training.task_runtime import TaskRuntime
from gptask_tasks.sentiment import Sentiment


def test_the_probe_estimates_the_cost_and_leaves_weights_gradients_and_random_state_unchanged(
    tmp_path, monkeypatch, caplog
):
    task, options = Sentiment(), Sample(max_tokens=64)
    corpus = builder.build_corpus(task, options, 13)
    task = dataclasses.replace(task, **task.prepare(corpus.split("train")))
    shape = Scratch(n_layer=1, n_head=2, n_embd=16, context=64, vocab_size=300, dropout=0.5)
    backbone = load_or_build_backbone(shape, None, lambda: builder.training_texts(task, corpus))
    data = builder.build_data(task, corpus, options, backbone, 13)
    runtime = TaskRuntime("sentiment", task, task.head(backbone), data)
    module = GPTModule(backbone, [runtime], AdamW(lr=1e-3), Schedule())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random_state = torch.get_rng_state()
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr("gptask.training.cost_probe.memory_limit_mb", lambda: 20)
    estimate = probe_cost(module, trainer, tmp_path)
    assert estimate is not None
    for seconds in (estimate.training, estimate.validation, estimate.test, estimate.checkpoints):
        assert seconds > 0
    assert estimate.peak_memory_mb > 50
    assert "MB is more than the 20 MB that this process can get" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
