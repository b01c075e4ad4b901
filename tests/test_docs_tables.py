"""The generated parts of the pages: the same for every reader, and complete."""

import sys
from pathlib import Path

import pytest
from gptask.cli.verbs import VERBS
from gptask.config.schemas import GROUP_SCHEMAS

from tests.support.distributions import GOOD_TASK

GROUP_MEMBERS = [
    "backbone=nano",
    "data=files",
    "data=hub",
    "data=sample",
    "engine=fast",
    "logger=mlflow",
    "logger=wandb",
    "mixing",
    "schedule",
    "early_stopping",
    "task.cleaning",
    "task.generation",
    "trainer",
    "tuning=full",
    "tuning=head",
    "tuning=lora",
]


@pytest.fixture
def generate(monkeypatch):
    """``generate("help_text", "train")``: what the function writes into a page."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "docs")
    import tables

    written = []
    monkeypatch.setitem(sys.modules, "cog", type("Cog", (), {"outl": staticmethod(written.append)}))

    def call(function, *arguments):
        getattr(tables, function)(*arguments)
        return written.pop()

    return call


def cells(table):
    return [line.strip("| ").split(" | ") for line in table.strip().splitlines()]


@pytest.mark.parametrize(
    "call", [("groups",), ("help_text", "train"), ("help_text", "chat"), ("help_text", "compare"), ("help_text",)]
)
def test_the_reader_s_environment_changes_nothing(call, generate, monkeypatch, install_plugin):
    before = generate(*call)
    install_plugin("dist-good", GOOD_TASK, good="good_task:Good")
    for name, value in {"COLUMNS": "40", "GPTASK_ENGINE": "reference", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    assert generate(*call) == before
    assert "\x1b" not in before


@pytest.mark.parametrize("verb", VERBS)
def test_a_help_text_is_the_program_s(verb, generate, run_command):
    text = generate("help_text", verb)
    assert text.startswith("\n```text\n")
    first, *_, last = text.strip().splitlines()[1:-1]
    shown = run_command(verb, "--help").out
    assert first.split()[-1] in shown
    assert last in shown


@pytest.mark.parametrize("what", GROUP_MEMBERS)
def test_every_option_is_explained(what, generate):
    header, _, *rows = cells(generate("options", what))
    assert header == ["option", "default", "meaning"]
    unexplained = [name for name, *_, meaning in rows if meaning in ("", "|")]
    assert unexplained == []


def test_a_task_has_its_own_options_and_the_shared_ones_that_it_changes(generate):
    rows = {name: rest for name, *rest in cells(generate("task_options", "qa"))}
    assert rows["`task.stride`"] == ["`128`", "span: tokens by which windows over a long context overlap"]
    assert rows["`task.generation.stop`"][0] == '`["\\n"]`'
    assert "`task.generation.num_beams`" not in rows


def test_a_task_s_fields(generate):
    header, _, *rows = cells(generate("task_fields", "qa"))
    assert header == ["field", "kind", "required", "target", "meaning"]
    assert {name for name, *_ in rows} == {"`context`", "`question`", "`answers`", "`answer_start`"}


def test_the_groups_are_those_of_train(generate):
    rows = {name: rest for name, *rest in cells(generate("groups"))}
    assert {f"`{group}`" for group in GROUP_SCHEMAS} <= {*rows}
    assert rows["`tuning`"][0] == "`lora`"
    assert "`lora_half`" in rows["`tuning`"][1]


def test_signs_of_markdown_are_escaped(generate):
    (row,) = (row for row in cells(generate("options", "data=files")) if row[0] == "`data.on_bad`")
    assert row[2].startswith(r"stop \| skip")


@pytest.mark.parametrize(("function", "argument"), [("options", "tunning"), ("task_options", "q"), ("help_text", "go")])
def test_an_unknown_name_is_an_error(function, argument, generate):
    with pytest.raises(Exception, match=argument):
        generate(function, argument)
