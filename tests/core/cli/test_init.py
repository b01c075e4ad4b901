"""The entry point: verbs, exit codes, the boundary for errors, and what is imported on the way."""

import io
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gptask import UserError, __version__
from gptask.cli import USAGE, main
from gptask.cli.output import print_json
from gptask.cli.verbs import VERBS

from tests.support.distributions import GOOD_TASK


def test_help_lists_the_verbs(run_command):
    for arguments in ([], ["-h"], ["--help"], ["help"]):
        ended = run_command(*arguments)
        assert ended.code == 0
        assert all(verb in ended.out for verb in VERBS)


def test_version_is_printed_behind_any_verb(run_command):
    assert run_command("--version").out == f"gptask {__version__}\n"
    assert run_command("train", "--version").out == f"gptask {__version__}\n"


def test_an_unknown_verb_is_refused_with_the_nearest(refused):
    assert "available: train, evaluate, sweep" in refused("trian")
    assert "Did you mean 'train'?" in refused("trian")


def test_the_help_fits_a_terminal():
    assert max(map(len, USAGE.splitlines())) <= 120


def test_a_user_error_exits_with_2_and_no_stack_trace(run_command):
    ended = run_command("train", action=fail(UserError("mend it so")))
    assert (ended.code, ended.err) == (2, "gptask: mend it so\n")


def test_gptask_debug_shows_the_stack_trace_of_a_user_error(run_command, monkeypatch):
    monkeypatch.setenv("GPTASK_DEBUG", "1")
    ended = run_command("train", "task.lables=x")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert "omegaconf" in ended.err  # the cause of the UserError


def test_an_internal_error_shows_its_stack_trace_and_exits_with_70(run_command):
    ended = run_command("train", action=fail(ZeroDivisionError("ours")))
    assert ended.code == 70, "1 is what compare --fail-if-worse reports"
    assert "Traceback" in ended.err
    assert "ZeroDivisionError: ours" in ended.err
    assert "internal error in gptask or a plugin; please report it" in ended.err


def test_an_error_in_a_plugins_hook_names_the_plugin(run_command, install_plugin):
    source = GOOD_TASK + "    def clean(self, rows, train, counts): return [row['txt'] for row in rows]\n"
    place = install_plugin("echo-tasks", source, echo="echo_module:Good") / "echo_module.py"
    line = len(source.rstrip().splitlines())
    for raises in ("hook", "gptask"):  # ours below the plugin's own code is the plugin's too
        rows = [{}] if raises == "hook" else map(fail(ZeroDivisionError("ours")), [None])
        ended = run_command("train", "task=echo", action=lambda config, rows=rows: config.task.clean(rows, True, {}))
        assert ended.code == 70
        assert "Traceback" in ended.err
        assert ended.err.splitlines()[-1] == (
            f"gptask: task 'echo' (echo-tasks 1.2): clean() fails, {place}:{line}; the plugin's author must fix this"
        )
    ended = run_command("train", "task=echo", action=fail(ZeroDivisionError("ours")))  # the plugin is not on the way
    assert "internal error in gptask or a plugin; please report it" in ended.err


def test_an_omegaconf_error_of_the_action_is_an_internal_error(run_command):
    from omegaconf.errors import ConfigKeyError

    assert run_command("train", action=fail(ConfigKeyError("ours"))).code == 70


def test_ctrl_c_shows_its_message_and_exits_with_130(run_command):
    ended = run_command("train", action=fail(KeyboardInterrupt("stopped at step 3. Kept: last.ckpt")))
    assert (ended.code, ended.err) == (130, "\ngptask: stopped at step 3. Kept: last.ckpt\n")


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_sigterm_stops_a_verb_as_ctrl_c_does_and_exits_with_143(verb, run_command):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ended = run_command(verb, action=lambda config: signal.raise_signal(signal.SIGTERM))
    assert (ended.code, ended.err) == (143, "\ngptask: stopped by SIGTERM\n")
    assert signal.signal(signal.SIGTERM, before) == signal.SIG_DFL


def test_a_file_that_cant_be_opened_is_named(run_command):
    ended = run_command("train", action=lambda config: Path("/nowhere/x").read_text())
    assert (ended.code, ended.err) == (2, "gptask: /nowhere/x: No such file or directory\n")


