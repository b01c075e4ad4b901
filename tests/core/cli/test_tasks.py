"""`gptask tasks`: the plugins for people and for machines."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum

import pytest
from gptask import option
from gptask.cli import tasks
from gptask.cli.tasks import options
from gptask.plugins import Plugin
from gptask_tasks.qa import QuestionAnswering

BUILT_IN = [
    "classification", "qa", "question_generation", "sentiment", "summarization", "token_tagging", "translation"
]  # fmt: skip


def columns(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_every_plugin_has_a_line(run):
    ended = run("tasks")
    header, *rows = ended.out.partition("\n\n")[0].splitlines()
    assert columns(header) == ["task", "plugin", "state", "description"]
    assert [columns(row)[0] for row in rows] == BUILT_IN
    assert all(columns(row)[2] == "ok" for row in rows)
    assert "Answer a question on a context" in ended.out


def test_one_task_shows_fields_and_options(run):
    out = run("tasks", "qa").out
    rows = {columns(line)[0]: columns(line)[1:] for line in out.splitlines() if line}
    assert rows["answer_start"] == ["integers", "no", "yes", "character offset of each answer"]
    assert rows["context"][:3] == ["text", "yes", "no"]
    assert rows["task.answer"][:2] == ["generate | span", "generate"]
    assert rows["task.prompt"][:2] == ["str | null", "null"]
    assert rows["task.generation.max_new_tokens"] == ["int", "32", "tokens generated at most"]  # qa's default, not 64
    assert rows["task.generation.stop"][:2] == ["list[str]", '["\\n"]']


def test_json_holds_everything(run):
    listed = json.loads(run("tasks", "--json").out)
    assert [task["name"] for task in listed] == BUILT_IN
    assert json.loads(run("tasks", "qa", "--json").out) == listed[1]
    found = {option["name"]: option for option in listed[1]["options"]}
    assert found["generation.max_new_tokens"]["default"] == 32
    assert found["answer"] == {
        "name": "answer",
        "type": "generate | span",
        "default": "generate",
        "help": "generate: free text; span: the best span of the context",
    }
    assert (listed[1]["distribution"], listed[1]["state"], listed[1]["cause"]) == ("gptask", "ok", None)


def test_every_option_of_a_built_in_task_has_help():
    assert [option.name for option in options(QuestionAnswering) if not option.help] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sentimen"], "Did you mean 'sentiment'?"),
        (["--jsn"], "usage: gptask tasks [name] [--json]"),
        (["qa", "sentiment"], "takes one name"),
    ],
)
def test_mistakes(refused, arguments, said):
    assert said in refused("tasks", *arguments)


def test_help(run):
    assert "[name] [--json]" in run("tasks", "--help").out


def test_broken_and_doubled_plugins_show_their_state(run, monkeypatch):
    plugins = {
        "bad": Plugin("bad", "theirs", "2", error="ImportError: no x", cause=ImportError("no x")),
        "twice": Plugin("twice", "a 1 / b 2", "", error="the name is claimed by a 1 and b 2: uninstall one"),
    }
    monkeypatch.setattr(tasks, "discover", lambda: plugins)
    out = run("tasks").out
    assert "broken: ImportError: no x" in out
    assert "clash: the name is claimed by a 1 and b 2" in out
    assert [(t["state"], t["cause"]) for t in json.loads(run("tasks", "--json").out)] == [
        ("broken", "ImportError: no x"),
        ("clash", "the name is claimed by a 1 and b 2: uninstall one"),
    ]


def test_options_of_every_kind_are_shown():
    class Colour(Enum):
        red = "r"

    @dataclass
    class Inner:
        deep: float = option(0.5, "deep down")

    @dataclass
    class Outer:
        needed: str
        maybe: int | None = None
        colour: Colour = Colour.red
        table: dict[str, list[int]] = field(default_factory=dict)
        inner: Inner = field(default_factory=lambda: Inner(deep=2.5))

    rows = [(row.name, row.type, row.default) for row in hinted(options, Outer, Inner=Inner, Colour=Colour)]
    assert rows == [
        ("needed", "str", "???"),
        ("maybe", "int | null", None),
        ("colour", "red", "red"),
        ("table", "dict[str, list[int]]", {}),
        ("inner.deep", "float", 2.5),
    ]


def hinted(call, cls, **names):
    sys.modules[cls.__module__].__dict__.update(names)
    return list(call(cls))


def test_a_terminal_gets_a_table_of_its_width(tmp_path):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "gptask", "tasks"]
    environment = os.environ | {"COLUMNS": "60", "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdout=follower, env=environment, cwd=tmp_path)
    os.close(follower)
    text = b""
    with contextlib.suppress(OSError):  # Linux's end of a closed terminal
        while part := os.read(leader, 4096):
            text += part
    assert process.wait(60) == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", text.decode()).splitlines()
    assert max(map(len, lines)) <= 60
    assert "─" in text.decode()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in BUILT_IN)  # names are never cut


def test_a_closed_pipe_is_no_error(tmp_path):
    command = f"'{sys.executable}' -m gptask tasks qa | head -1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert ended.stdout.startswith("qa (gptask")
    assert ended.stderr == ""
