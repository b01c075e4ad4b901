"""Completion in a real bash: the verb, then groups, choices, options, values and files behind it."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gptask.cli.hydra.completion import candidates

SCRIPTS = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gptask tr", ["train "]),
        ("gptask tasks sent", ["sentiment "]),
        ("gptask new-task toxicity --c", []),
        ("gptask train ta", ["task.", "task=", "tasks="]),
        ("gptask train task=se", ["task=sentiment "]),
        ("gptask train trainer.max_e", ["trainer.max_epochs="]),
        ("gptask train trainer.acc", ["trainer.accelerator=", "trainer.accumulate_grad_batches="]),
        ("gptask train trainer.call", []),  # set by gptask
        ("gptask train task=qa task.generation.num", ["task.generation.num_beams="]),
        ("gptask train backbone=nano backbone.n_l", ["backbone.n_layer="]),
        (
            "gptask train tuning=",
            ["tuning=full ", "tuning=head ", "tuning=lora ", "tuning=lora_half ", "tuning=lora_short "],
        ),  # no schemas
        ("gptask train schedule.name=c", ["schedule.name=constant ", "schedule.name=cosine "]),
        ("gptask train engine=", ["engine=fast ", "engine=openvino ", "engine=reference "]),
        ("gptask export engine.pa", ["engine.packing="]),
        ("gptask train engine.packing=", ["engine.packing=false ", "engine.packing=true "]),
        ("gptask train probe=", ["probe=false ", "probe=true "]),
        ("gptask train trainer.devices=2 'task.prompt={text}: it'\"'s\" tuning.r", ["tuning.rank="]),
        ("gptask evaluate sh", ["shots="]),
        ("gptask train sh", []),
        ("gptask train --mul", ["--multirun "]),
        ("gptask train data.train=rev", []),  # files are left to the shell
        ("gptask train task=nonsense tuning.", []),
        ("gptask nonsense ta", []),
        ("gptask sweep tuning.lr=interval(1,2) task=se", ["task=sentiment "]),
        ("gptask sweep task=qa --trials 3 task.generation.num", ["task.generation.num_beams="]),
        ("gptask sweep --sam", ["--sampler "]),
        ("gptask sweep --pruner ", ["median ", "hyperband ", "none "]),
        ("gptask sweep --space sp", []),
    ],
)
def test_the_last_word_is_completed(line, expected):
    assert candidates(line) == expected


def test_every_verb_is_offered_and_no_internal_group():
    assert {"train ", "evaluate ", "predict ", "export ", "tasks "} <= set(candidates("gptask "))
    assert not [name for name in candidates("gptask train ") if name.startswith(("hydra", "saved"))]


@pytest.mark.skipif(not (SCRIPTS / "gptask").exists(), reason="the console script is not installed")
def test_bash_completes_behind_the_verb(tmp_path):
    (tmp_path / "my reviews.csv").touch()
    shell = Bash(tmp_path)
    try:
        shell.send('eval "$(gptask -sc install=bash)"; echo re""ady\n')
        shell.expect("ready")
        for typed, completed in {
            "gptask tr\t": "gptask train ",
            "task=se\t": "task=sentiment ",
            "trainer.max_e\t": "trainer.max_epochs=",
            "3 data.train=my\t": "data.train=my\\ reviews.csv",
        }.items():
            shell.send(typed)
            shell.expect(completed)
    finally:
        shell.close()


@pytest.mark.skipif(not (SCRIPTS / "gptask").exists(), reason="the console script is not installed")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(run_command, shell, tmp_path):
    script = run_command("-sc", f"install={shell}").out
    assert "gptask" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script + run_command("-sc", "uninstall=bash").out, text=True, check=True)


def test_other_shells_are_refused(refused):
    assert "bash, zsh, fish" in refused("-sc", "install=tcsh")
    assert "takes install=<shell>" in refused("-sc")


def test_query_returns_full_words_to_a_shell_without_word_breaks(run_command, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "gptask train task=se")
    monkeypatch.delenv("COMP_WORDBREAKS", raising=False)
    assert run_command("-sc", "query=fish").out == "task=sentiment\n"
    monkeypatch.setenv("COMP_WORDBREAKS", " \t\n\"'><=;|&(:")
    assert run_command("-sc", "query=bash").out == "sentiment \n"


class Bash:
    """An interactive bash in a pseudo-terminal, with gptask on its path and without the user's settings."""

    def __init__(self, folder):
        self.terminal, follower = pty.openpty()
        environment = os.environ | {
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "TERM": "dumb",
            "PS1": "> ",
            "INPUTRC": "/dev/null",
            "HISTFILE": "",
        }
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(follower)
        self.seen = ""

    def send(self, text):
        os.write(self.terminal, text.encode())

    def expect(self, text, seconds=60):
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.terminal], [], [], 0.2)[0]:
                self.seen += os.read(self.terminal, 4096).decode(errors="replace")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)
