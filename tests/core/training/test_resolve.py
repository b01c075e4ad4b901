"""Options left open by the config are chosen from the data, the backbone and the heads, each before it is used."""

import dataclasses
import json
import logging
import re
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from gptask import GenerationOptions, TaskConfig, UserError, train, train_tasks
from gptask.config.schemas import AdamW, Files, Full, Limit, Lora, Pretrained, Sample
from gptask.data import datamodule
from gptask.model.backbone import backbone as backbone_module
from gptask.plugins.discovery import discover
from gptask.training import builder
from gptask.training.resolve import ChosenOption, log_chosen, prepare_tasks, prepared_options, resolve_schedule
from gptask.training.train import build_module
from gptask_tasks.classification import Classification
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

from tests.support.configs import small_config

STREAM = SimpleNamespace(train_dataloader=lambda: iter(()))


def built(settings):
    return build_module(settings, builder.build_corpora(settings))


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
    module, _, resolved = built(small_config(tmp_path, task=task, tuning=tuning, optimizer=optimizer))
    assert module.optimizer == resolved.optimizer
    assert (resolved.optimizer.lr, getattr(resolved.tuning, "top", None)) == expected


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
    _, _, resolved = built(small_config(tmp_path, data=data, trainer=options))
    assert (resolved.trainer.get("max_epochs"), resolved.trainer["accumulate_grad_batches"]) == expected


def test_a_stream_of_unknown_length_gets_two_epochs(tmp_path):
    resolved, _ = resolve_schedule(small_config(tmp_path, trainer={"max_epochs": None}), STREAM)
    assert resolved.trainer == {"max_epochs": 2, "accumulate_grad_batches": 1}


@pytest.mark.parametrize(
    ("given", "processes", "accumulated", "message"),
    [
        (None, 2, 1, ""),  # two batches a step in one process
        (
            4,
            2,
            4,
            r"step takes 8 batches .*, 2 times as .*; trainer\.accumulate_grad_batches=2 keeps its size, or nearly",
        ),
        (1, 2, 1, "2 times .*; data.batch_size=4 data.batch_tokens=512 trainer.accumulate_grad_batches=1 keeps"),
        (None, 3, 1, r"1\.5 times .*; data.batch_size=2 data.batch_tokens=341 trainer.accumulate_grad_batches=2 keeps"),
    ],
)
def test_several_processes_keep_the_size_of_a_step_or_say_what_keeps_it(
    given, processes, accumulated, message, tmp_path, caplog
):
    options = {} if given is None else {"accumulate_grad_batches": given}
    data = Sample(limit=Limit(train=24), batch_size=8, batch_tokens=1024, max_tokens=128)
    settings = small_config(tmp_path, data=data, trainer={"accelerator": "cpu", **options})
    _, loaders, _ = built(settings)
    caplog.clear()
    resolved, _ = resolve_schedule(settings, loaders, processes)
    assert resolved.trainer["accumulate_grad_batches"] == accumulated
    assert re.search(message, caplog.text) if message else not caplog.text


