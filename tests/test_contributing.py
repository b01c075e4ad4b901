"""The tutorial in CONTRIBUTING.md quotes the example plugin as it is."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
from gptask.cli import main

ROOT = Path(__file__).parents[1]
TUTORIAL = re.search(r"## Write a task plugin\n(.*?)\n## ", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
TEXT = TUTORIAL[1] if TUTORIAL else ""
BLOCK = re.compile(r"(?:<!-- (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
QUOTES = [(found["file"], found["text"]) for found in BLOCK.finditer(TEXT) if found["language"] != "bash"]


def test_code_is_quoted_and_every_part_of_the_plugin_is_shown():
    assert TEXT.count("```") == 2 * len(BLOCK.findall(TEXT))
    plugin = ROOT / "tests/plugin"
    modules = {str(path.relative_to(ROOT)) for path in plugin.rglob("*.py")}
    assert {file for file, _ in QUOTES} == modules | {"tests/plugin/pyproject.toml"}


@pytest.mark.parametrize(("file", "text"), QUOTES, ids=[text.split("(")[0].strip() for _, text in QUOTES])
def test_a_quote_stands_in_its_file(file, text):
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
    words = shlex.split(commands[0], comments=True)
    with pytest.raises(SystemExit) as stop:
        main(words[1:])
    assert stop.value.code == 0
    steps = capsys.readouterr().out.split("\n\n")[1].replace("\npytest", " && pytest")
    assert steps.split("\n")[:2] == commands[1:]
