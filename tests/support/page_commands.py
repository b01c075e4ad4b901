"""Checks of the commands on a page, none of which does its work, and the run of a block that does on a tiny model."""

import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from gptask.cli.verbs import VERBS
from gptask.config.schemas import Train
from gptask.config.trainer_options import check_trainer_options
from gptask.plugins.discovery import discover, load_task_class
from gptask.runs.config_file import write_config
from gptask.runs.folder import numbered_alternatives
from hydra.core.config_store import ConfigStore

from tests.support.distributions import write_distribution
from tests.support.page_programs import CHECKS, UNCHECKED
from tests.support.pages import ROOT, Block, Command

TINY = ["backbone=nano", "backbone.n_layer=2", "backbone.n_embd=16", "backbone.n_head=2", "backbone.vocab_size=300"]
SMALL = ["data.limit.train=16", "data.limit.validation=4", "data.limit.test=4", "trainer.accelerator=cpu"]
SHELL = {"cat", "cp", "echo", "head", "ls", "mkdir", "printf", "sed", "tail", "wc"}  # a block that is run may use them
WORK = {  # what a verb that reads its own arguments calls once it has read and checked them
    "sweep": "gptask.cli.commands.sweep.run_sweep",
    "chat": "gptask.cli.commands.chat._load_backbone",
    "compare": "gptask.cli.commands.compare.find_runs",
    "report": "gptask.analysis.compare.records.find_runs",
}


class WorkBegins(BaseException):
    """The arguments are read and checked, and the work would begin; no handler of errors catches it."""


class PageCommands:
    """The commands of a page, in a folder of their own, where ``similarity``, the plugin in tests/plugin, is installed.

    A training that is checked leaves the config of its run, so that what follows on the page is composed with it.
    """

    def __init__(self, run_command: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, site: Path) -> None:
        self.run_command, self.monkeypatch, self.capsys = run_command, monkeypatch, capsys
        self.plugins = ["gptask", "gptask-similarity"]
        self._put_on_path(site)

    def install(self, folder: Path) -> None:
        """Make the task plugin in a folder installed, as ``pip install -e`` does."""
        name = read_project(folder)["name"]
        if name not in self.plugins:
            self.plugins.append(name)
            self._put_on_path(folder, link_plugin(folder, Path.cwd().with_name(f"site-of-{name}")))

    def _put_on_path(self, *folders: Path) -> None:
        for folder in folders:
            self.monkeypatch.syspath_prepend(folder)
        self.monkeypatch.setenv("GPTASK_PLUGINS", ",".join(self.plugins))

    def write_files(self, blocks: Sequence[Block]) -> None:
        """Write the files that blocks of the page show."""
        for block in blocks:
            if block.file:
                Path(block.file).parent.mkdir(parents=True, exist_ok=True)
                Path(block.file).write_text(block.text, "utf-8")

    # --- check ----------------------------------------------------------------------------------------------------

    def check(self, command: Command) -> None:
        """Fail for a command that would not work: its options, or what it names in the checkout."""
        program, *arguments = command.words
        program = Path(program).name
        with self.monkeypatch.context() as patch:
            for name, value in command.variables:
                patch.setenv(name, value)
            if program == "gptask":
                self.check_gptask(arguments)
            elif program in CHECKS:
                CHECKS[program](self.install, arguments)
            else:
                assert program in SHELL | UNCHECKED, f"{program} is no program that pages use (tests/support)"

    def check_gptask(self, arguments: list[str]) -> None:
        """Let gptask read and check its arguments; train and its like compose and validate their config."""
        verb = VERBS.get(arguments[0]) if arguments else None
        with self.monkeypatch.context() as patch:
            patch.setattr("gptask.training.fingerprint.run_fingerprint", lambda config: "")  # -m asks for it
            patch.setattr("gptask.cli.check.check_results", lambda task: iter(()))
            for work in WORK.values():
                patch.setattr(work, _begin)
            if verb and verb.composed:
                self._place_runs(arguments)
                if of_hydra := [word for word in arguments if re.match(r"[+~]*hydra[./]", word)]:
                    self._call([verb.name, *of_hydra, "--cfg", "hydra"])
                arguments = [word for word in arguments if word not in of_hydra]
            self._call(arguments)

    def _call(self, arguments: Sequence[str]) -> None:
        try:
            ended = self.run_command(*arguments, action=self._record)
        except WorkBegins:
            return
        assert ended.code == 0, f"gptask {shlex.join(arguments)}\n{ended.err}"

    def _place_runs(self, arguments: Sequence[str]) -> None:
        """Put a run in place for each that is read and that no command before made: of the task in outputs/<task>/."""
        for word in arguments if not any(word.startswith("server=") for word in arguments) else ():
            match = re.fullmatch(r"(?:run|resume)=(.+)", word)
            if not match or match[1] in ("null", "auto", "latest") or (Path(match[1]) / "config.yaml").exists():
                continue
            task = Path(match[1]).parent.name
            assert task in discover(()), f"{word}: no command makes this run, and its folder is not in outputs/<task>"
            self._call(["train", f"task={task}", f"folder={match[1]}"])

    def _record(self, config: Any) -> None:
        """Check what only a run itself does, and leave its config."""
        tasks = [c.task for c in config.tasks.values()] if getattr(config, "tasks", None) else [config]
        for task in (getattr(task, "task", task) for task in tasks):
            if hasattr(task, "validate"):
                task.validate()
        check_trainer_options(getattr(config, "trainer", {}))
        if isinstance(config, Train) and config.folder and not config.resume:
            _leave_config(config)

    # --- run ------------------------------------------------------------------------------------------------------

    def run_block(self, block: Block) -> str:
        """Run a block marked to be run, and return what gptask prints."""
        if block.language == "python":
            self.monkeypatch.setattr("gptask.train", _train_small)
            exec(compile(block.text, "page", "exec"), {})
            return str(self.capsys.readouterr().out)
        printed, given = "", ""
        for command in block.commands:
            if Path(command.words[0]).name == "gptask":
                given = self.run_gptask(command, given if command.piped else "")
                printed += given
            elif command.words[0] in SHELL:
                given = subprocess.run(
                    ["bash", "-c", command.text], input=given if command.piped else "", capture_output=True, text=True,
                    check=True,
                ).stdout  # fmt: skip
            else:
                self.check(command)
        return printed

    def run_gptask(self, command: Command, given: str) -> str:
        """Run a command on a tiny model and few examples, with ``given`` as standard input; return what it prints."""
        from gptask.cli import main

        arguments = tiny(command.words[1:])
        self.capsys.readouterr()
        with self.monkeypatch.context() as patch:
            for name, value in command.variables:
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
            with pytest.raises(SystemExit) as stop:
                main(arguments)
        out, err = self.capsys.readouterr()
        assert stop.value.code == 0, f"gptask {shlex.join(arguments)}\n{err}"
        for file in _written(command.words):
            assert Path(file).exists(), f"{command} writes no {file}"
        return str(out)


