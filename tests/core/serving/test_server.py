"""The life of the process: listening, loading, draining, dying."""

import asyncio
import errno
import http.client
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
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gptask import GenerationOptions, Lora, UserError
from gptask.cli import main
from gptask.config.schemas import Serve
from gptask.serving import server as server_module
from gptask.serving.models.run_registry import RunRegistry
from gptask.serving.serve_options import listening_socket
from gptask.serving.server import Server, new_state, serve
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folders(random_run: Callable[..., Any]) -> dict[str, Path]:
    qa = QuestionAnswering(generation=GenerationOptions(max_new_tokens=60, min_new_tokens=60))
    return {
        "mood": random_run(Sentiment(labels=["negative", "positive"]), "llama", Lora(rank=2)).folder,
        "qa": random_run(qa, "llama", Lora(rank=2), seed=1).folder,
    }


def ask(port: int, path: str, body: Any = None, connection: Any = None) -> tuple[int, Any]:
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST" if body else "GET", path, body and json.dumps(body), JSON)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


class FullStream:
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


class Running:
    """A server in a thread of this process."""

    def __init__(self, options: Serve) -> None:
        listener = listening_socket(options)
        self.port = listener.getsockname()[1]
        self.state = new_state(options)
        self.server = Server(self.state, listener)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()

    def loaded(self) -> "Running":
        while not self.server.loader.ident:
            self.thread.join(0.01)
            assert self.thread.is_alive()
        self.server.loader.join(60)
        assert self.state.ready
        return self

    def wait_for_work(self) -> None:
        """Wait until the batcher, which is held up, has a request to compute."""
        deadline = time.monotonic() + 60
        while not self.state.batcher.waiting:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def ended(self) -> bool:
        self.thread.join(60)
        return not self.thread.is_alive()


@pytest.fixture
def running(folders: dict[str, Path]) -> Iterator[Callable[..., Running]]:
    started = []

    def start(**options: Any) -> Running:
        started.append(Running(Serve(**{"runs": [f"mood:{folders['mood']}"], "port": 0} | options)))
        return started[-1]

    yield start
    for running in started:
        running.server.should_exit = True
        assert running.ended()


def test_it_is_alive_while_it_loads_and_takes_requests_once_it_is_ready(running, monkeypatch, caplog):
    go, load = threading.Event(), RunRegistry.load

    def wait_and_load(registry: RunRegistry) -> None:
        assert go.wait(60)
        load(registry)

    monkeypatch.setattr(RunRegistry, "load", wait_and_load)
    caplog.set_level("INFO", "gptask")
    server = running()
    assert ask(server.port, "/health")[0] == 200
    status, answer = ask(server.port, "/v1/predict/mood", [{"text": "good"}])
    assert status == 503
    assert "still loading" in answer["error"]["message"]
    assert not server.state.ready
    go.set()
    server.loaded()
    assert ask(server.port, "/v1/predict/mood", [{"text": "good"}])[0] == 200
    assert f"gptask serves 1 run on http://127.0.0.1:{server.port}" in caplog.text
    assert re.search(r"  mood +sentiment +1 MB", caplog.text)


def test_a_signal_lets_running_requests_finish_and_a_second_one_does_not(running, monkeypatch):
    server = running().loaded()
    go, answers = threading.Event(), []
    blocked = server.state.batcher.call(lambda: go.wait(60))
    client = threading.Thread(target=lambda: answers.append(ask(server.port, "/v1/predict/mood", [{"text": "good"}])))
    client.start()
    server.wait_for_work()
    server.server.handle_exit(signal.SIGTERM, None)
    assert not server.state.ready
    left = []
    monkeypatch.setattr(server_module, "exit_now", left.append)
    server.server.handle_exit(signal.SIGINT, None)
    assert left == [130]
    with suppress(OSError, http.client.HTTPException):  # refused or reset, once it has stopped listening
        while True:
            ask(server.port, "/health")
    assert server.thread.is_alive()
    go.set()
    blocked.result(60)
    client.join(60)
    assert [status for status, _ in answers] == [200]
    assert server.ended()
    assert server.state.failure is None
    assert left == [130]


def test_a_request_that_outlasts_the_time_limit_does_not_hold_up_the_end(running, monkeypatch):
    left = []
    monkeypatch.setattr(server_module, "exit_now", left.append)
    monkeypatch.setattr(server_module, "SECONDS_TO_DRAIN", 0.01)
    server = running(timeout_s=0.3).loaded()
    go = threading.Event()
    server.state.batcher.call(lambda: go.wait(60))

    def give_up() -> None:
        with suppress(OSError, ValueError, http.client.HTTPException):  # whatever it is told
            ask(server.port, "/v1/predict/mood", [{"text": "good"}])

    client = threading.Thread(target=give_up)
    client.start()
    server.wait_for_work()
    server.server.handle_exit(signal.SIGTERM, None)
    assert server.ended()
    assert left == [0]  # the batcher still computes: its thread can't be ended otherwise
    go.set()
    client.join(60)


