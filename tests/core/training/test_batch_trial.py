"""The largest training batch is tried before the training; smaller ones are taken where memory runs out."""

import dataclasses
import json
import logging
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gptask import TaskConfig, UserError, train
from gptask.config.schemas import SGD, Evaluate, Full, HeadOnly, Limit, Pretrained, Sample, Scratch
from gptask.data.batches import BatchesByLength
from gptask.data.datamodule import DataModule
from gptask.runs.config_file import read_config, write_config
from gptask.training import batch_trial
from gptask.training.batch_trial import fit_batches, largest_batch, unchanged
from gptask.training.builder import build_corpora
from gptask.training.cost_probe import probe_cost
from gptask.training.evaluate import evaluate
from gptask.training.module import GPTModule
from gptask.training.train import build_module
from gptask.training.trainer import build_trainer
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

from tests.support.configs import small_config


def built(config):
    """The module that a config trains, and the config with its options chosen."""
    module, _, resolved = build_module(config, build_corpora(config))
    return module, resolved


def predictions(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_training_that_does_not_fit_takes_smaller_batches_from_its_first_step_to_its_resume(tmp_path, memory, caplog):
    memory.tokens = 150
    config = small_config(tmp_path / "limited", trainer={"max_epochs": 1, "accelerator": "cpu"})
    with caplog.at_level(logging.INFO, "gptask"):
        run = train(config)
    values, tokens = read_config(run.folder), config.data.batch_tokens
    chosen = values["data"]["batch_tokens"]
    assert 0 < chosen <= 150 < tokens
    (table,) = (text for text in caplog.messages if text.startswith("Chosen for this data"))
    (line,) = (line for line in table.splitlines() if "data.batch_tokens" in line)
    assert line.split(maxsplit=2) == ["data.batch_tokens", str(chosen), "batches of 1024 tokens run out of memory"]
    assert values["trainer"]["accumulate_grad_batches"] > 1, "a step has as many examples as before"
    parts = [text for text in caplog.messages if "are computed in parts" in text]
    assert len(parts) == 2, "validation and test, each once"

    memory.tokens = 1 << 30
    again = evaluate(Evaluate(task=run.task, run=str(run.folder), data=config.data, outputs=str(tmp_path / "scored")))
    for one, other in zip(predictions(run.folder), predictions(again), strict=True):
        assert (one["id"], one["prediction"]) == (other["id"], other["prediction"])
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)

    longer = {"max_epochs": 2, "accelerator": "cpu"}
    memory.tokens = chosen // 2
    message = rf"does not fit into the memory of cpu, and .* goes on with .* \(data.batch_tokens={chosen}\): resume it"
    with pytest.raises(UserError, match=message):
        train(small_config(tmp_path, resume=str(run.folder), trainer=longer))
    memory.tokens = 150
    memory.passes.clear()
    resumed = train(small_config(tmp_path, resume=str(run.folder), trainer=longer))
    assert read_config(resumed.folder)["data"]["batch_tokens"] == chosen
    assert memory.passes[0] <= chosen


def test_a_task_that_writes_and_each_of_several_are_tried(tmp_path, memory):
    memory.tokens = 150
    data = Sample(limit=Limit(train=8, validation=2, test=2), max_tokens=128, batch_size=4)
    config = small_config(tmp_path, task=Translation(), data=data)
    tasks = {"reads": TaskConfig(Sentiment(), data), "writes": TaskConfig(Translation(), data)}
    for given in (config, dataclasses.replace(config, task=None, data=None, tasks=tasks)):
        memory.passes.clear()
        module, resolved = built(given)
        assert max(memory.passes) > 150
        for runtime in module.runtimes:
            chosen = (resolved.tasks[runtime.name] if resolved.tasks else resolved).data.batch_tokens
            assert chosen == runtime.data.options.batch_tokens
            assert max(runtime.data.train_dataloader().batch_sampler.costs) <= 150


def states():
    return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]


class NoteStart(pl.Callback):
    """Notes the state in which a training starts."""

    def on_train_start(self, trainer, module):
        self.states = states()
        self.modes = [part.training for part in module.modules()]
        self.gradients = [parameter.grad for parameter in module.parameters()]


