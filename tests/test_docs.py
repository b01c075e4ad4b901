"""README.md and docs/: the commands are right, the marked blocks run, names and links exist, every page is listed."""

import ast
import re
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from gptask.cli.commands.tasks import task_options
from gptask.cli.verbs import VERBS
from gptask.config import schemas, trainer_options
from gptask.config.engine import Fast
from gptask.plugins.discovery import discover
from similarity import Similarity

from tests.support.pages import PAGES, ROOT, Command, github_anchors, inline_code, links, parse_commands, read_blocks

README = ROOT / "README.md"
TEXTS = {str(page.relative_to(ROOT)): page.read_text("utf-8") for page in PAGES}
BLOCKS = {name: read_blocks(text) for name, text in TEXTS.items()}
RUN = [(name, block.line) for name, blocks in BLOCKS.items() for block in blocks if block.is_run]
NO_JOB = {"architecture", "index", "installation", "lab-notes", "performance", "results"}  # no block of theirs is run


def commands_of(name: str) -> list[Command]:
    return [command for block in BLOCKS[name] if block.language == "bash" for command in block.commands]


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_the_commands_of_a_page_are_accepted(name, page_commands):
    page_commands.write_files(BLOCKS[name])
    for command in commands_of(name):
        page_commands.check(command)


@pytest.mark.parametrize(("name", "line"), RUN)
def test_a_marked_block_runs(name, line, page_commands):
    page_commands.write_files(BLOCKS[name])
    Path("reviews.txt").write_text("A fine day\nA dull book\n")
    Path("reviews.jsonl").write_text(
        "".join(f'{{"text": "{word} {n}", "label": "{word}"}}\n' for n in range(10) for word in ("good", "bad"))
    )
    (block,) = (block for block in BLOCKS[name] if block.line == line)
    assert not re.search("not compared|not tested", page_commands.run_block(block))


def test_a_job_s_page_has_a_block_that_is_run():
    jobs = [name for name in TEXTS if Path(name).stem not in NO_JOB]
    assert [name for name in jobs if name not in dict(RUN)] == []
    assert {block.language for name, blocks in BLOCKS.items() for block in blocks if block.is_run} <= {"bash", "python"}


def test_the_readme_runs_every_verb():
    verbs = {command.words[1] for command in commands_of("README.md") if command.words[0] == "gptask"}
    assert verbs >= {*VERBS}


@pytest.mark.parametrize("name", TEXTS)
def test_python_blocks_use_names_that_exist(name):
    for block in (block for block in BLOCKS[name] if block.language == "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gptask"):
                module = import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gptask":
                assert hasattr(import_module("gptask"), node.attr), f"gptask.{node.attr}"


# --- the checks find what is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("gptask trian task=qa", "unknown verb 'trian'"),
        ("gptask train task=q", "unknown task 'q'"),
        ("gptask train trainer.max_epoch=2", "max_epoch"),
        ("gptask train task=qa task.stride=-1", "stride"),
        ("echo '{}' | gptask predict run=outputs/qa/first inptu=-", "inptu"),
        ("GPTASK_ENGINE=quick gptask train", "quick"),
        ("gptask train -m task=sentiment,sentimental", "sentimental"),
        ("gptask train -m seed=1,2 hydra/launcher=joblib hydra.launcher.n_job=2", "n_job"),
        ("gptask evaluate run=outputs/qa/first task.labels=[a]", "labels"),
        ("gptask evaluate run=first", "no command makes this run"),
        ("gptask train folder=outputs/a/b task=qa\ngptask evaluate run=outputs/a/b task=sentiment", "leave task= out"),
        ("gptask export run=outputs/qa/first outptu=there", "outptu"),
        ("gptask sweep task=qa tuning.rank=4,8 --trails 3", "--trails"),
        ("gptask compare outputs --basline outputs/qa/first", "--basline"),
        ("gptask report outputs/qa/first --out qa.html", "--out"),
        ("gptask chat smollm2 temprature=0.2", "temprature"),
        ("gptask tasks similarity smile --check", "unknown task 'smile'"),
        ("gptask new-task toxicity ../acme --kind scores", "--kind"),
        ("make tset", "tset"),
        ("python tests/benchmarks/benhc.py", "benhc"),
        ("pip install 'gptask[joblob]'", "joblob"),
        ("pip install -e ../acme", "acme"),
        ("pytest tests/tasks/test_qqa.py", "test_qqa"),
        ("gptsk train", "gptsk"),
    ],
)
def test_a_wrong_command_fails(command, message, page_commands):
    *before, wrong = parse_commands(command)
    for right in before:
        page_commands.check(right)
    with pytest.raises(AssertionError, match=re.escape(message)):
        page_commands.check(wrong)


