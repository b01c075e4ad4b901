"""Token and host names: who is refused, and what stays open."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gptask.config.schemas import Serve
from gptask.serving.http.access import Access, is_loopback

from tests.core.serving.conftest import RunningServer, running

TOKEN = "s3cret-token"


@pytest.fixture(scope="module")
def guarded(server: RunningServer) -> Iterator[RunningServer]:
    from dataclasses import replace

    with running(replace(server.state, token=TOKEN)) as other:
        yield other


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/ready", "/nothing", "/v1/models/topics"])
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}",
               TOKEN, "Bearer " + "a" * 5000, "Bearer \xff"],
)  # fmt: skip
def test_without_the_token_nothing_is_told(path: str, header: str | None, guarded: RunningServer) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    response = guarded.http.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert TOKEN not in response.text


def test_the_token_opens_and_health_is_open(guarded: RunningServer) -> None:
    for scheme in ("Bearer", "bearer"):
        assert guarded.http.get("/v1/models", headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200
    assert guarded.http.get("/health").status_code == 200
    for path in ("/", "/static/x.js"):  # the page asks for the token
        assert guarded.http.get(path).status_code != 401
    assert guarded.predict("sentiment", "good").status_code == 401
    assert (
        guarded.http.get("/v1/models", headers={"Host": "a.b", "Authorization": f"Bearer {TOKEN}"}).status_code == 200
    )


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "LOCALHOST", "[::1]:80", "[::1]"])
def test_names_of_this_machine_are_answered(host: str, server: RunningServer) -> None:
    assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.com", "evil.com:8000", "localhost.evil.com", "127.0.0.1.evil.com", "[::2]", ""])
def test_a_page_that_points_its_name_at_this_machine_is_refused(host: str, server: RunningServer) -> None:
    response = server.http.get("/v1/models", headers={"Host": host})
    assert response.status_code == 421
    assert "set a token" in response.json()["error"]["message"]


def test_a_server_on_other_addresses_answers_to_any_name() -> None:
    state: Any = SimpleNamespace(token=None, options=Serve(host="0.0.0.0"))
    assert Access(Any, state).hosts is None  # type: ignore[arg-type]
    assert [is_loopback(host) for host in ("127.0.0.2", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_other_origins_are_answered_where_they_are_named(
    server: RunningServer, with_options: Callable[..., Any]
) -> None:
    preflight = {"Origin": "https://a.org", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}  # fmt: skip
    name = "access-control-allow-origin"
    assert name not in server.http.get("/v1/models", headers={"Origin": "https://a.org"}).headers
    assert name not in server.http.options("/v1/predict/topics", headers=preflight).headers
    with with_options(cors=["https://a.org"], token=TOKEN) as other:
        answer = other.http.options("/v1/predict/topics", headers=preflight)
        assert (answer.status_code, answer.headers[name]) == (200, "https://a.org")
        refused = other.http.get("/v1/models", headers={"Origin": "https://a.org"})
        assert (refused.status_code, refused.headers[name]) == (401, "https://a.org")
        assert name not in other.http.get("/v1/models", headers={"Origin": "https://b.org"}).headers
