"""The values of a saved run lie between the defaults and the user's overrides."""

import os
import shutil
from pathlib import Path

import pytest
from gptask import Config, Fast, Reference
from gptask.config.compression import Compress, CompressionMethod
from gptask.config.schemas import (
    SGD,
    DType,
    Evaluate,
    Files,
    Full,
    Limit,
    Lora,
    Pretrained,
    Sample,
    Schedule,
    ScheduleName,
    Scratch,
)
from gptask.plugins.discovery import discover
from gptask.runs.config_file import read_config, write_config
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from omegaconf import OmegaConf


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a training with many options set, without its weights."""
    folder = tmp_path_factory.mktemp("outputs") / "qa" / "first run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    config = Config(
        task=QuestionAnswering(answer=AnswerForm.span, stride=7, generation=QuestionAnswering().generation),
        backbone=Scratch(n_layer=1, n_embd=16, n_head=2),
        data=Sample(limit=Limit(test=5), max_tokens=99),
        tuning=Full(lr=0.5),
        optimizer=SGD(lr=0.25),
        schedule=Schedule(ScheduleName.cosine, 0.5),
        trainer={"max_epochs": 9, "devices": 1},
        seed=7,
    )
    write_config(folder, config, discover()["qa"])
    return folder


@pytest.fixture
def saved(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "outputs" / "qa" / "first run"))


def test_resume_takes_every_option_of_the_run(run_command, saved):
    config = run_command("train", f"resume={saved}").config
    assert config.task == QuestionAnswering(answer=AnswerForm.span, stride=7)
    assert (config.backbone.n_layer, config.data.max_tokens, config.tuning, config.seed) == (1, 99, Full(0.5), 7)
    assert (config.optimizer, config.schedule) == (SGD(lr=0.25), Schedule(ScheduleName.cosine, 0.5))
    assert config.trainer["max_epochs"] == 9
    assert config.resume == str(saved)


def test_the_users_overrides_take_precedence(run_command, saved):
    config = run_command("train", f"resume={saved}", "trainer.max_epochs=12", "seed=8", "task.stride=9").config
    assert (config.trainer["max_epochs"], config.trainer["devices"]) == (12, 1)
    assert (config.seed, config.task.stride, config.task.answer) == (8, 9, AnswerForm.span)


def test_evaluate_takes_task_data_and_backbone(run_command, saved):
    config = run_command("evaluate", f"run={saved}", "task.stride=9", "data.limit.test=3").config
    assert (config.task.answer, config.task.stride) == (AnswerForm.span, 9)
    assert (config.data.limit.test, config.data.max_tokens, config.seed) == (3, 99, 7)
    assert isinstance(config.backbone, Scratch)
    assert config.trainer == {}


def test_compress_takes_the_whole_training_and_adapters_in_place_of_full_weights(run_command, saved):
    options = ["method=prune", "keep=1", "tuning.rank=4"]
    config = run_command("compress", f"run={saved}", *options, "data.limit.test=3").config
    assert config.task == QuestionAnswering(answer=AnswerForm.span, stride=7)
    assert (config.data.limit.test, config.data.max_tokens, config.seed) == (3, 99, 7)
    assert config.trainer["max_epochs"] == 9
    assert (config.backbone, config.tuning) == (Pretrained(source=str(saved), dtype=DType.float32), Lora(rank=4))
    assert (config.run, config.method, config.keep) == (str(saved), CompressionMethod.prune, 1)
    assert config.resume is None


@pytest.mark.parametrize(("saved_rate", "expected"), [(1e-2, None), (5e-2, 5e-2)])
def test_compress_leaves_open_a_rate_that_followed_from_the_tuning(saved_rate, expected, run_command, tmp_path):
    backbone = Pretrained(source="x", keep=[0, 2, 3])
    tuning, optimizer = Lora(lr=1e-2, layers=0.5, top=0.5), SGD(lr=saved_rate)
    config = Config(task=QuestionAnswering(), backbone=backbone, tuning=tuning, optimizer=optimizer)
    write_config(tmp_path, config, discover()["qa"])
    config = run_command("compress", f"run={tmp_path}", "method=prune", "keep=[0,2]", "tuning.lr=1e-3").config
    assert (config.optimizer, config.backbone) == (SGD(lr=expected), backbone)
    assert config.tuning == Lora(lr=1e-3, layers=1.0, top=0.5)


def test_a_compression_goes_on_by_its_own_verb(run_command, refused, tmp_path):
    folder = tmp_path / "small"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    method = {"run": "parent", "method": CompressionMethod.prune, "keep": 2}
    write_config(folder, Compress(task=QuestionAnswering(), tuning=Lora(lr=0.5), **method), discover()["qa"])
    ended = run_command("compress", f"resume={folder}", "trainer.max_epochs=3")
    assert {name: getattr(ended.config, name) for name in method} == method
    assert (ended.config.tuning.lr, ended.config.resume, ended.commands) == (0.5, str(folder), [None])
    assert f"gptask compress resume={folder} goes on with it" in refused("train", f"resume={folder}")
    assert "is an evaluation" in refused("compress", f"run={evaluation(tmp_path)}", "method=prune", "keep=2")


def evaluation(outputs):
    (outputs / "evaluated").mkdir()
    write_config(outputs / "evaluated", Evaluate(task=QuestionAnswering(), data=Sample()), discover()["qa"])
    return outputs / "evaluated"


def test_another_kind_of_data_replaces_all_data_options_of_the_run(run_command, saved):
    config = run_command("evaluate", f"run={saved}", "data=files", "data.test=x.json").config
    assert isinstance(config.data, Files)
    assert config.data.limit == Limit()


def test_a_run_of_a_version_that_did_not_stratify_is_cut_as_it_was(run_command, saved):
    assert run_command("evaluate", f"run={saved}").config.data.stratify is None
    file = saved / "config.yaml"
    file.write_text(file.read_text().replace("  stratify: null\n", ""))
    assert run_command("evaluate", f"run={saved}").config.data.stratify is False


def test_predict_takes_the_task_and_the_token_limit(run_command, saved):
    config = run_command("predict", f"run={saved}", "input=-", "data.columns.context=text").config
    assert config.task.answer is AnswerForm.span
    assert isinstance(config.data, Files)
    assert (config.data.max_tokens, config.data.columns) == (99, {"context": "text"})


def test_run_null_is_the_bare_backbone(run_command):
    assert run_command("evaluate", "run=null", "backbone=nano").config.run is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "run={}", "task=sentiment"], "is a run of task 'qa', not 'sentiment'"),
        (["evaluate", "run={}", "backbone=nano"], "has its own backbone"),
        (["evaluate", "run={}", "backbone.dtype=float32"], "has its own backbone"),
        (["evaluate", "-m", "run={},b"], "one run folder at a time"),
        (["evaluate", "run={}", "task.strid=1"], "Did you mean 'stride'?"),
        (["evaluate", "run={}x"], "Did you mean '{}'?"),
        (["evaluate", "run=outputs"], "The latest run folders: outputs/qa/first run"),
        (["train", "resume=nowhere"], "no run folder at nowhere"),
    ],
)
def test_overrides_that_contradict_the_run_are_refused(refused, saved, arguments, expected):
    assert expected.format(saved) in refused(*(argument.format(saved) for argument in arguments))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("stride: 7", "strde: 7", ["unknown option 'task.strde' (from", "Did you mean 'stride'?"]),
        ("stride: 7", "stride: far", ["task.stride (from", "expected a whole number, got 'far'"]),
        ("answer: span", "answer: spam", ["task.answer (from", "expected one of"]),
        ("seed: 7", "seed: x", ["seed (from"]),
        ("kind: scratch", "kind: scrtch", ["is damaged: backbone.kind is 'scrtch'"]),
        ("kind: scratch", "kind: [scratch]", ["is damaged: backbone.kind is \"['scratch']\""]),
        ("format: 3", "format: 1", ["run format 1", "reads format 3", "train again"]),
        ("name: qa", "name: qqa", ["unknown task 'qqa'", "Did you mean 'qa'?", "first run"]),
        ("plugin:", "plgin:", ["is not the config of a gptask run"]),
        ("  name: qa", "  nme: qa", ["is not the config of a gptask run: plugin: no name"]),
        ("seed: 7", "seed: [", ["is damaged"]),
        ("seed: 7", "seed: ${", ["seed", "expected a whole number, got '${'"]),
        (
            "name: qa",
            "name: ${oc.env:SECRET}",
            ["is not the config of a gptask run: plugin.name is '${oc.env:SECRET}'"],
        ),
    ],
)
def test_a_damaged_or_foreign_config_is_refused(refused, saved, old, new, expected):
    file = saved / "config.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    message = refused("train", f"resume={saved}")
    for part in expected:
        assert part in message


def test_an_evaluation_cannot_be_resumed(refused, tmp_path):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    write_config(folder, Evaluate(task=QuestionAnswering(), backbone=Scratch(), data=Sample()))
    assert "is an evaluation" in refused("train", f"resume={tmp_path}/evaluation")


def test_a_run_without_a_checkpoint_begins_anew_with_the_options_it_was_given(run_command, saved):
    shutil.rmtree(saved / "checkpoints")
    chosen, given = read_config(saved), read_config(saved)
    given["tuning"]["lr"], given["task"]["stride"] = None, 3
    del given["plugin"], given["format"], given["command"]
    OmegaConf.save(OmegaConf.create({**chosen, "given": given}), saved / "config.yaml")
    config = run_command("train", f"resume={saved}", "seed=9").config
    assert (config.tuning, config.task.stride, config.seed, config.resume) == (Full(), 3, 9, str(saved))


def test_resume_auto_takes_all_options_from_the_command_line(run_command, saved):
    line = ["train", "task=qa", f"folder={saved}", "seed=5"]
    ended = run_command(*line, "resume=auto")
    assert (ended.config.resume, ended.config.seed, ended.config.task.stride) == ("auto", 5, QuestionAnswering().stride)
    assert ended.commands == ["gptask " + " ".join(word if " " not in word else f"'{word}'" for word in line)]
    several = run_command("train", "tasks=[qa,mood:sentiment]", f"folder={saved}", "resume=auto").config
    assert list(several.tasks) == ["qa", "mood"]


def test_resume_latest_is_the_newest_run_with_a_checkpoint(run_command, refused, saved, caplog):
    older = Path(shutil.copytree(saved, saved.parent.parent / "kept" / "older"))
    without = Path(shutil.copytree(saved, saved.parent / "without"))
    shutil.rmtree(without / "checkpoints")
    for age, folder in enumerate((without, saved, older)):
        os.utime(folder / "config.yaml", (10**9 - age, 10**9 - age))
    ended = run_command("train", "resume=latest", "task=qa", "seed=2")
    assert (ended.config.resume, ended.config.seed, ended.config.task.stride) == ("outputs/qa/first run", 2, 7)
    assert "resume=latest: outputs/qa/first run" in ended.err
    assert run_command("train", "resume=latest", "outputs=outputs/kept").config.resume == "outputs/kept/older"
    message = refused("train", "resume=latest", "task=sentiment")
    assert "outputs/qa/first run, the newest run below outputs, is of task qa; none there is of sentiment" in message
    assert "no run folder below nowhere has a checkpoint" in refused("train", "resume=latest", "outputs=nowhere")


def test_a_run_stopped_before_its_config_begins_by_the_command_line(run_command, refused, tmp_path):
    for name, files in (("begun", ["train.log", ".lock"]), ("empty", [])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        config = run_command("train", f"resume={name}", "task=qa", "seed=3").config
        assert (config.resume, config.seed, type(config.task)) == (name, 3, QuestionAnswering)
        assert list(run_command("train", f"resume={name}", "tasks=[qa,mood:sentiment]").config.tasks) == ["qa", "mood"]
        assert "give those that it was started with" in refused("train", f"resume={name}", "seed=3")
    (tmp_path / "begun" / "letter.txt").touch()
    assert "no run folder at begun" in refused("train", "resume=begun", "task=qa")


def test_a_resumed_run_keeps_its_engine_under_environment_and_user(run_command, saved, monkeypatch):
    monkeypatch.delenv("GPTASK_ENGINE", raising=False)
    values = read_config(saved)
    values["engine"]["norm"] = False
    OmegaConf.save(OmegaConf.create(values), saved / "config.yaml")
    assert run_command("train", f"resume={saved}").config.engine == Fast(norm=False)
    assert run_command("train", f"resume={saved}", "engine.loss=off").config.engine == Fast(norm=False, loss=False)
    assert run_command("train", f"resume={saved}", "engine=reference").config.engine == Reference()
    monkeypatch.setenv("GPTASK_ENGINE", "fast,packing=off")
    assert run_command("train", f"resume={saved}").config.engine == Fast(packing=False)
    assert run_command("train", f"resume={saved}", "engine=fast").config.engine == Fast()
    monkeypatch.setenv("GPTASK_ENGINE", "reference")
    assert run_command("train", f"resume={saved}").config.engine == Reference()


def test_an_engine_belongs_to_the_machine_not_to_the_run(run_command, saved, monkeypatch):
    monkeypatch.delenv("GPTASK_ENGINE", raising=False)
    values = read_config(saved)
    values["engine"] = {"kind": "reference_schema"}
    OmegaConf.save(OmegaConf.create(values), saved / "config.yaml")
    for line in (["evaluate"], ["predict", "input=x"], ["export", "output=y"]):
        assert run_command(*line, f"run={saved}").config.engine == Fast()
        assert run_command(*line, f"run={saved}", "engine=reference").config.engine == Reference()
    monkeypatch.setenv("GPTASK_ENGINE", "fast,norm=off")
    for line in (["evaluate"], ["predict", "input=x"], ["export", "output=y"]):
        assert run_command(*line, f"run={saved}", "engine.loss=off").config.engine == Fast(norm=False, loss=False)