def test_a_training_is_the_same_bit_for_bit_with_and_without_the_trial(tmp_path, monkeypatch, memory):
    backbone = Scratch(n_layer=1, n_head=2, n_embd=16, context=128, vocab_size=300, dropout=0.5)
    config = small_config(tmp_path, backbone=backbone, trainer={"max_epochs": 1, "accelerator": "cpu"})
    runs, starts, passes = [], [NoteStart(), NoteStart()], []
    for start, fit in zip(starts, (fit_batches, lambda config, module: (config, [])), strict=True):
        monkeypatch.setattr(batch_trial, "fit_batches", fit)
        memory.passes.clear()
        runs.append(train(config, [start]))
        passes.append(len(memory.passes))
    assert passes[0] == passes[1] + 1
    tried, untried = starts
    assert tried.states == untried.states
    assert tried.modes == untried.modes
    assert tried.gradients == [None] * len(tried.gradients)
    weights = [dict(run.backbone.state_dict()) for run in runs]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert predictions(runs[0].folder) == predictions(runs[1].folder)


def test_buffers_modes_and_every_generator_are_restored(backbone_of):
    module = GPTModule(backbone_of("llama"), [])
    module.norm = torch.nn.BatchNorm1d(3)
    module.norm.eval()
    before = states()

    def change():
        with unchanged(module, torch.device("cpu")):
            module.norm.train()(torch.randn(4, 3)).sum().backward()
            random.random()
            np.random.random()
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        change()
    assert states() == before
    assert not module.norm.training
    assert module.norm.weight.grad is None
    assert module.norm.running_mean.tolist() == [0, 0, 0]


def test_the_probe_leaves_a_frozen_model_in_the_mode_of_inference(tmp_path, tiny_model):
    config = small_config(
        tmp_path, backbone=Pretrained(source=str(tiny_model("gpt2", 128))), tuning=HeadOnly(), probe=True
    )
    module, resolved = built(config)
    (trial,) = (runtime.trial for runtime in module.runtimes)
    assert min(trial.seconds) > 0
    modes = [part.training for part in module.modules()]
    assert not module.backbone.model.training
    assert probe_cost(module, build_trainer(tmp_path, resolved.trainer, logger=False), tmp_path)
    assert [part.training for part in module.modules()] == modes
    assert module.runtimes[0].trial is None


def test_the_probe_measures_the_largest_batch_once(tmp_path, memory):
    config = small_config(tmp_path, probe=True)
    module, resolved = built(config)
    largest = module.runtimes[0].trial.tokens
    probe_cost(module, build_trainer(tmp_path, resolved.trainer, logger=False), tmp_path)
    costs = module.runtimes[0].data.train_dataloader().batch_sampler.costs
    assert len({*costs}) == len(costs), "else passes can't be told apart"
    assert memory.passes.count(largest) == 1


def test_one_example_that_does_not_fit_is_told_with_the_ways_out(tmp_path, memory):
    memory.tokens = 8
    message = (
        r"one training example of \d+ tokens does not fit into the memory of cpu: lower data.max_tokens \(it is 128\), "
        r"train fewer weights \(tuning=lora or tuning=head; it is full\), or take a smaller backbone"
    )
    with pytest.raises(UserError, match=message):
        built(small_config(tmp_path))


