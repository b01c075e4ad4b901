"""One process at a time works in a run folder; a second one is told which."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from gptask import UserError
from gptask.runs import run_lock as module
from gptask.runs.folder import claim_run_folder
from gptask.runs.run_lock import LOCK_FILE, run_lock

HOLD = """
import sys
from pathlib import Path
from gptask.runs.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_the_second_process_is_told_who_works_in_the_folder(tmp_path, holder):
    message = rf"{tmp_path} is in use: process {holder.pid} on .*, since 20\d\d-.* \(-c {tmp_path}\), works in it"
    with pytest.raises(UserError, match=message), run_lock(tmp_path):
        pass
    holder.stdin.close()
    holder.wait()
    assert not list(tmp_path.iterdir())
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_bytes())["pid"] == os.getpid()


def test_a_kill_lets_go_of_the_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK_FILE).is_file()
    with run_lock(tmp_path):
        assert str(holder.pid) not in (tmp_path / LOCK_FILE).read_text()
    assert not list(tmp_path.iterdir())


def test_a_forked_process_does_not_keep_the_lock(tmp_path):
    lock = run_lock(tmp_path)
    lock.__enter__()
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    lock.__exit__(None, None, None)
    with run_lock(tmp_path):
        pass
    os.close(writer)
    os.waitpid(child, 0)


def test_of_processes_that_begin_at_once_exactly_one_gets_the_folder(tmp_path):
    folder, together, release = tmp_path / "new" / "run", Barrier(8), Barrier(8)

    def claim(_):
        together.wait()
        try:
            with run_lock(folder):
                release.wait()
                return "got it"
        except UserError as error:
            release.wait()
            return str(error)

    folder.mkdir(parents=True)
    with ThreadPoolExecutor(8) as threads:  # flock tells opened files apart, those of one process too
        answers = sorted(threads.map(claim, range(8)), reverse=True)
    assert answers[0] == "got it"
    assert all("is in use" in answer for answer in answers[1:])
    assert not list(folder.iterdir())


def test_a_folder_whose_holder_removes_it_is_made_again(tmp_path, monkeypatch):
    folder, acquire, calls = tmp_path / "run", module._acquire, []

    def removed_before(path):
        calls.append(path)
        if len(calls) == 1:
            path.rmdir()
        return acquire(path)

    monkeypatch.setattr(module, "_acquire", removed_before)
    with claim_run_folder("", "", None, folder):
        assert (folder / LOCK_FILE).is_file()
    assert len(calls) == 2


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    opened, calls = module._opened, []

    def removed_behind(path):
        descriptor = opened(path)
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        return descriptor

    monkeypatch.setattr(module, "_opened", removed_behind)
    with run_lock(tmp_path), pytest.raises(UserError, match="is in use"), run_lock(tmp_path):
        pass
    assert len(calls) == 3


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, None])
def test_a_file_system_without_locks_is_named_once(tmp_path, monkeypatch, caplog, number):
    def flock(*_):
        raise OSError(number, "no locks")

    module._say_there_are_no_locks.cache_clear()
    monkeypatch.setattr(module, "fcntl", None) if number is None else monkeypatch.setattr(module.fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING, "gptask"):
        for _ in range(2):
            with run_lock(tmp_path), run_lock(tmp_path):
                pass
    assert caplog.text.count("has no file locks") == 1


def test_a_lock_file_from_elsewhere_is_not_followed_and_not_trusted(tmp_path):
    (tmp_path / "letter").write_text("mine")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "letter")
    with pytest.raises(UserError, match=r"\.lock can't be written"), run_lock(tmp_path):
        pass
    assert (tmp_path / "letter").read_text() == "mine"
    (tmp_path / LOCK_FILE).unlink()
    for text, shown in (
        ("[]", "another process"),
        ('{"pid": "\\u001b[2J", "host": 1, "since": 1, "command": 1}', r"\?\[2J"),
    ):
        with run_lock(tmp_path):
            (tmp_path / LOCK_FILE).write_text(text)
            with pytest.raises(UserError, match=shown), run_lock(tmp_path):
                pass
