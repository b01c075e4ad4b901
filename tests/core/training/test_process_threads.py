"""The watches of a run's processes tell each other of signals and deaths, whatever the main threads do."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gptask.errors import Interrupted, Terminated, UserError
from gptask.training import process_threads, process_watch
from gptask.training.interrupts import interruptible
from gptask.training.process_threads import MainWatch, MemberWatch, ProcessFailed
from gptask.training.process_watch import ADDRESS, begin_watch, watched

pytestmark = pytest.mark.usefixtures("usual_handlers")
MEMBER = """
import sys, time
from gptask.errors import UserError
from gptask.training.process_watch import watched
with watched():
    print("watched", flush=True)
    {work}
"""


@pytest.fixture
def members() -> Iterator[list["subprocess.Popen[str]"]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def start_member(
    members: list["subprocess.Popen[str]"], watch: MainWatch, work: str = "sys.stdin.read()", rank: int = 1
):
    """Start a second process, which is watched when this returns."""
    variables = os.environ | {ADDRESS: watch.address, "LOCAL_RANK": str(rank)}
    pipe = subprocess.PIPE
    member = subprocess.Popen(
        [sys.executable, "-c", MEMBER.format(work=work)], env=variables, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    members.append(member)
    assert member.stdout
    assert member.stdout.readline() == "watched\n"
    return member


def run_rank_0(members: list["subprocess.Popen[str]"], work: str = "sys.stdin.read()", **options: Any) -> None:
    """Be rank 0 beside a member, which it ``starts`` itself or not, and do what ``then`` does."""
    with interruptible(), watched():
        begin_watch(watch := MainWatch())
        member = start_member(members, watch, work, options.get("rank", 1))
        if options.get("starts"):
            watch.processes[1] = member  # type: ignore[assignment]
        options.get("then", lambda _: None)(member)
        threading.Event().wait(60)
        pytest.fail("nothing stops the main thread")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_threads, "OWN_ERROR_FIRST", 0.05)


def test_a_killed_member_stops_the_main_thread_of_rank_0(members):
    with pytest.raises(
        ProcessFailed, match=r"rank 1 \(process \d+\) was killed by SIGKILL .*: all processes are ended"
    ):
        run_rank_0(members, starts=True, then=subprocess.Popen.kill)


def test_a_member_of_another_launcher_that_dies_is_known_by_its_connection(members):
    with pytest.raises(ProcessFailed, match=r"rank 3 \(process \d+\) has died: all .* The same command begins again"):
        run_rank_0(members, rank=3, then=subprocess.Popen.kill)


@pytest.mark.parametrize(("number", "stop"), [(signal.SIGTERM, Terminated), (signal.SIGINT, Interrupted)])
def test_a_signal_to_a_member_stops_rank_0_and_then_the_member_with_its_code(number, stop, members, caplog):
    with pytest.raises(stop) as stopped:
        run_rank_0(members, then=lambda member: member.send_signal(number))
    assert type(stopped.value) is stop
    assert members[0].wait(20) == 128 + number
    assert f"rank 1 (process {members[0].pid}) got {signal.Signals(number).name}: all processes stop" in caplog.text


@pytest.mark.parametrize("act", [lambda member: member.send_signal(signal.SIGTERM), subprocess.Popen.kill])
def test_an_interrupt_that_does_not_wake_the_main_thread_is_sent_again(act, members, monkeypatch):
    sent = []

    def lose_the_first(thread: int, number: int) -> None:
        sent.append(number)
        if len(sent) > 1:
            pthread_kill(thread, number)

    pthread_kill = signal.pthread_kill
    monkeypatch.setattr(process_threads, "AGAIN", 0.05)
    monkeypatch.setattr(signal, "pthread_kill", lose_the_first)
    with pytest.raises((Interrupted, Terminated, ProcessFailed)):
        run_rank_0(members, then=act)
    assert len(sent) > 1


def test_an_error_of_a_member_is_reported_by_rank_0(members):
    with pytest.raises(ProcessFailed, match=r"rank 1 \(process \d+\) failed: bad data: all"):
        run_rank_0(members, "raise UserError('bad data')")
    assert members[0].wait(20) == process_threads.FAILED
    assert members[0].stderr.read() == ""


def fail(error: Exception) -> Callable[[object], None]:
    def then(_: object) -> None:
        raise error

    return then


def test_an_error_of_rank_0_stays_its_own_and_ends_the_members(members):
    with pytest.raises(UserError, match=r"^bad data$"):
        run_rank_0(members, then=fail(UserError("bad data")))
    assert members[0].wait(20) == process_threads.FAILED


def test_what_fails_in_rank_0_since_a_member_died_names_the_member(members, monkeypatch):
    monkeypatch.setattr(process_threads, "OWN_ERROR_FIRST", 20)

    def fail_after(member: "subprocess.Popen[str]") -> None:
        assert member.stdin
        member.stdin.close()
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(ProcessFailed, match=r"rank 1 .* ended with exit code 3"):
        run_rank_0(members, "sys.stdin.read(); import os; os._exit(3)", starts=True, then=fail_after)


def test_work_that_is_done_in_all_processes_ends_none(members, caplog):
    with interruptible(), watched():
        begin_watch(watch := MainWatch())
        member = start_member(members, watch, "pass")
        watch.processes[1] = member
    assert member.wait(20) == 0
    assert not caplog.text
    assert process_watch.current_watch() is None
    assert signal.set_wakeup_fd(-1) == -1


def test_a_member_ends_when_rank_0_dies(members):
    watch = MainWatch()
    watch.start()
    member = start_member(members, watch)
    watch.close()  # as the system does
    assert member.wait(20) == process_threads.FAILED
    assert re.search(
        r"gptask: rank 0 has died: rank 1 \(process \d+\) is ended\. The same command", member.stderr.read()
    )


def test_a_member_that_is_done_tells_of_the_end_of_rank_0(members):
    watch = MainWatch()
    watch.start()
    member = start_member(members, watch, "pass")
    while not (1 in watch.members and watch.members[1].done):
        time.sleep(0.01)
    watch.close()
    assert member.wait(20) == process_threads.FAILED
    assert "rank 0 has died" in member.stderr.read()


def test_a_member_that_finds_no_rank_0_says_so():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ProcessFailed, match=r"rank 0 has died: rank 1 is ended\. The same"):
        MemberWatch(1, f"127.0.0.1:{port}:token")


@pytest.mark.parametrize("message", [b'{"token": "wrong", "rank": 1, "pid": 1}\n', b"GET / HTTP/1.1\r\n\r\n"])
def test_a_stranger_is_sent_away(message):
    with watched():
        begin_watch(watch := MainWatch())
        host, port, _ = watch.address.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as stranger:
            stranger.sendall(message + json.dumps({"signal": 15}).encode() + b"\n")
            assert stranger.recv(10) == b""
        assert not watch.members


def test_a_main_thread_that_does_not_return_is_ended_after_the_grace():
    program = """
import threading, signal, os
from gptask.training import process_threads, process_watch as w
process_threads.GRACE = 0.1
signal.signal(signal.SIGTERM, lambda *_: None)
with w.watched():
    w.begin_watch(process_threads.MainWatch())
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(60)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 143
    assert re.search(
        r"rank 0 \(process \d+\) got SIGTERM: all processes are ended, as rank 0 did not stop", ended.stderr
    )


def test_a_forked_process_hears_no_signal_and_keeps_no_connection():
    with interruptible(), watched():
        begin_watch(MainWatch())
        if not (pid := os.fork()):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