def test_a_model_that_does_not_fit_is_told(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(batch_trial, "_reserve", fail)
    with pytest.raises(UserError, match="the optimizer's state do not fit into the memory of cpu: train fewer weights"):
        built(small_config(tmp_path))


def test_other_exceptions_pass(tmp_path, memory):
    memory.tokens, memory.error = 8, lambda: RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        built(small_config(tmp_path))


def test_memory_that_runs_out_later_is_told_with_the_way_on(tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(GPTModule, "training_step", fail)
    message = r"memory ran out at step 0: .* lower data.batch_tokens \(it is 1024\). No checkpoint"
    with pytest.raises(UserError, match=message):
        train(small_config(tmp_path))


def test_a_plugin_s_own_batches_are_not_tried(tmp_path, memory, monkeypatch):
    rows = torch.utils.data.DataLoader([1, 2, 3])
    monkeypatch.setattr(DataModule, "train_dataloader", lambda self: rows)
    memory.tokens = 8
    module, resolved = built(small_config(tmp_path))
    assert resolved.data.batch_tokens == 1024
    assert probe_cost(module, build_trainer(tmp_path, resolved.trainer, logger=False), tmp_path) is None


def test_a_training_without_a_step_tries_nothing(tmp_path, memory):
    memory.tokens = 8
    built(small_config(tmp_path, tuning=Full(lr=1e-3), trainer={"max_epochs": 0, "accelerator": "cpu"}))


@pytest.mark.parametrize(
    ("lengths", "targets", "largest"),
    [
        ([[10] * 9, [12] * 8], [], 1),  # more tokens
        ([[16] * 16, [250]], [], 1),  # fewer, whose attention takes more
        ([[16] * 16, [15] * 16], [[1] * 16, [9] * 16], 1),  # fewer, more of which get logits
        ([[16] * 16, [15] * 16], [[9] * 16, [9] * 16], 0),
    ],
)
def test_the_largest_batch_is_that_of_the_most_memory(lengths, targets, largest):
    flat, ends = np.concatenate(lengths), np.cumsum([len(batch) for batch in lengths])
    batches = [list(range(end - len(batch), end)) for end, batch in zip(ends, lengths, strict=True)]
    costs = [len(batch) * max(batch) for batch in lengths]
    sampler = BatchesByLength(flat, 99, 10_000, None)
    sampler.batches, sampler.costs = batches, costs
    items = SimpleNamespace(lengths=lambda name: np.concatenate(targets) if targets else np.zeros(0, dtype=int))
    data = DataModule(None, None, None, None, 0)
    data.train_dataloader, data.items = lambda: SimpleNamespace(batch_sampler=sampler), lambda split: items
    config = SimpleNamespace(num_attention_heads=4, num_hidden_layers=2, vocab_size=1000)
    backbone = SimpleNamespace(config=config, channels=32, engine=SimpleNamespace(keeps_logits=True))
    trial = largest_batch(SimpleNamespace(backbone=backbone), SimpleNamespace(data=data))
    assert trial.number == largest
    assert trial.tokens == costs[largest]
    assert trial.lengths == lengths[largest]


@pytest.mark.parametrize(("options", "copies"), [(None, 2), (SGD(momentum=0.9), 1), (SGD(momentum=0.0), 0)])
def test_memory_is_reserved_for_gradients_and_the_optimizer_s_state(options, copies, tmp_path):
    module = GPTModule(torch.nn.Linear(3, 2), [])
    config = small_config(tmp_path, optimizer=options)
    for processes in (1, 2):
        reserved = batch_trial._reserve(config, module, processes)
        assert sum(tensor.numel() for tensor in reserved) == 8 * (copies + processes - 1)
        assert all(parameter.grad is not None for parameter in module.parameters())


# --- several processes ----------------------------------------------------------------------------------------------


def test_a_process_that_another_one_started_takes_the_batches_of_that_one(tmp_path, memory, monkeypatch):
    config = small_config(tmp_path)
    smaller = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_tokens=200))
    write_config(tmp_path, smaller)
    monkeypatch.setenv("GPTASK_RUN_FOLDER", str(tmp_path))
    assert built(config)[1].data.batch_tokens == 1024
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert built(config)[1].data.batch_tokens == 200
    memory.tokens = 150
    with pytest.raises(UserError, match=r"of process 0; in that of process 0 it does: set data.batch_tokens=\d+"):
        built(config)


TWO_PROCESSES = """
import sys
from pathlib import Path
from gptask.training.batch_trial import _lowest_of_all
from gptask.training.trainer import build_trainer
options = {"devices": 2, "accelerator": "cpu", "strategy": "ddp", "max_epochs": 1}
trainer = build_trainer(Path(sys.argv[1]), options, logger=False)
print(_lowest_of_all(trainer, int(sys.argv[2])))
"""


@pytest.mark.long
def test_processes_that_are_started_side_by_side_agree_on_the_lowest(tmp_path):
    started = []
    for rank, tokens in enumerate(("512", "256")):
        ranks = {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": "29713"}
        environment = os.environ | ranks | {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
        command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path), tokens]
        started.append(subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE))
    assert [process.communicate(timeout=300)[0].split()[-1] for process in started] == ["256", "256"]