def test_a_full_disk_is_no_internal_error(run_command):
    ended = run_command("train", action=fail(OSError(28, "No space left on device")))
    assert ended.code == 2
    assert "No space left" in ended.err


def test_a_failing_job_of_a_multirun_is_named_and_the_others_run(run_command):
    ran = []

    def action(config):
        if config.seed == 1:
            raise UserError("not with 1")
        ran.append(config.seed)

    ended = run_command("train", "-m", "seed=0,1,2", action=action)
    assert ended.code == 2
    assert ran == [0, 2]
    assert "gptask: job 1 (seed=1): not with 1" in ended.err


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_stream_that_the_shell_has_closed_is_no_defect(closed, monkeypatch):
    monkeypatch.setattr(sys, closed, None)
    for arguments, code in ((["--version"], 0), (["trian"], 2)):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == code


@pytest.mark.parametrize(("cause", "code"), [(BrokenPipeError, 141), (ValueError, 1)])
def test_a_reader_that_stops_is_not_reported_as_bad_news(cause, code, monkeypatch):
    def dispatch(arguments):
        try:
            raise cause
        except cause:
            sys.exit(1)  # as rich does where its output is closed

    monkeypatch.setattr("gptask.cli._dispatch", dispatch)
    with pytest.raises(SystemExit) as stop:
        main(["compare"])
    assert stop.value.code == code


def test_a_character_that_the_terminal_lacks_is_escaped(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    monkeypatch.setattr("gptask.cli.USAGE", "{verbs} – 很好\n")
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert buffer.getvalue().endswith(b"\\u2013 \\u5f88\\u597d\n")
    print_json({"text": "é 很好"})
    sys.stdout.flush()
    assert json.loads(buffer.getvalue()[buffer.getvalue().rindex(b"{") :]) == {"text": "é 很好"}


EXIT_CODES = {
    "": 0,
    "--version": 0,
    "tasks": 0,
    "tasks qa": 0,
    "-sc query=bash": 0,
    "train --help": 0,
    "train --cfg job": 0,
    "train --info defaults": 0,
    "train task=sentimen": 2,
    "train tuning.rank=x": 2,
    "train trainer.max_epocs=3": 2,
    "train task=qa task.generation.max_new_tokens=0": 2,
    "train data=files data.train=nowhere.csv": 2,
    "evaluate run=nowhere": 2,
    "predict run=nowhere input=x": 2,
    "new-task --help": 0,
    "new-task qa acme": 2,
    "sweep --help": 0,
    "sweep task=qa": 2,
    "sweep tuning.lr=interval(2,1)": 2,
    "sweep tuning.rnk=4,8": 2,
}
SCRIPT = """
import sys
from gptask.cli import main
heavy = {"torch", "transformers", "pytorch_lightning", "lightning_fabric", "datasets", "sklearn", "peft", "optuna"}
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as stop:
        sys.stderr.write(f"{line!r}: {stop.code} {sorted(heavy & sys.modules.keys())}\\n")
"""


def test_no_heavy_library_is_imported_before_there_is_work(tmp_path):
    command = [sys.executable, "-c", SCRIPT, *EXIT_CODES]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True)
    for line, code in EXIT_CODES.items():
        assert f"{line!r}: {code} []" in ended.stderr.splitlines(), ended.stderr
    assert not list(tmp_path.iterdir())


def fail(error):
    def action(config):
        raise error

    return action


def run_process(*arguments, redirection):
    command = f"{shlex.quote(sys.executable)} -m gptask {shlex.join(arguments)} {redirection}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments", [["--help"], ["tasks"]])
def test_a_full_standard_output_is_one_message(arguments):
    ended = run_process(*arguments, redirection="> /dev/full")
    assert (ended.returncode, ended.stderr) == (
        2,
        "gptask: No space left on device while writing to standard output\n",
    )


def test_a_full_standard_error_keeps_the_exit_code():
    assert run_process("trian", redirection="2> /dev/full").returncode == 2
    assert run_process("--version", redirection="2> /dev/full").returncode == 0


def test_closed_streams_change_nothing():
    for redirection in (">&-", "2>&-", ">&- 2>&- <&-"):
        assert run_process("--help", redirection=redirection).returncode == 0
