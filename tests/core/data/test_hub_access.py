"""Whether the hub can be reached is known within a second, and not asked where it is not to be."""

import socket
import time
from contextlib import nullcontext

import pytest
from gptask.data.hub_access import hub_reachable


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Addresses that a connection was tried to; all of them answer."""
    addresses: list[tuple] = []
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)

    def connect(address: tuple, timeout: float) -> object:
        addresses.append(address)
        return nullcontext()

    monkeypatch.setattr(socket, "create_connection", connect)
    return addresses


def test_the_hub_is_asked(asked: list) -> None:
    assert hub_reachable()
    assert asked == [("huggingface.co", 443)]


@pytest.mark.parametrize("value", ["1", "true", "ON", "Yes"])
def test_not_when_offline_is_told(asked: list, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert not hub_reachable()
    assert asked == []


@pytest.mark.parametrize(
    ("variable", "value", "address"),
    [
        ("HF_ENDPOINT", "https://mirror.example", ("mirror.example", 443)),
        ("HF_ENDPOINT", "http://mirror.example:8080", ("mirror.example", 8080)),
        ("HTTPS_PROXY", "http://proxy.example:3128", ("proxy.example", 3128)),
        ("https_proxy", "proxy.example:3128", ("proxy.example", 3128)),
    ],
)
def test_a_mirror_or_a_proxy_is_asked_instead(
    asked: list, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, address: tuple
) -> None:
    monkeypatch.setenv(variable, value)
    assert hub_reachable()
    assert asked == [address]


def test_refused(asked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: tuple, timeout: float) -> object:
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert not hub_reachable()


def test_a_resolver_that_hangs_does_not_hold_us_up(asked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(address: tuple, timeout: float) -> object:
        time.sleep(5)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    started = time.monotonic()
    assert not hub_reachable(timeout=0.1)
    assert time.monotonic() - started < 2
