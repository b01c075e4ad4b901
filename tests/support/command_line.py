"""Fixtures that run command lines in this process: what they print, their exit code, the config they would run."""

import logging
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from gptask.cli import main
from gptask.cli.verbs import VERBS
from hydra.core.global_hydra import GlobalHydra


@dataclass
class Ended:
    """A command line that has ended."""

    code: int
    out: str
    err: str
    configs: list[Any]
    commands: list[str | None]  # what each job would record

    @property
    def config(self) -> Any:
        assert len(self.configs) == 1, self.err
        return self.configs[0]


@pytest.fixture
def run_command(monkeypatch, capsys, tmp_path):
    """``run_command("train", "seed=3")``: nothing is trained, the validated configs are kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])

    def call(*arguments, action=None):
        configs: list[Any] = []
        commands: list[str | None] = []

        def run(config, command=None):
            commands.append(command)
            (action or configs.append)(config)

        for verb in (verb for verb in VERBS.values() if verb.composed):
            monkeypatch.setattr(f"{verb.module}.run", run)
        capsys.readouterr()
        handlers, level = logging.root.handlers[:], logging.root.level
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        logging.root.handlers[:], logging.root.level = handlers, level  # Hydra's --info changes them
        assert not GlobalHydra.instance().is_initialized()
        return Ended(stop.value.code, *capsys.readouterr(), configs, commands)

    return call


@pytest.fixture
def refused(run_command):
    """The message of a command line that a user got wrong: short, no stack trace, exit code 2."""

    def call(*arguments, **options):
        ended = run_command(*arguments, **options)
        assert ended.code == 2, ended.err
        assert not ended.configs
        assert "Traceback" not in ended.err
        assert len(ended.err.splitlines()) <= 5, ended.err
        assert ended.err.startswith("gptask: ")
        return ended.err

    return call
