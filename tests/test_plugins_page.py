"""docs/plugins.md: its first plugin works as the page says, and the second is quoted as it is in tests/plugin."""

import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
from gptask import Head, PromptedTask
from gptask.cli import main

ROOT = Path(__file__).parents[1]
GENERATED = re.compile(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", re.DOTALL)
PAGE = GENERATED.sub("", (ROOT / "docs/plugins.md").read_text("utf-8"))
BLOCK = re.compile(r"(?:<!-- (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
BLOCKS = list(BLOCK.finditer(PAGE))
FILES = [(block["file"], block["text"]) for block in BLOCKS if block["file"]]
PYTHON = [block["text"] for block in BLOCKS if block["language"] == "python" and not block["file"]]
QUOTES = [(file, text) for file, text in FILES if file and file.startswith("tests/plugin/")]
WRITTEN = [(file, text) for file, text in FILES if file and file.startswith("answerable/")]
COMMANDS = [
    command.strip()
    for block in BLOCKS
    if block["language"] in ("bash", "shell")
    for line in block["text"].replace("\\\n", " ").splitlines()
    for command in re.sub(r"\s#\s.*", "", line).split("&&")
]
TINY = "backbone=nano backbone.n_layer=1 backbone.n_embd=16 backbone.n_head=2 backbone.vocab_size=300"
LIMITS = "data.limit.train=16 data.limit.validation=4 data.limit.test=8 trainer.accelerator=cpu"
ONE_EPOCH = "tuning=full trainer.max_epochs=1 probe=false"


# --- the plugin that the page quotes ------------------------------------------------------------------------------


def test_every_file_of_the_plugin_is_quoted():
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert sorted(QUOTES + WRITTEN) == sorted(FILES)
    assert all(block["file"] for block in BLOCKS if block["language"] not in ("bash", "shell", "text", "python"))
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


def test_the_hooks_and_paths_on_the_page_exist():
    table = PAGE.split("| hook |")[1].split("\n\n")[0]
    hooks = [
        *(word for line in table.splitlines()[2:] for word in re.findall(r"`([^`]+)`", line.split(" | ")[0])),
        "needed_positions(batch)",
        "lora_top_fraction",
        "last_only",
        "scores(hidden, batch)",
    ]
    assert len(hooks) > 15
    assert all(f"`{name}`" in PAGE for name in hooks)
    assert all(hasattr(PromptedTask, name.split("(")[0]) or hasattr(Head, name.split("(")[0]) for name in hooks)
    paths = re.findall(r"`((?:core|tasks|conf|tests)/[\w./]*)`", PAGE)
    assert len(paths) > 3
    assert [path for path in paths if not (ROOT / path).exists()] == []


# --- the plugin that the reader writes ----------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder beside which the page's packages are written, with a file in SQuAD's format."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    articles = [
        {
            "paragraphs": [
                {
                    "context": f"The tower of town {town} is {height} metres high.",
                    "qas": [{"question": f"How high is tower {town} of {height} metres?"} for _ in range(2)],
                }
                for height in (10, 20, 30)
            ]
        }
        for town in range(9)
    ]
    (folder / "train-v1.1.json").write_text(json.dumps({"data": articles}))
    return folder


def call(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0, arguments


def write_plugin(folder):
    """Write the page's files; of a module, later blocks are imports or methods that the page says to add."""
    for file, text in WRITTEN:
        path = folder / file
        if path.name == "__init__.py" and "@dataclass" not in text:
            module = path.read_text("utf-8")
            is_import = text.startswith(("import", "from"))
            text = module.replace("SAMPLE =", f"{text}\nSAMPLE =", 1) if is_import else module + indented(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def indented(text):
    return "\n" + textwrap.indent(text, "    ")


def run_example():
    """Run the page's lines of Python on a tiny backbone."""
    (text,) = PYTHON
    small = "data=data, backbone=gptask.Scratch(n_layer=1, n_embd=16, n_head=2, vocab_size=300), tuning=gptask.Full()"
    text = text.replace("data=data", small)
    assert small in text
    exec(compile(text, "docs/plugins.md", "exec"), {})


def run_script(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(arguments[0])


def test_the_first_command_writes_what_the_others_name(workplace, capsys):
    first = next(number for number, command in enumerate(COMMANDS) if command.startswith("gptask new-task"))
    call(shlex.split(COMMANDS[first])[1:])
    steps = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert steps == COMMANDS[first + 1 : first + 4]


def test_the_pair_plugin_is_written_checked_trained_and_compared(workplace, install_plugin, monkeypatch, capsys):
    install_plugin("gptask-answerable", answerable="answerable:AnswerableTask")
    points = tomllib.loads((ROOT / "tests/plugin/pyproject.toml").read_text())["project"]["entry-points"]
    install_plugin("gptask-similarity", **points["gptask.tasks"])
    write_plugin(workplace.parent)
    monkeypatch.syspath_prepend(workplace.parent / "answerable")
    for command in COMMANDS:
        if command.startswith("echo "):
            text, _, command = command.partition(" | ")
            text = shlex.split(text)[1].encode()
            monkeypatch.setattr("gptask.runs.predict_file.stdin", lambda text=text: io.BytesIO(text))
        program, *arguments = shlex.split(command)
        if program == "python":
            run_script(arguments, monkeypatch)
        elif program == "gptask" and arguments[0] != "new-task":
            fresh = arguments[0] in ("train", "evaluate") and not any(word.startswith("run=") for word in arguments)
            small = [*TINY.split(), *LIMITS.split()] if fresh else []
            call([*arguments, *small, *(ONE_EPOCH.split() if arguments[0] == "train" else [])])
        else:
            assert program in ("gptask", "make", "source", "pip", "pytest")
    run_example()
    output = capsys.readouterr().out
    assert output.count("1 of 1 tasks keep the contract") == 3
    assert re.search(r'"prediction": "(yes|no)"', output)
    assert (workplace / "outputs/answerable/preset/metrics.json").is_file()
    compared = {"first", "twice", "untrained", "mse", "huber"}
    assert set(re.findall(r"^ (\S+)", output, re.MULTILINE)) >= compared  # a row of the tables for each


def test_the_pair_plugins_tests_and_options_work(workplace, monkeypatch):
    write_plugin(workplace.parent)
    monkeypatch.syspath_prepend(workplace.parent / "answerable")
    space = runpy.run_path(str(workplace.parent / "answerable/tests/test_answerable.py"))
    tests = [name for name in space if name.startswith("test_") and name != "test_contract"]  # `tasks --check` runs it
    assert tests
    for name in tests:
        space[name]()
    task = space["AnswerableTask"](least_words=3)
    assert task.convert_row({"pair": "p | q", "label": 1}) == {
        "pair": "p | q",
        "label": 1,
        "passage": "p",
        "question": "q",
    }


def test_ruff_is_satisfied_with_the_pair_plugin(workplace):
    write_plugin(workplace.parent)
    linter = [sys.executable, "-m", "ruff", "check", "--select=E,F,UP", "--isolated", "--no-cache", "--line-length=120"]
    ended = subprocess.run(
        [*linter, workplace.parent / "answerable"], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