def test_a_signal_while_it_loads_ends_it_and_it_never_becomes_ready(running, monkeypatch):
    go, left = threading.Event(), []
    monkeypatch.setattr(server_module, "exit_now", left.append)
    monkeypatch.setattr(RunRegistry, "load", lambda registry: go.wait(60))
    server = running()
    assert ask(server.port, "/health")[0] == 200
    server.server.handle_exit(signal.SIGTERM, None)
    assert server.ended()
    assert left == [0]  # its loader still computes
    go.set()
    server.server.loader.join(60)
    assert not server.state.ready


def test_a_batcher_that_dies_ends_the_server_with_an_error(running, monkeypatch):
    server = running().loaded()
    server.state.batcher.on_death(MemoryError("no more"))
    assert not server.state.ready
    assert server.ended()
    assert isinstance(server.state.failure, RuntimeError)
    assert isinstance(server.state.failure.__cause__, MemoryError)


def test_the_exit_code_tells_that_the_batcher_has_died(folders, monkeypatch, capsys):
    monkeypatch.setattr(server_module, "load", lambda state: state.batcher.on_death(MemoryError("no more")))
    with pytest.raises(SystemExit) as stop:
        main(["serve", f"runs={folders['mood']}", "port=0"])
    assert stop.value.code == 70
    assert "MemoryError: no more" in capsys.readouterr().err


def test_connections_wait_while_no_file_is_free_and_the_log_says_so_once(running, monkeypatch, caplog):
    server, accept, failed = running().loaded(), socket.socket.accept, []

    def fail(listener: socket.socket) -> Any:
        if len(failed) >= 3:
            return accept(listener)
        failed.append(listener)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.01)
    monkeypatch.setattr(socket.socket, "accept", fail)
    assert ask(server.port, "/health")[0] == 200
    assert len(failed) == 3
    assert caplog.text.count("Too many open files") == 1


def test_a_failure_of_the_loader_that_the_end_causes_is_none(running, monkeypatch):
    go, load = threading.Event(), RunRegistry.load

    def load_late(registry: RunRegistry) -> None:
        go.wait(60)
        load(registry)

    monkeypatch.setattr(RunRegistry, "load", load_late)
    monkeypatch.setattr(server_module, "exit_now", lambda code: None)
    server = running()
    assert ask(server.port, "/health")[0] == 200
    server.state.batcher.drain(60)  # as `shutdown` does while it loads
    server.server.handle_exit(signal.SIGTERM, None)
    go.set()
    assert server.ended()
    server.server.loader.join(60)
    assert server.state.failure is None


@pytest.mark.parametrize("stream", [None, FullStream()])
def test_the_process_leaves_whatever_its_streams_are(stream, monkeypatch):
    codes = []
    monkeypatch.setattr("gptask.training.process_channel.end_process", codes.append)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        server_module.exit_now(7)
    assert codes == [7]


def test_what_can_not_be_loaded_ends_the_server_and_frees_the_port(tmp_path):
    options = Serve(runs=[str(tmp_path / "none")], port=0)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="no run folder at"):
        serve(options)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_check_prints_what_would_be_served(folders, capsys):
    serve(Serve(runs=[f"{name}:{folder}" for name, folder in folders.items()], check=True))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    backbone = lines[2][0]
    assert lines == [
        ["mood", "sentiment", "1", "MB"],
        ["qa", "qa", "1", "MB"],
        [backbone, "(bare", "backbone)", "0", "MB"],
        ["(backbone", f"{backbone})", "1", "MB"],
    ]
    with pytest.raises(UserError, match="no run folder at nowhere"):
        serve(Serve(runs="nowhere", check=True))


def test_the_command_line_reports_errors_in_a_line(capsys):
    for arguments in (["runs=nowhere", "check=true"], ["port=70000"], ["prot=1"], ["backbone.sorce=a"]):
        with pytest.raises(SystemExit) as stop:
            main(["serve", *arguments])
        error = capsys.readouterr().err
        assert (stop.value.code, error.count("\n")) == (2, 1), error
    assert "Did you mean 'source'?" in error


@pytest.fixture
def process(folders: dict[str, Path], tmp_path: Path) -> Iterator[Callable[..., tuple[Any, int]]]:
    """``process(...)``: `gptask serve` in a process of its own, and its port once it is ready."""
    processes = []

    def start(*arguments: str) -> tuple[Any, int]:
        runs = ",".join(f"{name}:{folder}" for name, folder in folders.items())
        command = [sys.executable, "-m", "gptask", "serve", f"runs=[{runs}]", "port=0", *arguments]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path))
        for line in processes[-1].stderr:
            if match := re.search(r"serves 2 runs on http://127.0.0.1:(\d+)$", line):
                return processes[-1], int(match[1])
        raise AssertionError("it has ended")

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_process_finishes_running_texts_at_sigterm_and_ends_with_0(process):
    server, port = process()
    connection, answers = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    assert ask(port, "/health", connection=connection)[0] == 200
    questions = [{"question": "is it good?", "context": "the quick brown fox"}] * 40
    body = json.dumps(questions)
    connection.request("POST", "/v1/predict/qa", body, JSON)
    assert ask(port, "/health")[0] == 200  # then the request before has been read too
    server.send_signal(signal.SIGTERM)
    response = connection.getresponse()
    answers = json.loads(response.read())
    assert response.status == 200
    assert len(answers) == 40
    error = server.communicate(timeout=60)[1]
    assert server.returncode == 0, error
    assert "Traceback" not in error
