"""`gptask tasks`: the plugins as tables and as JSON."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest
from gptask import option
from gptask.cli.commands.tasks import task_options
from gptask_tasks.qa import QuestionAnswering

from tests.support.distributions import GOOD_TASK

PROJECT = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
BUILT_IN = sorted(PROJECT["entry-points"]["gptask.tasks"])


def columns(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_every_plugin_has_a_line(run_command):
    ended = run_command("tasks")
    header, *rows = ended.out.partition("\n\n")[0].splitlines()
    assert columns(header) == ["task", "plugin", "contract", "state", "description"]
    assert [columns(row)[0] for row in rows] == BUILT_IN
    assert all(columns(row)[1:4] == ["gptask 0.1.0", "1.0", "ok"] for row in rows)
    assert "Answer a question on a context" in ended.out


def test_one_task_shows_fields_and_options(run_command):
    out = run_command("tasks", "qa").out
    rows = {columns(line)[0]: columns(line)[1:] for line in out.splitlines() if line}
    assert rows["answer_start"] == ["integers", "no", "yes", "character offset of each answer"]
    assert rows["context"][:3] == ["text", "yes", "no"]
    assert rows["task.answer"][:2] == ["generate | span", "generate"]
    assert rows["task.prompt"][:2] == ["str | null", "null"]
    assert rows["task.generation.max_new_tokens"][:2] == ["int | null", "null"]
    assert rows["task.generation.stop"][:2] == ["list[str]", '["\\n"]']  # qa's default


def test_json_holds_every_plugin_with_its_options(run_command):
    listed = json.loads(run_command("tasks", "--json").out)
    assert [task["name"] for task in listed] == BUILT_IN
    qa = listed[BUILT_IN.index("qa")]
    assert json.loads(run_command("tasks", "qa", "--json").out) == qa
    options = {option["name"]: option for option in qa["options"]}
    assert options["generation.stop"]["default"] == ["\n"]
    assert options["answer"] == {
        "name": "answer",
        "type": "generate | span",
        "default": "generate",
        "help": "generate: free text; span: the best span of the context",
    }
    assert (qa["distribution"], qa["state"], qa["cause"]) == ("gptask", "ok", None)


def test_every_option_of_a_built_in_task_has_help():
    assert [option.name for option in task_options(QuestionAnswering) if not option.help] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sentimen"], "Did you mean 'sentiment'?"),
        (["--jsn"], "`gptask tasks --help` shows the arguments"),
        (["--format", "yaml"], "invalid choice: 'yaml'"),
        (["qa", "sentiment"], "describes one task at a time, got qa, sentiment; --check takes several"),
        (["--check", "sentimen"], "unknown task 'sentimen'; installed: classification, generation"),
    ],
)
def test_invalid_arguments_are_refused(refused, arguments, expected):
    assert expected in refused("tasks", *arguments)


def test_help_lists_the_flags(run_command, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gptask"])
    out = run_command("tasks", "--help").out
    assert "--check" in out
    assert "--format" in out


def test_every_state_is_listed_with_its_cause(run_command, install_plugin, monkeypatch):
    install_plugin("bad-tasks", "import nothing_like_it\n", bad="bad_module:Good")
    install_plugin("old-tasks", GOOD_TASK + "    contract_version = '0.9'\n", old="old_module:Good")
    install_plugin("needy-tasks", GOOD_TASK.replace("times: int = option(1", "times: list[str] = field(metadata={}) #")
            .replace('[Field("text")', '[Field(self.times[0])'), needy="needy_module:Good")  # fmt: skip
    install_plugin("our-tasks", GOOD_TASK, qa="echo_module:Good")
    install_plugin("shy-tasks", GOOD_TASK, shy="shy_module:Good")
    monkeypatch.setenv("GPTASK_PLUGINS", "-shy-tasks")
    ended = run_command("tasks")
    rows = {columns(line)[0]: columns(line)[1:] for line in ended.out.partition("\n\n")[0].splitlines()}
    assert ended.code == 0
    assert rows["bad"][:3] == ["bad-tasks 1.2", "-", "broken"]
    assert rows["bad"][3] == "ModuleNotFoundError: No module named 'nothing_like_it'"
    assert rows["old"][:3] == ["old-tasks 1.2", "0.9", "incompatible"]
    assert rows["qa"][0].endswith("/ our-tasks 1.2")
    assert rows["qa"][2] == "clash"
    assert rows["shy"][2:4] == ["disabled", "disabled by GPTASK_PLUGINS=-shy-tasks"]
    assert rows["sentiment"][2] == rows["needy"][2] == "ok"
    listed = {task["name"]: task for task in json.loads(run_command("tasks", "--format", "json").out)}
    assert {name: task["state"] for name, task in listed.items()} == {n: r[2] for n, r in rows.items() if n != "task"}
    assert listed["bad"]["cause"] == rows["bad"][3]
    assert "fields" not in listed["needy"]


@pytest.fixture
def checked(run_command, install_plugin, monkeypatch):
    """`gptask tasks --check` beside plugins that break the contract; no built-in one takes part."""
    install_plugin("bad-tasks", "import nothing_like_it\n", bad="bad_module:Good")
    install_plugin("echo-tasks", GOOD_TASK, echo="echo_module:Good")
    install_plugin("needy-tasks", GOOD_TASK.replace("times: int = option(1", "times: int = field(metadata={}) #"),
            needy="needy_module:Good")  # fmt: skip
    install_plugin("shy-tasks", GOOD_TASK, shy="shy_module:Good")
    monkeypatch.setenv("GPTASK_PLUGINS", "bad-tasks,echo-tasks,needy-tasks")
    return lambda *arguments: run_command("tasks", "--check", *arguments)


def test_check_says_which_clause_failed_and_where_to_look(checked):
    ended = checked()
    assert ended.code == 1
    bad, echo, needy, end = ended.out.split("\n\n")
    assert re.search(r"failed +loads\n.*can't be used\n.*bad_module.py\", line 1.*\n.*nothing_like_it", bad)
    assert re.match(r"echo \(echo-tasks 1.2, no contract stated\)  .*echo_module.py:\d+\n", echo)
    assert re.search(r"failed +version_stated\n +Good must state the contract", echo)
    assert re.search(r"ok +fields_well_formed\n", echo)
    assert re.search(r"not run +metrics_rank", echo)
    assert "the task can't be made without a value for times" in needy
    assert "check_task(Good(times=...))" in needy
    assert end == "0 of 3 tasks keep the contract\n"


def test_check_refuses_a_disabled_task(checked):
    ended = checked("shy")
    assert (ended.code, ended.out) == (2, "")
    assert "'shy' is disabled by GPTASK_PLUGINS" in ended.err


def test_check_writes_json(checked):
    ended = checked("bad", "echo", "--format", "json")
    bad, echo = json.loads(ended.out)
    assert ended.code == 1
    assert (bad["keeps_contract"], [clause["clause"] for clause in bad["clauses"]]) == (False, ["loads"])
    assert {clause["clause"]: clause["outcome"] for clause in echo["clauses"]}["version_stated"] == "failed"
    assert echo["place"].partition(":")[0].endswith("echo_module.py")


def test_check_of_a_sound_task_exits_with_0(run_command):
    ended = run_command("tasks", "--check", "sentiment")
    assert ended.code == 0, ended.out
    assert re.search(r"does not apply +learns_to_stop", ended.out)
    assert ended.out.endswith("1 of 1 tasks keep the contract\n")


def test_options_of_every_type_are_listed():
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

    rows = [(row.name, row.type, row.default) for row in hinted(task_options, Outer, Inner=Inner, Colour=Colour)]
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


def test_a_closed_pipe_shows_no_error(tmp_path):
    command = f"'{sys.executable}' -m gptask tasks qa | head -1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert ended.stdout.startswith("qa (gptask")
    assert ended.stderr == ""
