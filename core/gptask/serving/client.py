"""`gptask.Client`: predictions of the runs that a server has (`gptask serve`), without torch."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from importlib.metadata import version
from ipaddress import ip_address
from itertools import count
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2

from gptask.config.schemas import Data, Predict
from gptask.errors import DataError, UserError, listing, nearest
from gptask.plugins.types import Prediction
from gptask.runs.predict_file import input_file, predict_rows
from gptask.runs.predictor import predictions_or_error, read_inputs
from gptask.runs.rows_in_memory import rows_in_memory
from gptask.serving.remote_run import Answers, RemoteRun, ServerBusy, answer_of_line

TOKEN_VARIABLE = "GPTASK_TOKEN"
JSON_LINES = {"Content-Type": "application/x-ndjson", "Accept": "application/x-ndjson"}
CONNECT_SECONDS = 10.0
CONNECTIONS_TRIED = 4
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds before the next try; each wait is twice the one before
FAULTS_OF_INPUT = (400, 413, 422)


class Client:
    """A server's runs: ``with gptask.Client("http://127.0.0.1:8000") as client: client.predict("news", texts)``.

    ``token`` is the server's, by default that of the environment variable GPTASK_TOKEN. ``timeout`` bounds in seconds
    how long the server may be silent, and for how long one that is busy is asked again. Threads may share a client.
    The proxies of the environment are used, but not for a server on this machine. Every method raises `UserError` where
    the server can't be reached, refuses the token or fails.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", token: str | None = None, timeout: float = 60.0) -> None:
        self.url, self.timeout = _checked_url(url), timeout
        token = token or os.environ.get(TOKEN_VARIABLE) or None
        self._has_token = token is not None
        headers = {"User-Agent": f"gptask/{version('gptask')}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {_checked_token(token)}"
        self._http = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            trust_env=not _is_loopback(httpx2.URL(self.url).host),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(self, run: str, examples: Any) -> Iterator[Prediction]:
        """Yield a `Prediction` for each example, in order and as the server answers.

        ``run`` is the name of a served run, ``examples`` what `Run.predict` takes: one example, a list, a generator, a
        DataFrame, a `datasets.Dataset`. Raises `UserError` at once for an unknown run and for what holds no examples,
        and `DataError` with the number of an example that can't be used.
        """
        remote_run = self._run(run)
        columns = remote_run.columns(Data(labels=None))
        inputs = read_inputs(rows_in_memory(examples, columns), columns, "example")
        return predictions_or_error(remote_run.predict_each(inputs, live=isinstance(examples, Iterator)))

    def models(self) -> list[dict[str, Any]]:
        """The entries of `/v1/models`: ``id`` is the name of a run, ``task``, ``fields``, ``metric`` and others."""
        with closing(self._send("GET", "/v1/models")) as response:
            self._check(response)
            try:
                models = json.loads(response.read())["data"]
                return [dict(model) for model in models if isinstance(model["id"], str)]
            except (ValueError, KeyError, TypeError) as error:
                raise self._other_version(response) from error

    def ready(self, timeout: float | None = None) -> None:
        """Wait until the server is ready; raises `UserError` if it isn't after ``timeout`` seconds."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            try:
                response = self._http.get(f"{self.url}/ready")
                if response.is_success:
                    return
                if response.status_code != 503:
                    self._check(response)
                state = "is not ready"
            except httpx2.TransportError as error:
                state = f"does not answer ({error})"
            if time.monotonic() >= deadline:
                raise UserError(f"the server at {self.url} {state}")
            time.sleep(FIRST_WAIT)

    def _run(self, name: str) -> RemoteRun:
        """The served run of a name."""
        models = {str(model["id"]): model for model in self.models()}
        if name not in models:
            raise UserError(
                f"the server at {self.url} has no run '{name}'; there are {listing(models)}.{nearest(name, models)}"
            )
        if not models[name].get("fields"):
            raise UserError(f"'{name}' at {self.url} is no run of a task: it has chat and completions alone")
        path = f"/v1/predict/{quote(name, safe='')}"

        def post(lines: list[bytes], answers: Answers, given_up: threading.Event) -> None:
            self._post_lines(path, lines, answers, given_up)

        try:
            return RemoteRun(models[name], post)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise self._other_version(None) from error

    def _post_lines(self, path: str, lines: list[bytes], answers: Answers, given_up: threading.Event) -> None:
        """Put the answer to each line into the queue, in order; last the error that ends them, if any does.

        Lines that the server had no time for are sent again, half as many at once.
        """
        at_once = len(lines)
        try:
            while lines and not given_up.is_set():
                part = lines[:at_once]
                with closing(self._send("POST", path, b"\n".join(part) + b"\n", given_up)) as response:
                    try:
                        self._check(response)
                    except DataError as error:  # such as one line that is too long
                        if len(part) == 1:
                            answers.put(error)
                            lines = lines[1:]
                        at_once = 1
                        continue
                    answered, busy = self._read_answers(response, len(part), answers, given_up)
                if busy and not answered and at_once == 1:
                    raise busy
                lines, at_once = lines[answered:], max(1, at_once // 2) if busy else at_once
        except httpx2.HTTPError as error:
            answers.put(UserError(f"the connection to {self.url} has failed: {_told(error)}"))
        except Exception as error:
            answers.put(error)

    def _read_answers(
        self, response: httpx2.Response, expected: int, answers: Answers, given_up: threading.Event
    ) -> tuple[int, ServerBusy | None]:
        """How many lines were answered before the first one that the server had no time for, and its error."""
        answered = 0
        for line in _lines(response.iter_bytes()):
            if given_up.is_set():
                return answered, None
            try:
                answer = answer_of_line(json.loads(line), self.url)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise self._other_version(response) from error
            if isinstance(answer, ServerBusy):
                return answered, answer
            answers.put(answer)
            answered += 1
        if answered < expected:
            raise UserError(f"the server at {self.url} has answered {answered} of {expected} lines and closed")
        return answered, None

    def _send(
        self, method: str, path: str, body: bytes | None = None, given_up: threading.Event | None = None
    ) -> httpx2.Response:
        """The answer to a request, not read yet.

        A server that can't be reached is tried CONNECTIONS_TRIED times, one that is busy for ``timeout`` seconds.
        """
        deadline = time.monotonic() + self.timeout
        for attempt in count(1):
            wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)
            request = self._http.build_request(
                method, self.url + path, content=body, headers=JSON_LINES if body else {}
            )
            try:
                response = self._http.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if attempt == CONNECTIONS_TRIED:
                    raise UserError(
                        f"no server answers at {self.url}: {_told(error)}. Start one (gptask serve), or correct the "
                        "address"
                    ) from error
            except httpx2.HTTPError as error:
                raise UserError(f"the connection to {self.url} has failed: {_told(error)}") from error
            else:
                asked = _retry_after(response)
                is_busy = response.status_code == 429 or (response.status_code == 503 and asked is not None)
                wait = wait if asked is None else asked
                if not is_busy or time.monotonic() + wait > deadline:
                    return response
                response.close()
            if (given_up or threading.Event()).wait(wait):
                raise UserError("given up")  # nobody reads it
        raise AssertionError

    def _check(self, response: httpx2.Response) -> None:
        """Raise the error of an answer without success: `DataError` where the input is at fault, else `UserError`."""
        status = response.status_code
        if response.is_success:
            return
        response.read()
        try:
            error = json.loads(response.content)["error"]
            message = str(error["message"])
        except (ValueError, KeyError, TypeError):
            error, message = {}, response.text[:200].strip() or response.reason_phrase
        request_id = error.get("request_id") or response.headers.get("x-request-id")
        place = f"the server at {self.url}"
        if status == 401:
            has = "does not accept the token" if self._has_token else "asks for a token"
            raise UserError(
                f"{place} {has}: gptask.Client(url, token=...), or the environment variable {TOKEN_VARIABLE} "
                "(gptask predict: token_env=<another variable>)"
            )
        if status in FAULTS_OF_INPUT:
            raise DataError(message)
        if response.is_redirect:
            raise UserError(f"{place} refers to {response.headers.get('location')}; give the address of the server")
        if status in (429, 503):
            raise UserError(f"{place} is busy: {message}")
        if status == 404 and not error:
            raise UserError(f"{place} is no gptask server: it has no {response.request.url.path}")
        raise UserError(f"{place} answers {status}: {message}" + (f" (request {request_id})" if request_id else ""))

    def _other_version(self, response: httpx2.Response | None) -> UserError:
        server = f" ({response.headers['server']})" if response and "server" in response.headers else ""
        return UserError(
            f"the server at {self.url}{server} answers in a form that gptask {version('gptask')} does not know; use "
            "the same version of gptask on both sides"
        )


def predict_by_server(config: Predict) -> None:
    """`gptask predict server=...`: what `gptask.runs.predict_file.predict` does, by a run that a server has."""
    source = input_file(config)
    token = None
    if config.token_env and not (token := os.environ.get(config.token_env)):
        raise UserError(f"token_env={config.token_env}: there is no such environment variable, or it is empty")
    with Client(str(config.server), token) as client:
        run = client._run(config.run)
        identity = {"server": client.url, "run": config.run, "model": run.identity}
        predict_rows(config, source, run.task, run.columns(config.data), run, identity)


def _checked_url(text: str) -> str:
    """The address of a server without a slash or `/v1` at its end."""
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, TypeError):
        url = httpx2.URL("")
    if url.userinfo:
        raise UserError("the server's address holds a user or a password; leave them out and give a token")
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"{text!r} is no address of a server; expected one such as http://127.0.0.1:8000")
    return str(url.copy_with(query=None, fragment=None)).rstrip("/").removesuffix("/v1")


def _checked_token(token: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UserError("the token holds characters that no HTTP header can carry; expected printable ASCII, no space")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _retry_after(response: httpx2.Response) -> float | None:
    """The seconds after which the server wants to be asked again, if it says so."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _told(error: Exception) -> str:
    return "it took too long" if isinstance(error, httpx2.TimeoutException) else str(error) or type(error).__name__


def _lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a body; `httpx2.Response.iter_lines` would part them at U+2028 too, which JSON may hold."""
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        yield from (line for line in whole if line.strip())
    if rest.strip():
        yield rest
