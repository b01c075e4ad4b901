"""Whether the hub can be reached is known within a second; offline, no connection is tried."""

import socket
import time
from contextlib import nullcontext

import pytest
from gptask.data.hub_access import hub_reachable


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