def tiny(words: Sequence[str]) -> list[str]:
    """Arguments with options that make a training or an evaluation take a second."""
    verb, *arguments = words
    if verb == "chat":
        return [verb, *arguments, "max_new_tokens=4"]
    if verb == "compress":
        return [verb, *(re.sub(r"^keep=.*", "keep=1", word) for word in arguments)]
    if verb not in ("train", "evaluate", "sweep") or any(re.match("run=|resume=(?!auto)", word) for word in arguments):
        return [verb, *arguments]
    if not any(word.startswith("backbone.source=") for word in arguments):
        arguments = [word for word in arguments if not re.match("backbone[.=]", word)] + TINY
        arguments = ["tuning.lr=1e-2" if re.match("tuning=(head|lora)", word) else word for word in arguments]
    arguments += SMALL
    if verb != "evaluate":
        arguments += ["trainer.max_epochs=1", "probe=false"]
    task = next((word.removeprefix("task=") for word in words if word.startswith("task=")), "sentiment")
    if "," not in task and "generation" in {f.name for f in fields(load_task_class(discover(()), task))}:
        arguments.append("task.generation.max_new_tokens=2")
    return [verb, *arguments, *(["--trials", "2"] if verb == "sweep" else [])]


def _begin(*_: Any, **__: Any) -> None:
    raise WorkBegins


def _leave_config(config: Any) -> None:
    """Leave what commands that read the run compose with: config.yaml, of each task too, and a checkpoint."""
    places = (Path(config.folder), *numbered_alternatives(Path(config.folder)))
    folder = next(path for path in places if not path.exists())
    parts = {name: replace(config, task=c.task, data=c.data, tasks={}) for name, c in config.tasks.items()}
    for path, part in {folder: config, **{folder / name: part for name, part in parts.items()}}.items():
        (path / "checkpoints").mkdir(parents=True)
        write_config(path, part)
    (folder / "checkpoints/last.ckpt").touch()


def _written(words: Sequence[str]) -> Iterator[str]:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if match := re.fullmatch(r"(?:folder|output)=(.+)", word):
            yield match[1]
        elif word == "--output":
            yield following


def _train_small(config: Any) -> Any:
    """`gptask.train` on a tiny backbone and few examples."""
    from gptask.config.schemas import Full, Limit, Scratch
    from gptask.training.train import train

    small = Scratch(n_layer=1, n_embd=16, n_head=2, vocab_size=300)
    data = replace(config.data, limit=Limit(16, 4, 4))
    trainer = config.trainer | {"max_epochs": 1, "accelerator": "cpu"}
    return train(replace(config, backbone=small, tuning=Full(), data=data, trainer=trainer, probe=False))


# --- plugins ------------------------------------------------------------------------------------------------------


def read_project(folder: Path) -> dict[str, Any]:
    """The ``project`` table of a package's pyproject.toml."""
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    return project


def link_plugin(folder: Path, site: Path) -> Path:
    """Write what an editable installation of a plugin leaves into a new folder for the path, and return that."""
    project = read_project(folder)
    site.mkdir()
    metadata = f"Name: {{}}\nVersion: {project['version']}\n"
    write_distribution(site, project["name"], metadata=metadata, **project["entry-points"]["gptask.tasks"])
    return site


@pytest.fixture(scope="session")
def example_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the path with which the plugin in tests/plugin is installed; one, as a scan takes its time."""
    return link_plugin(ROOT / "tests/plugin", tmp_path_factory.mktemp("plugins") / "site")


@pytest.fixture
def page_commands(run_command: Any, example_plugin: Path, monkeypatch: Any, capsys: Any, tmp_path: Path) -> Any:
    """The checks of a page's commands, in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setitem(ConfigStore.instance().repo, "task", {})
    before = {*sys.modules}
    yield PageCommands(run_command, monkeypatch, capsys, example_plugin)
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
