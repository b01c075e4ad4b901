"""Whether the hub can be reached is known within a second; offline, no connection is tried."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from gptask.data import hub_access
from gptask.data.hub_access import hub_problem, hub_reachable


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Addresses that a connection is tried to; all of them answer."""
    addresses: list[tuple] = []
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)

    def connect(address: tuple, timeout: float) -> object:
        addresses.append(address)
        return nullcontext()

    monkeypatch.setattr(socket, "create_connection", connect)
    return addresses


def test_the_hub_itself_is_tried_by_default(connections: list) -> None:
    assert hub_reachable()
    assert connections == [("huggingface.co", 443)]


@pytest.mark.parametrize("value", ["1", "true", "ON", "Yes"])
def test_offline_no_connection_is_tried(connections: list, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert not hub_reachable()
    assert connections == []


@pytest.mark.parametrize(
    ("variable", "value", "address"),
    [
        ("HF_ENDPOINT", "https://mirror.example", ("mirror.example", 443)),
        ("HF_ENDPOINT", "http://mirror.example:8080", ("mirror.example", 8080)),
        ("HTTPS_PROXY", "http://proxy.example:3128", ("proxy.example", 3128)),
        ("https_proxy", "proxy.example:3128", ("proxy.example", 3128)),
    ],
)
def test_a_mirror_or_a_proxy_is_tried_instead(
    connections: list, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, address: tuple
) -> None:
    monkeypatch.setenv(variable, value)
    assert hub_reachable()
    assert connections == [address]


def test_a_refused_connection_means_unreachable(connections: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: tuple, timeout: float) -> object:
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert not hub_reachable()


def test_a_name_lookup_that_hangs_is_not_waited_for(connections: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(address: tuple, timeout: float) -> object:
        time.sleep(5)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    started = time.monotonic()
    assert not hub_reachable(timeout=0.1)
    assert time.monotonic() - started < 2


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes, bool], None]]:
    """``hub(answer, close)``: a hub that sends these bytes to whoever connects, one by one."""
    from huggingface_hub import constants

    ended, servers = threading.Event(), list[socket.socket]()

    def serve(listener: socket.socket, answer: bytes, close: bool) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=talk, args=(connection, answer, close), daemon=True).start()

    def talk(connection: socket.socket, answer: bytes, close: bool) -> None:
        with suppress(OSError), connection:
            if close and not connection.recv(65536):
                return  # a connection that is only tried
            for byte in answer:
                connection.sendall(bytes([byte]))
                if not close and ended.wait(0.01):
                    return
            if not close:
                ended.wait(30)

    def start(answer: bytes, close: bool) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        servers.append(listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(hub_access, "ANSWER_SECONDS", 0.2)
        threading.Thread(target=serve, args=(listener, answer, close), daemon=True).start()

    yield start
    ended.set()
    for listener in servers:
        listener.close()


HEADERS = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("answer", [b"", HEADERS % (b"200 OK", 100_000) + b" " * 100_000], ids=["silent", "trickling"])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_hub_that_accepts_and_does_not_answer_is_told(hub: Callable, answer: bytes, kind: str) -> None:
    hub(answer, False)
    assert hub_problem("some/thing", None, kind) == "the hub accepts connections but gave no answer in 0.2 s"


@pytest.mark.parametrize("status", [b"500 Internal Server Error", b"404 Not Found", b"401 Unauthorized"])
def test_a_hub_that_refuses_has_answered(hub: Callable, monkeypatch: pytest.MonkeyPatch, status: bytes) -> None:
    hub(HEADERS % (status, 2) + b"{}", True)
    monkeypatch.setattr(hub_access, "ANSWER_SECONDS", 10.0)
    assert hub_problem("some/thing", None, "model") is None


@pytest.mark.parametrize("answer", [b"", HEADERS % (b"500 Internal Server Error", 2) + b"{}"], ids=["silent", "error"])
def test_a_backbone_and_a_data_set_name_the_way_out(
    hub: Callable, answer: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gptask.config.schemas import Hub, Pretrained
    from gptask.data.hub import HubReader
    from gptask.errors import UserError
    from gptask.model.backbone.locate import locate

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    hub(answer, bool(answer))
    if answer:
        monkeypatch.setattr(hub_access, "ANSWER_SECONDS", 10.0)
    with pytest.raises(UserError, match=r"'some/model' (?s:.*)(gave no answer|500)(?s:.*)hf download some/model"):
        locate(Pretrained(source="some/model"))
    if not answer:
        with pytest.raises(UserError, match=r"'some/data' .*gave no answer.* data=files data\.train=<file>"):
            HubReader(Hub(path="some/data"), "train")


def test_no_library_asks_the_hub_while_it_is_switched_off(no_network: None) -> None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    before = constants.HF_HUB_OFFLINE
    with hub_access.hub_switched_off(), pytest.raises(OfflineModeIsEnabled):
        HfApi().repo_info("some/model")
    assert constants.HF_HUB_OFFLINE is before
