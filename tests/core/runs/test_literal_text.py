"""`${` in a config that is read back, in labels and in prompts is text: no value of the environment replaces it."""

import io
import json
import random
import shlex
import sys

import pytest
from gptask import Config, Files, load_run, train
from gptask.analysis.compare.records import read_run
from gptask.cli import main
from gptask.config.conversion import from_plain, to_plain, validated_copy
from gptask.config.schemas import DType, Full, Pretrained, Sample
from gptask.runs.config_file import read_config, write_config
from gptask.runs.reproduce import reproduce_command
from gptask.runs.run import task_from_config
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config
from tests.support.run_folders import rewrite, seal

SECRET = "hunter2-of-the-environment"
PIECES = ["$", "{", "}", "\\", "${oc.env:SECRET}", "${", " ", "'", '"', "\n", "é", ":", "#", "1e-3", "2024-01-01", "~"]
LABELS = ["${oc.env:SECRET}", "US$ ${price}", "\\${x}", "${"]


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)


def call(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_every_text_survives_config_yaml_and_the_overrides_of_a_reproduction(tmp_path):
    draw = random.Random(0)

    def text(end=""):
        return "".join(draw.choices(PIECES, k=draw.randint(1, 6))) + end

    for _ in range(12):
        data = Files(train=text("x"), columns={"text": text("y")}, labels={text(): text("z")}, license=text())
        config = Config(task=Classification(labels=[text(), text()], prompt=text("{text}")), data=data)
        assert validated_copy(config) == config
        write_config(tmp_path, config)
        values = read_config(tmp_path)
        assert from_plain("data", values["data"]) == data
        assert task_from_config(values)[1] == config.task
        assert read_run(tmp_path).config == values
        assert to_plain(config)["data"] == values["data"]


def test_texts_given_on_the_command_line_and_in_a_reproduction_are_the_same(run_command, tmp_path):
    line = [r"task.labels=[\${oc.env:SECRET},b]", r"task.prompt=\${{a}} {text}", r"data.license='\\\${x}'"]
    config = run_command("train", "task=classification", *line).config
    assert (config.task.labels, config.task.prompt) == (["${oc.env:SECRET}", "b"], "${{a}} {text}")
    assert config.data.license == "\\${x}"
    write_config(tmp_path, config)  # a run from Python, whose command is made of its config
    words = shlex.split(reproduce_command(read_config(tmp_path)))
    again = run_command(*words[1:]).config
    assert (again.task, again.data) == (config.task, config.data)
    assert run_command("train", "data.license=${oc.env:SECRET}").config.data.license == SECRET  # one's own command line


@pytest.fixture
def strangers_run(run_copy):
    """A run folder whose config wants the environment of whoever reads it."""
    values = (run_copy / "config.yaml").read_text()
    for old, new in (
        ("\n  license: null", "\n  license: '${oc.env:SECRET}'"),
        ("\n  license: MIT", "\n  license: '${oc.env:SECRET}'"),
    ):
        assert old in values
        values = values.replace(old, new)
    rewrite(run_copy / "config.yaml", values)
    return run_copy


def test_a_run_from_elsewhere_loads_with_its_texts(strangers_run, run_command):
    run = load_run(strangers_run)
    assert run.config["data"]["license"] == "${oc.env:SECRET}"
    assert [prediction.value for prediction in run.predict([{"text": "good"}])]
    config = run_command("evaluate", f"run={strangers_run}").config
    assert config.data.license == config.backbone.license == "${oc.env:SECRET}"
    run_command("predict", f"run={strangers_run}", "input=x")


@pytest.mark.long
def test_no_verb_reads_the_environment_for_a_run_from_elsewhere(strangers_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "good"}\n')))
    small = ["data.on_bad=skip", "data.limit.test=3", "trainer.accelerator=cpu"]
    assert call("evaluate", f"run={strangers_run}", *small, "folder=evaluated") == 0
    assert call("predict", f"run={strangers_run}", "input=-", "output=predicted.jsonl") == 0
    assert call("export", f"run={strangers_run}", "output=exported") == 0
    assert call("compare", "evaluated") == call("report", "evaluated") == 0
    onto = Pretrained(source=str(strangers_run), dtype=DType.float32)
    train(small_config(tmp_path / "onto", backbone=onto, trainer={"max_steps": 1, "accelerator": "cpu"}))
    assert "oc.env:SECRET" in (tmp_path / "evaluated/README.md").read_text()
    shown = "".join(capsys.readouterr())
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 30
    assert SECRET not in shown
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_a_resumed_run_keeps_its_texts(run_command, tmp_path):
    config = Config(task=Sentiment(prompt="${{price}} {text}"), data=Sample(license="${oc.env:SECRET}"), tuning=Full())
    write_config(tmp_path, config)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    resumed = run_command("train", f"resume={tmp_path}").config
    assert (resumed.task, resumed.data) == (config.task, config.data)


def test_labels_and_columns_that_look_like_interpolations_are_learned_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"${oc.env:SECRET}": f"text {n}", "label": LABELS[n % 4]} for n in range(48)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["task=classification", "data=files", "data.train=all.jsonl", r"data.columns.text=\${oc.env:SECRET}"]
    sizes = [f"backbone.{name}" for name in ("n_layer=1", "n_embd=16", "n_head=2", "vocab_size=300")]
    quick = ["trainer.max_steps=1", "trainer.accelerator=cpu", "probe=false", "folder=run"]
    assert call("train", *line, "backbone=nano", *sizes, *quick) == 0
    assert call("evaluate", "run=run", "folder=again") == 0
    for folder in ("run", "again"):
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert metrics["details"]["per_class"].keys() == set(LABELS)
        assert read_config(tmp_path / folder)["task"]["labels"] == sorted(LABELS)
    assert call("predict", "run=run", "input=all.jsonl", r"data.columns.text=\${oc.env:SECRET}", "output=p.jsonl") == 0
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])["probabilities"].keys() == set(LABELS)
    assert call("export", "run=run", "output=exported") == 0
    exported = json.loads((tmp_path / "exported/config.json").read_text())
    assert set(exported["id2label"].values()) == set(LABELS)
    assert call("compare", "run", "again") == 0
    assert SECRET not in "".join(capsys.readouterr())


def test_a_name_of_a_task_that_looks_like_an_interpolation_is_damage(refused, run_copy):
    file = run_copy / "config.yaml"
    rewrite(file, file.read_text().replace("  name: sentiment", "  name: ${oc.env:SECRET}"))
    seal(run_copy)
    message = refused("evaluate", f"run={run_copy}")
    assert "plugin.name is '${oc.env:SECRET}'" in message
    assert SECRET not in message