def test_a_run_writes_the_chosen_epochs_and_accumulation_into_its_config(tmp_path):
    options = {"accelerator": "cpu", "precision": "32-true"}
    run = train(small_config(tmp_path, trainer=options))
    assert run.config["trainer"] == {**options, "max_epochs": 8, "accumulate_grad_batches": 2}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("tuning", "options", "expected"),
    [(Full(), {}, "bf16-mixed"), (Full(), {"precision": "32-true"}, "32-true"), (Lora(rank=2), {}, None)],
)
def test_full_tuning_computes_in_bfloat16_where_the_processor_does(
    fast, tuning, options, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(backbone_module, "number_format", lambda _: torch.bfloat16 if fast else torch.float32)
    _, _, resolved = built(small_config(tmp_path, tuning=tuning, trainer=options))
    assert resolved.trainer.get("precision") == (expected if fast else options.get("precision"))


# --- what a generated text may take -------------------------------------------------------------------------------


@pytest.fixture
def long_targets(tmp_path):
    """Training pairs whose targets need more than the 64 tokens that are reserved without training targets."""
    rows = [{"source": f"word {n}", "target": "xyzzy " * 30} for n in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Files(train=str(tmp_path / "train.jsonl"), cut=0.2, max_tokens=512)


def test_train_validation_and_test_are_encoded_by_the_same_values(long_targets, tmp_path, monkeypatch):
    used: dict[str, list[Any]] = {}
    encode = datamodule.DataModule._encode

    def record(self, examples, meta):
        used[examples.name] = [self.task.reserved_tokens(), self.options.max_tokens, deepcopy(self.task)]
        return encode(self, examples, meta)

    monkeypatch.setattr(datamodule.DataModule, "_encode", record)
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))
    trainer = {"max_steps": 1, "accelerator": "cpu"}
    run = train(small_config(tmp_path, task=Translation(), data=long_targets, trainer=trainer))
    assert used["train"] == used["validation"] == used["test"]
    reserved, max_tokens, _ = used["train"]
    assert max_tokens == run.backbone.context == 128
    assert (
        reserved == run.task.generation.max_new_tokens == 32
    )  # a quarter of the context, and not the 64 of no targets


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Translation(), "from the targets"),
        (QuestionAnswering(), "from the targets"),
        (QuestionAnswering(answer=AnswerForm.span), None),  # it writes nothing
        (QuestionAnswering(generation=GenerationOptions(max_new_tokens=7)), 7),
    ],
)
def test_the_targets_of_train_limit_what_is_generated(task, expected, long_targets, tmp_path):
    data = long_targets if isinstance(task, Translation) else Sample(limit=Limit(train=16, validation=4, test=4))
    backbone = dataclasses.replace(small_config(tmp_path).backbone, context=512)
    module, _, resolved = built(small_config(tmp_path, task=task, data=data, backbone=backbone))
    (runtime,), generation = module.runtimes, resolved.task.generation
    if expected == "from the targets":  # all of these few fit, with EOS
        expected = -(-max(runtime.data.items("train").lengths("target")) // 8) * 8
    assert generation.max_new_tokens == expected
    assert getattr(runtime.head, "options", generation) == generation


# --- nothing is changed in passing --------------------------------------------------------------------------------

TUNED = Classification(multi_label=True)  # its threshold is chosen by validation


@pytest.mark.parametrize("name", [*sorted(discover(())), "multi_label"])
def test_a_training_changes_no_option_but_what_validation_chooses(name, tmp_path, monkeypatch):
    monkeypatch.setattr("gptask.training.train.validated_copy", lambda config: config)  # the config itself is used
    task = TUNED if name == "multi_label" else discover({name})[name].load().task()
    data = Sample(limit=Limit(train=16, validation=4, test=4), max_tokens=512, batch_size=8)  # more than the context
    backbone = dataclasses.replace(small_config(tmp_path).backbone, context=256)
    trainer = {"max_epochs": 1, "limit_test_batches": 1, "accelerator": "cpu"}
    config = small_config(tmp_path, task=task, data=data, backbone=backbone, tuning=Full(), trainer=trainer)
    before = deepcopy(config)
    runtimes = []

    def remember(trainer, module):
        runtimes.extend((runtime, deepcopy(runtime.configured_task)) for runtime in module.runtimes)

    run = train(config, [pl.callbacks.LambdaCallback(on_fit_start=remember)])
    assert config == before
    assert vars(config.task) == vars(before.task)
    ((runtime, configured),) = runtimes
    assert runtime.configured_task == runtime.data.task == configured
    assert vars(runtime.configured_task) == vars(configured)
    assert run.task == dataclasses.replace(configured, **runtime.tuned_options)
    assert set(runtime.tuned_options) == ({"threshold"} if name == "multi_label" else set())
    assert run.config["tuned_options"] == runtime.tuned_options


def test_an_evaluation_changes_no_option(tmp_path, monkeypatch):
    monkeypatch.setattr("gptask.training.evaluate.validated_copy", lambda config: config)
    from gptask.config.schemas import Evaluate
    from gptask.runs.config_file import read_config
    from gptask.training.evaluate import evaluate

    settings = small_config(tmp_path)
    settings.data.max_tokens = 512
    task = Translation(generation=GenerationOptions(max_new_tokens=3))
    config = Evaluate(task=task, data=settings.data, backbone=settings.backbone, outputs=str(tmp_path), shots=1,
                      trainer={"limit_test_batches": 1, "accelerator": "cpu"})  # fmt: skip
    before = deepcopy(config)
    folder = evaluate(config, "gptask evaluate shots=1")
    assert config == before
    assert (task.demonstrations, vars(task)) == ("", vars(before.task))
    values = read_config(folder)
    assert (values["data"]["max_tokens"], values["data"]["seed"]) == (128, 13)
    assert values["command"] == "gptask evaluate shots=1"
    assert "gptask evaluate shots=1" in (folder / "README.md").read_text()


# --- Task.prepare -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"prepare\(\) returned None, no dictionary; it must return the options that it chooses"),
        ({"lables": []}, r"prepare\(\) returned lables, no option of the task; .* There are .*labels"),
        ({"demonstrations": "x"}, r"prepare\(\) returned demonstrations, no option"),
    ],
)
def test_prepare_returns_options_of_the_task(returned, message, monkeypatch):
    monkeypatch.setattr(Sentiment, "prepare", lambda self, train: returned)
    with pytest.raises(UserError, match=rf"^the plugin 'sentiment': Sentiment\.{message}"):
        prepared_options(Sentiment(), [])


