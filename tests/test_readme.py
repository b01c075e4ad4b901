"""The README's commands do what it says: run on a tiny backbone, the real-data table's only composed."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest
from gptask.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TINY = "backbone=nano backbone.n_layer=1 backbone.n_embd=16 backbone.n_head=2 backbone.vocab_size=300"
SMALL = "data.limit.train=16 data.limit.validation=4 data.limit.test=4 trainer.accelerator=cpu"


def use_commands():
    block = re.search(r"<!-- tested.*?```bash\n(.*?)```", README, re.DOTALL)
    assert block
    return [shlex.split(line, comments=True) for line in block[1].splitlines() if line.strip()]


def call(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0, arguments


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.txt").write_text("A fine day\nA dull book\n")
    rows = [{"text": f"{word} {n}", "label": word} for n in range(10) for word in ("good", "bad")]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_use_commands_run_in_order(workplace, monkeypatch, capsys):
    commands = use_commands()
    assert {words[1] for words in commands if words[0] == "gptask"} == {
        "tasks",
        "new-task",
        "train",
        "evaluate",
        "predict",
        "export",
        "compare",
        "report",
    }
    for words in commands:
        if "|" in words:
            text = words[1].encode()
            monkeypatch.setattr("gptask.runs.predict_file.stdin", lambda text=text: io.BytesIO(text))
            words = words[words.index("|") + 1 :]
        arguments = words[1:]
        fresh = not any(word.startswith(("run=", "resume=")) for word in words)
        if words[1] in ("train", "evaluate") and fresh:
            arguments += [*TINY.split(), *SMALL.split()]
        if words[1] == "train" and fresh:
            arguments += ["trainer.max_epochs=1"]
        if "task=translation" in words:
            arguments += ["task.generation.max_new_tokens=2"]
        call(arguments)
    output = capsys.readouterr().out
    assert "sentiment" in output
    assert len((workplace / "predictions.jsonl").read_text().splitlines()) == 2
    assert (workplace / "exported/config.json").exists()
    runs = [path.parent.name for path in (workplace / "outputs").glob("*/*/metrics.json")]
    assert len(runs) >= 6  # -m skips what has been run before
    assert set(re.findall(r"^ (\S+)", output, re.MULTILINE)) >= {*runs}  # a row of the tables for each
    assert not re.search("not compared|not tested", output)
    board = (workplace / "outputs/leaderboard.md").read_text(encoding="utf-8")
    assert all(f"## {task}" in board for task in ("sentiment", "classification", "qa", "summarization", "translation"))
    assert "<h1>" in (workplace / "outputs/sentiment/first/report.html").read_text(encoding="utf-8")


def test_the_python_example_runs(workplace, capsys):
    code = re.search(r"### From Python\n\n```python\n(.*?)```", README, re.DOTALL)
    assert code
    small = "task=Sentiment(), backbone=Scratch(n_layer=1, n_embd=16, n_head=2, vocab_size=300), tuning=Full(),"
    source = "from gptask.config.schemas import Full, Scratch\n" + code[1].replace("task=Sentiment(),", small)
    exec(compile(source, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] in ("good", "bad") for line in lines[-2:]] == [True, True]


TABLE = re.findall(r"\| `(gptask train experiment=[^`]+)`", README)


@pytest.mark.parametrize("command", TABLE or ["none"])
def test_the_real_data_table_composes(command, capsys):
    assert TABLE, "the README has no table of real data"
    call([*shlex.split(command)[1:], "--cfg", "job"])
    assert "task:" in capsys.readouterr().out
