"""Keys of caches and of finished runs follow the code they depend on, and no other."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from gptask import Task
from gptask.config.schemas import Limit
from gptask.data import code_hash as hashes
from gptask.data.code_hash import CODE_OF_ENCODING, CODE_OF_EXAMPLES, code_hash
from gptask.data.datamodule import DataModule
from gptask.plugins.discovery import discover
from gptask.training.builder import build_corpus
from gptask.training.fingerprint import CODE_OF_RUN
from gptask.training.train import train
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config
from tests.support.tiny_models import TEXT, scratch_backbone

ROOT = Path(str(files("gptask")))
AROUND_A_RUN = {  # what a training executes besides: it decides no weight, prediction or metric
    "gptask",
    "gptask.data.code_hash",  # the lists themselves
    "gptask.data.label_report",
    *(f"gptask.config.{name}" for name in ("conversion", "engine", "overrides", "trainer_options", "verb_schemas")),
    "gptask.config.yaml_text",
    *(f"gptask.plugins.{name}" for name in ("discovery", "isolation", "compatibility", "deprecation", "protocols")),
    *("gptask.model.backbone.hf_logging", "gptask.model.backbone.locate"),
    *(
        f"gptask.runs.{name}"
        for name in ("atomic_write", "config_file", "folder", "manifest", "markdown", "provenance", "reproduce")
    ),
    *("gptask.runs.run", "gptask.runs.cards", "gptask.runs.run_lock"),
    *(f"gptask.training.{name}" for name in ("checkpoint_content", "interrupts", "process_start", "process_threads")),
    *("gptask.training.process_channel", "gptask.training.process_watch"),
    *(f"gptask.training.{name}" for name in ("baseline", "callbacks", "cost_probe", "fingerprint", "loggers")),
}


def executed(part: Callable[[], Any]) -> set[str]:
    """The modules of gptask in which a function was called while ``part`` ran."""
    names: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and frame.f_code.co_name != "<module>":
            names.add(".".join(("gptask", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"))

    before = sys.gettrace()
    sys.settrace(note)
    try:
        part()
    finally:
        sys.settrace(before)
    return names


def unlisted(names: set[str], listed: tuple[str, ...] | set[str]) -> set[str]:
    packages = tuple(f"{known}." for known in listed if known != "gptask")  # else all would be listed
    return {name for name in names if name not in listed and not name.startswith(packages)}


@pytest.mark.parametrize("name", sorted(discover(())))
def test_all_code_that_reads_and_encodes_a_built_in_task_is_listed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptask.config.schemas import Sample

    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path))  # nothing is answered from a cache
    tokenizer = scratch_backbone([TEXT] * 3).tokenizer
    plugin = discover({name})[name]
    assert plugin.task is not None
    task, options = plugin.task(), Sample(limit=Limit(train=4, validation=2, test=2))
    corpus = build_corpus(task, options, 13)
    known = {"gptask", "gptask.data.code_hash"}  # lazy public names, and the lists themselves
    assert not unlisted(executed(lambda: corpus.split("train")), {*CODE_OF_EXAMPLES, *known})
    task = replace(task, **task.prepare(corpus.all_rows("train")))
    data = DataModule(task, corpus, tokenizer, options, 13)
    assert not unlisted(executed(lambda: data.items("train")), {*CODE_OF_ENCODING, *known})


def test_all_code_that_decides_a_run_is_listed(tmp_path: Path) -> None:
    config = small_config(tmp_path, trainer={"max_steps": 1, "accelerator": "cpu"}, probe=True)
    names = executed(lambda: train(config))
    assert "gptask.training.train" in names
    assert not unlisted(names, {*CODE_OF_RUN, *AROUND_A_RUN})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of gptask's code, which hashes are taken from."""
    copy = shutil.copytree(ROOT, tmp_path / "gptask", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(hashes, "files", lambda name: copy)
    return copy


def keys() -> list[str]:
    return [code_hash(Sentiment(), modules) for modules in (CODE_OF_EXAMPLES, CODE_OF_ENCODING, CODE_OF_RUN)]


def test_an_edit_of_the_model_card_changes_no_key(package: Path) -> None:
    before = keys()
    file = package / "runs/cards/model_card.py"
    file.write_text(file.read_text() + "\n# edited\n")
    assert keys() == before


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("data/columns.py", [True, True, True]),
        ("model/backbone/chat_template.py", [False, True, True]),
        ("training/module.py", [False, False, True]),
        ("model/engine/linear.py", [False, False, True]),
    ],
)
def test_an_edit_changes_the_keys_of_what_depends_on_it(package: Path, file: str, changed: list[bool]) -> None:
    before = keys()
    (package / file).write_text((package / file).read_text() + "\n# edited\n")
    assert [now != then for now, then in zip(keys(), before, strict=True)] == changed


PLUGIN = """
from dataclasses import dataclass
from gptask_tasks.classification import Classification
{imports}
@dataclass
class Shouting(Classification):
    pass  # {comment}
"""


def module(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop(name, None)
    return __import__(name, fromlist=["Shouting"]).Shouting()


def test_an_edit_of_the_tasks_code_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "shouting_task.py"
    file.write_text(PLUGIN.format(imports="", comment="one"))
    task = module(tmp_path, "shouting_task", monkeypatch)
    before = code_hash(task, CODE_OF_EXAMPLES)
    assert code_hash(task, CODE_OF_EXAMPLES) == before
    (tmp_path / "unrelated.py").write_text("")
    assert code_hash(task, CODE_OF_EXAMPLES) == before
    file.write_text(PLUGIN.format(imports="", comment="two"))
    assert code_hash(task, CODE_OF_EXAMPLES) != before


def test_an_edit_beside_a_task_in_a_package_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shouting_package"
    package.mkdir()
    (package / "__init__.py").write_text(PLUGIN.format(imports="from .helper import x", comment=""))
    (package / "helper.py").write_text("x = 1\n")
    task = module(tmp_path, "shouting_package", monkeypatch)
    before = code_hash(task, CODE_OF_EXAMPLES)
    (package / "helper.py").write_text("x = 2\n")
    assert code_hash(task, CODE_OF_EXAMPLES) != before


def test_a_class_without_a_file_is_never_answered_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(Classification):
        """As in a notebook."""

    monkeypatch.setattr(Typed, "__module__", "__notebook__")
    monkeypatch.setitem(sys.modules, "__notebook__", type(sys)("__notebook__"))
    assert code_hash(Typed(), CODE_OF_EXAMPLES) != code_hash(Typed(), CODE_OF_EXAMPLES)