def test_the_corpus_checks_the_other_splits_by_the_label_set_of_train(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t{n},{'ab'[n % 2]}\n" for n in range(40)))
    (tmp_path / "test.csv").write_text("text,label\nx,c\n")
    data = Files(train=str(tmp_path / "train.csv"), test=str(tmp_path / "test.csv"))
    config = small_config(tmp_path, task=Classification(), data=data)
    corpora = builder.build_corpora(config)
    prepared, chosen = prepare_tasks(config, corpora)
    assert chosen == [ChosenOption("task.labels", ["a", "b"], "all train data")]
    assert (prepared.task.labels, config.task.labels) == (["a", "b"], [])
    with pytest.raises(UserError, match=r"test\.csv:2: label 'c' is not in task\.labels: a, b"):
        corpora["classification"].split("test")


# --- the log ------------------------------------------------------------------------------------------------------


def table(caplog):
    (text,) = [message for message in caplog.messages if "Chosen for this data" in message]
    return text.splitlines()


def test_one_table_names_what_was_chosen_and_why(tiny_model, tmp_path, caplog):
    data = Sample(limit=Limit(train=24, validation=8, test=10), max_tokens=200, batch_size=8)
    trainer = {"max_steps": 1, "accelerator": "cpu"}
    backbone = Pretrained(source=str(tiny_model("gpt2", 128)))
    with caplog.at_level(logging.INFO, "gptask"):
        train(small_config(tmp_path, backbone=backbone, data=data, tuning=Lora(rank=2), trainer=trainer))
    assert table(caplog) == [
        "Chosen for this data:",
        "  option                           value                          why",
        "  task.labels                      [negative, neutral, positive]  all train data",
        "  data.max_tokens                  128                            the backbone's context is shorter than 200",
        "  data.seed                        13                             the seed of the run",
        "  tuning.top                       1.0                            recommended by the head",
        "  tuning.lr                        0.00052                        "
        "recommended by the head, for gpt2 with 32 channels",
        "  optimizer.lr                     0.00052                        tuning.lr",
        "  trainer.accumulate_grad_batches  2                              enough examples per optimizer step",
    ]


def test_options_of_several_tasks_have_their_full_names(tmp_path, caplog):
    tasks = {
        "mood": TaskConfig(Sentiment(), Sample(limit=Limit(train=16, validation=4, test=4), seed=1)),
        "quiz": TaskConfig(QuestionAnswering(), Sample(limit=Limit(train=8, validation=2, test=2))),
    }
    changes = {"task": None, "data": None, "tasks": tasks, "trainer": {"max_steps": 1, "accelerator": "cpu"}}
    with caplog.at_level(logging.INFO, "gptask"):
        train_tasks(dataclasses.replace(small_config(tmp_path), **changes))
    names = {line.split()[0] for line in table(caplog)[2:]}
    assert names >= {"tasks.mood.task.labels", "tasks.quiz.data.seed", "tasks.quiz.task.generation.max_new_tokens"}
    assert "tasks.mood.data.seed" not in names


def test_nothing_is_logged_where_nothing_was_chosen_and_long_values_are_cut(caplog):
    with caplog.at_level(logging.INFO, "gptask"):
        log_chosen([])
        assert not caplog.messages
        log_chosen([ChosenOption("task.labels", [f"label {n}" for n in range(99)], "all train data")])
    (line,) = table(caplog)[2:]
    assert len(line) < 100
    assert "label 2" in line
    assert "…  all train data" in line