def test_right_commands_pass(page_commands):
    text = """
    gptask new-task toxicity ../acme && pip install -e '../acme[dev]'   # don't stop
    gptask train task=toxicity folder=outputs/toxicity/first ; gptask predict run=outputs/toxicity/first input=new.txt
    gptask tasks --check toxicity similarity | head -3 > checked.txt
    gptask train 'tasks=[qa,mine:trec]' tasks.mine.task.readings=2 folder=outputs/both
    gptask evaluate run=outputs/both task=mine \\
      split=validation
    gptask train resume=outputs/both trainer.max_epochs=10
    gptask train -m seed=1,2 folder=outputs/sentiment/seeds hydra/launcher=joblib hydra.launcher.n_jobs=2
    gptask evaluate run=outputs/sentiment/seeds_1
    GPTASK_ENGINE=fast,packing=off gptask chat outputs/generation/first system="Answer in one sentence."
    gptask compare 'outputs/qa/*' --baseline outputs/qa/first --metric em --format markdown 2>&1 | wc -l
    gptask train --help
    gptask train task=qa data=files data.train=squad.json#data --cfg job
    python -m pytest tests/tasks/test_qa.py::test_it
    make bench TIER=full
    """
    for command in parse_commands(text):
        page_commands.check(command)
    assert not list(Path("outputs").glob("**/metrics.json"))


@pytest.mark.parametrize("text", ["gptask predict run=<run> input=-", "echo 'open"])
def test_shell_that_is_no_command_is_refused(text):
    with pytest.raises(ValueError, match="what is this"):
        list(parse_commands(text))


def test_a_block_that_fails_when_run_fails(page_commands):
    text = (
        "<!-- run: so -->\n```bash\ngptask train task=sentiment\necho hello | gptask predict run=nowhere input=-\n```\n"
    )
    (block,) = read_blocks(text)
    assert block.is_run
    with pytest.raises(AssertionError, match="no run folder at nowhere"):
        page_commands.run_block(block)


# --- names, links, pages --------------------------------------------------------------------------------------------


@cache
def known_options() -> set[str]:
    """The full names of all options, and of the dictionaries and groups of options among them."""
    tasks = [Similarity, *(plugin.task for plugin in discover().values() if plugin.task)]
    names = {f"task.{option.name}" for task in tasks for option in task_options(task)}
    names |= {f"trainer.{name}" for name in trainer_options.trainer_parameters()}
    names |= {f"engine.{f.name}" for f in fields(Fast)}
    for group, members in schemas.GROUP_SCHEMAS.items():
        names |= {f"{group}.{name}" for member in members.values() for name in option_names(member)}
    names |= {*option_names(schemas.Train)}
    return names | {name.rpartition(".")[0] for name in names}


def option_names(schema: Any) -> list[str]:
    names = []
    for f in fields(schema):
        default = f.default_factory() if f.default_factory is not MISSING else None
        names += [f"{f.name}.{name}" for name in option_names(default)] if is_dataclass(default) else [f.name]
    return names


GROUPS = "data|task|tuning|trainer|engine|mixing|schedule|early_stopping|optimizer|logger"
OPTION = re.compile(rf"(?P<key>(?:{GROUPS})(?:\.[a-z_]+)+)(?:=.*)?")
FREE = ("data.columns.", "data.labels.", "task.label_words.")  # dictionaries, whose keys are the user's
FILE = re.compile(r"\.(?:csv|jsonl?|md|py|txt|yaml)$")


@pytest.mark.parametrize("name", TEXTS)
def test_options_in_the_text_exist(name):
    keys = [option["key"] for code in inline_code(TEXTS[name]) if (option := OPTION.fullmatch(code))]
    of_the_page = re.findall(r"^ +(\w+): .*= option\(", TEXTS[name], re.MULTILINE)  # of a plugin that it writes
    known = known_options() | {f"task.{option}" for option in of_the_page}
    assert [key for key in keys if key not in known and not key.startswith(FREE) and not FILE.search(key)] == []


def test_the_readme_is_a_shop_window():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_links_of_the_readme_lead_somewhere():
    """`make docs` checks those of docs/."""
    own_files = [link for link in links(TEXTS["README.md"]) if not re.match(r"https?://", link)]
    for link in own_files:
        path, _, anchor = link.partition("#")
        target = ROOT / path if path else README
        assert target.exists(), link
        assert not anchor or anchor in github_anchors(target.read_text("utf-8")), link


def test_every_page_is_in_the_navigation_and_on_the_index():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    pages = {page.name for page in PAGES} - {"README.md"}
    assert pages == {page for entry in navigation for page in entry.values()}
    linked = {link.partition("#")[0] for link in links(TEXTS["docs/index.md"])}
    linked |= {link.partition("#")[0].removeprefix("docs/") for link in links(TEXTS["README.md"])}
    assert pages - {"index.md"} <= linked
