"""CONTRIBUTING.md quotes the example plugin as it is, and names rooms, hooks and files that exist."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
from gptask import Head, PromptedTask
from gptask.cli import main

from tests.core.test_rooms import ROOMS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
TUTORIAL = re.search(r"## Write a task plugin\n(.*?)\n## ", PAGE, re.DOTALL)
TEXT = TUTORIAL[1] if TUTORIAL else ""
BLOCK = re.compile(r"(?:<!-- (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
QUOTES = [(block["file"], block["text"]) for block in BLOCK.finditer(TEXT) if block["language"] != "bash"]


def test_every_file_of_the_plugin_is_quoted():
    assert TEXT.count("```") == 2 * len(BLOCK.findall(TEXT))
    plugin = ROOT / "tests/plugin"
    modules = {str(path.relative_to(ROOT)) for path in plugin.rglob("*.py")}
    assert {file for file, _ in QUOTES} == modules | {"tests/plugin/pyproject.toml"}


@pytest.mark.parametrize(("file", "text"), QUOTES, ids=[text.split("(")[0].strip() for _, text in QUOTES])
def test_a_quote_equals_a_part_of_its_file(file, text):
    source = (ROOT / file).read_text("utf-8")
    assert text in source or textwrap.indent(text, "    ") in source  # a method is quoted without its class


def test_the_whole_task_is_quoted():
    file = "tests/plugin/similarity/__init__.py"
    source = (ROOT / file).read_text("utf-8")
    quoted = "".join(text for name, text in QUOTES if name == file)
    assert quoted.split() == source[source.index("class Loss") :].split()


def test_the_first_command_writes_what_the_others_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    commands = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    arguments = shlex.split(commands[0], comments=True)[1:]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    steps = capsys.readouterr().out.split("\n\n")[1].replace("\npytest", " && pytest")
    assert steps.split("\n")[:2] == commands[1:]


def first_column(header: str) -> list[str]:
    """The code words in the first column of the table with this header."""
    table = PAGE.split(f"| {header} |")[1].split("\n\n")[0]
    return [word for line in table.splitlines()[2:] for word in re.findall(r"`([^`]+)`", line.split(" | ")[0])]


def test_the_rooms_stand_in_the_order_that_a_test_asserts():
    assert first_column("room") == list(ROOMS)


def test_the_hooks_and_paths_on_the_page_exist():
    hooks = [
        *first_column("hook"),
        "needed_positions(batch)",
        "lora_top_fraction",
        "last_only",
        "scores(hidden, batch)",
    ]
    assert all(f"`{name}`" in TEXT for name in hooks)
    assert all(hasattr(PromptedTask, name.split("(")[0]) or hasattr(Head, name.split("(")[0]) for name in hooks)
    paths = re.findall(r"`((?:core|tasks|conf|tests)/[\w./]*)`", PAGE)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
