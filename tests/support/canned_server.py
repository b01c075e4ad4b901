"""A server of the API that the page uses, with canned answers of every form, and the headers of the real one."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.support.explanations import attended, classified

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
XSS = "<img src=x onerror=\"document.title='broken'\">"
CONTEXT = (
    "The Broncos defeated the Pittsburgh Steelers in the divisional round, 23–16, by scoring 11 points in the final "
    "three minutes of the game. They then beat the defending champion New England Patriots in the AFC Championship "
    "Game, 20–18, by intercepting a pass on New England's 2-point conversion attempt with 17 seconds left."
)
SENTENCE = "Dr. Trobriand's 55th New York regiment met Howe near 北京."
ANSWER = "Grüße, 世界! 👩‍🚀 <b>not bold</b>\n\nشكرا, and a second paragraph that says a little more."
INTENTS = {f"intent_{n}": p for n, p in enumerate([0.911, 0.05, 0.02, *[0.019 / 74] * 74])}


def field(name: str, kind: str = "text", **options: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "required": True, "blank": False, "help": f"the {name}"} | options


def model(name: str, task: str | None, fields: list[dict[str, Any]], **entries: Any) -> dict[str, Any]:
    defaults = {
        "description": None,
        "writes": False,
        "chat_template": False,
        "metric": None,
        "labels": None,
        "converts_rows": False,
        "max_tokens": 512,
        "context": 2048,
        "adapter": "1f0c9d3a7be24466",
        "backbone": "smollm2",
        "loaded": "2026-11-28T23:00:00+00:00",
        "explains": [],
    }
    return {"id": name, "task": task, "fields": fields} | defaults | entries


def metric(name: str, value: float, low: float, high: float, n: int, split: str = "test") -> dict[str, Any]:
    return {"name": name, "value": value, "low": low, "high": high, "n": n, "higher_is_better": True, "split": split}


def models() -> list[dict[str, Any]]:
    """One run of each form of answers, a backbone that chats, and one that does not."""
    accuracy = metric("accuracy", 90.8257, 88.85, 92.81, 872)
    lower = metric("bits_per_byte", 0.9123, 0.9011, 0.9299, 1400) | {"higher_is_better": False}
    return [
        model(
            "sst2",
            "sentiment",
            [field("text")],
            metric=accuracy,
            labels=["negative", "positive"],
            explains=["ig", "attention"],
        ),
        model("banking77", "classification", [field("text")], metric=metric("accuracy", 92.4, 91.4, 93.3, 3080)),
        model("goemotions", "classification", [field("text")], metric=metric("f1_micro", 55.31, 54.2, 56.4, 5427)),
        model(
            "wikigold",
            "token_tagging",
            [field("tokens", "tokens"), field("predicate", "integers", required=False)],
            metric=metric("f1", 71.9, 68.0, 75.5, 340, "validation"),
        ),
        model("pos", "token_tagging", [field("tokens", "tokens")]),
        model("xquad", "qa", [field("context"), field("question")], metric=metric("f1", 65.2, 60.1, 70.1, 240)),
        model("multi30k", "translation", [field("source")], writes=True, chat_template=True),
        model("lm", "language_modeling", [field("text")], metric=lower),
        model(
            "assistant",
            "generation",
            [field("messages", "messages")],
            writes=True,
            chat_template=True,
            metric=lower | {"value": None},
        ),
        model("smollm2", None, [], writes=True, chat_template=True, adapter=None),
        model("base", None, [], writes=True, adapter=None),
        model(
            XSS,
            "classification",
            [field(XSS, help=XSS), field("weight", "number", required=False), field("notes", "texts", required=False)],
            description=XSS,
            labels=[XSS, "b"],
        ),
    ]


def answer(run: str, example: dict[str, Any]) -> dict[str, Any]:
    """What a run answers."""
    answers: dict[str, dict[str, Any]] = {
        "sst2": {
            "prediction": "positive",
            "score": 0.9715,
            "probabilities": {"negative": 0.0285, "positive": 0.9715},
            "truncated": 3 if len(example.get("text", "")) > 400 else 0,
        },
        "banking77": {"prediction": "intent_0", "score": 0.911, "probabilities": INTENTS},
        "goemotions": {
            "prediction": ["joy", "surprise"],
            "probabilities": {"joy": 0.83, "surprise": 0.41, "anger": 0.002, "grief": 0.0001},
        },
        "wikigold": {
            "prediction": [
                {"type": "PER", "start": 2, "end": 3, "text": "Trobriand", "score": 0.913},
                {"type": "ORG", "start": 4, "end": 8, "text": "55th New York regiment", "score": 0.4467},
                {"type": "PER", "start": 9, "end": 10, "text": "Howe", "score": 0.88},
                {"type": "LOC", "start": 11, "end": 13, "text": "北京", "score": 0.97},
            ],
            "score": 0.942,
        },
        "pos": {"prediction": ["DET", "NOUN", "VERB"][: len(example.get("tokens", []))]},
        "xquad": {"prediction": "11", "score": 0.488},
        "multi30k": {"prediction": ANSWER, "score": 0.59, "samples": [ANSWER, "Drei Kinder stehen dort."]},
        "lm": {"prediction": {"perplexity": 17.24, "bits_per_byte": 0.9312}, "extra": {"nats": 51.2, "tokens": 18}},
        "assistant": {"prediction": ANSWER},
        XSS: {"prediction": XSS, "probabilities": {XSS: 0.75, "b": 0.25}, "extra": {XSS: XSS}},
    }
    return {"truncated": 0} | answers[run]


class CannedServer:
    """The app; ``requests`` are (path, headers, body) as they came, ``token`` is asked for if it is set.

    A text or message with "busy", "wrong", "proxy" or "trace" gets an error instead of an answer; a written text
    breaks off with "break", ends early with "drop", and never ends with "slow", until ``left`` tells that the client
    went away.
    """

    def __init__(self, router: Any) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.token: str | None = None
        self.models = models()
        self.left = threading.Event()
        self.app = FastAPI()
        self.app.include_router(router)
        self.app.add_api_route("/v1/models", self.list_models)
        self.app.add_api_route("/v1/predict/{run:path}", self.predict, methods=["POST"])
        self.app.add_api_route("/v1/explain", self.explain, methods=["POST"])
        self.app.add_api_route("/v1/chat/completions", self.write, methods=["POST"])
        self.app.add_api_route("/v1/completions", self.write, methods=["POST"])
        self.app.middleware("http")(self.guard)

    async def guard(self, request: Request, call_next: Any) -> Response:
        path = request.url.path
        self.requests.append((path, dict(request.headers), await request.body()))
        if "/v1/" in path and self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            response: Response = error(401, "a token is needed: Authorization: Bearer <token>")
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    async def list_models(self) -> Any:
        return {"object": "list", "data": self.models}

    async def predict(self, run: str, request: Request) -> Any:
        example = await request.json()
        return refusal(json.dumps(example)) or answer(run, example)

    async def explain(self, request: Request) -> Any:
        body = await request.json()
        text, method = body["example"]["text"], body["method"]
        explanation = (attended if method == "attention" else classified)(text)
        return refusal(text) or {"method": method, "truncated": 0} | json.loads(explanation.to_json())

    async def write(self, request: Request) -> Any:
        body = await request.json()
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        return refusal(text) or StreamingResponse(self.pieces(text, "messages" in body), media_type="text/event-stream")

    async def pieces(self, text: str, is_chat: bool) -> AsyncIterator[bytes]:
        """The answer in pieces that cut characters and lines apart."""

        def event(piece: str, finish: str | None = None) -> bytes:
            content = {"delta": {"content": piece}} if is_chat else {"text": piece}
            data = {"choices": [content | {"index": 0, "finish_reason": finish}]}
            return f"data: {json.dumps(data, ensure_ascii=False)}\r\n\r\n".encode()

        yield b": a comment\n\n"
        if "slow" in text:
            yield event("It begins")
            try:
                await asyncio.sleep(60)
            finally:
                self.left.set()
        whole = b"".join(event(piece) for piece in ANSWER)
        for start in range(0, len(whole), 7919):
            yield whole[start : start + 7919]
        if "break" in text:
            yield b'data: {"error": {"message": "the head failed", "request_id": "r-7"}}\n\n'
        elif "drop" not in text:
            yield event("", "length" if "long" in text else "stop") + b"data: [DONE]\n\n"


def error(status: int, message: str, param: str | None = None, **headers: str) -> JSONResponse:
    content = {"message": message, "type": "invalid_request_error", "param": param, "code": None, "request_id": "r-42"}
    return JSONResponse({"error": content}, status, headers=headers)


def refusal(text: str) -> Response | None:
    """The error that a text asks for."""
    if "busy" in text:
        return error(429, "the queue is full (256 requests wait)", **{"Retry-After": "3600"})
    if "wrong" in text:
        return error(422, "the text is empty after the task's cleaning", "text")
    if "proxy" in text:
        return Response("<h1>Bad Gateway</h1>", 502, media_type="text/html")
    return None


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The app on a free port of this machine, as ``http://127.0.0.1:<port>``."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    started = threading.Event()
    startup = server.startup

    async def start(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = start  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
