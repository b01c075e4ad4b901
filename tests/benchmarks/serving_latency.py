"""Label latency on an idle server, and while texts are written and long prompts arrive; /health; a full queue.

python tests/benchmarks/serving_latency.py LABEL_RUN TEXT_RUN --minutes 2
"""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import httpx2
from serving import (
    Figures,
    Kept,
    Post,
    ServedFolder,
    after,
    arguments,
    ask,
    client,
    clients,
    every,
    finish,
    pin,
    predict_request,
    predict_requests,
    quantiles_ms,
    serve_command,
    served_folders,
    started,
)

LONG_PROMPT_TOKENS = 400


def main() -> None:
    """Measure."""
    options = arguments(__doc__, minutes=2.0, writers=16)
    runs = served_folders(options.runs)
    labels, texts = [run for run in runs if not run.writes], [run for run in runs if run.writes]
    assert labels, "none of the runs gives labels"
    assert texts, "none of the runs writes texts"
    pin(1)
    seconds = 30 * options.minutes
    with started(lambda port: serve_command(runs, port, options.option), log=options.log) as server:
        idle = asyncio.run(ask_labels(server.url, labels, seconds))
        busy = asyncio.run(ask_beside_texts(server.url, labels, texts, options.writers, seconds))
    few = ["queue=4", "kv_mb=32", *options.option]  # memory for a few texts: others wait
    with started(lambda port: serve_command(runs, port, few), log=options.log) as server:
        refusals, others = asyncio.run(refused(server.url, texts[0], options.writers))
    idle_p95, busy_p95 = (quantiles_ms(figures.seconds["label"])["p95"] for figures in (idle, busy))
    ratio, health = busy_p95 / idle_p95, quantiles_ms(busy.seconds["health"])["p99"]
    refusal = quantiles_ms(refusals)
    refused_ms, labels_text = refusal["p99"], f"{ratio:.1f} × ({busy_p95:.0f} against {idle_p95:.0f} ms)"
    beside = f"while {options.writers} texts are written and a 400-token prompt arrives every 2 s"
    finish(
        {
            "idle": idle.summary(), "busy": busy.summary(), "label_p95_ratio": round(ratio, 2),
            "full_queue": {"refusals": len(refusals), **refusal, "all": others.summary()},
        },
        options.record,
        [
            Kept("serving_labels", f"p95 of labels {beside}", labels_text, "≤ 5 × idle", ratio <= 5),
            Kept("serving_health", f"p99 of /health {beside}", f"{health:.0f} ms", "< 50 ms", health < 50),
            Kept("serving_full", "p99 of a full queue's 429", f"{refused_ms:.0f} ms", "< 50 ms", refused_ms < 50),
        ],
    )  # fmt: skip


async def ask_labels(url: str, runs: list[ServedFolder], seconds: float) -> Figures:
    """One client that asks for labels, ten times a second, and one that asks whether the server is alive."""
    figures, is_over = Figures(), after(seconds)
    await _ask_labels(url, runs, figures, is_over)
    return figures


async def _ask_labels(url: str, runs: list[ServedFolder], figures: Figures, is_over: Any) -> None:
    requests = predict_requests(url, runs)
    async with client() as http:
        await asyncio.gather(
            every(0.1, lambda: ask(http, figures, *next(requests)), is_over),
            every(0.1, lambda: ask(http, figures, "health", lambda c: c.get(f"{url}/health")), is_over),
        )


async def ask_beside_texts(
    url: str, labels: list[ServedFolder], texts: list[ServedFolder], writers: int, seconds: float
) -> Figures:
    """The same while ``writers`` texts are being written and a long prompt arrives every two seconds."""
    figures, is_over = Figures(), after(seconds)
    prompt = long_prompt(url, texts[0])
    async with client() as http:
        await asyncio.gather(
            clients(writers, predict_requests(url, texts), figures, is_over),
            every(2.0, lambda: ask(http, figures, "long prompt", prompt), is_over),
            _ask_labels(url, labels, figures, is_over),
        )
    return figures


def long_prompt(url: str, run: ServedFolder) -> Post:
    """A request whose first text has 400 tokens."""
    from tokenizers import Tokenizer

    example = run.examples()[0]
    name = max((name for name in example if isinstance(example[name], str)), key=lambda name: len(example[name]))
    words = " ".join(itertools.islice(itertools.cycle(example[name].split()), LONG_PROMPT_TOKENS))
    offsets = Tokenizer.from_file(str(Path(run.folder) / "model/tokenizer.json")).encode(words).offsets
    return predict_request(url, run.name, example | {name: words[: offsets[LONG_PROMPT_TOKENS - 1][1]]})


async def refused(url: str, run: ServedFolder, count: int) -> tuple[list[float], Figures]:
    """The seconds in which a server with a full queue refuses a request; ``count`` clients fill it meanwhile."""
    seconds, figures, is_over = list[float](), Figures(), after(20)

    async def time_refusal(http: httpx2.AsyncClient) -> None:
        start = time.perf_counter()
        response = await ask(http, figures, "probe", next(probes)[1])
        if response is not None and response.status_code == 429:
            seconds.append(time.perf_counter() - start)

    probes = predict_requests(url, [run])
    async with client() as http:
        filling = asyncio.create_task(clients(count, predict_requests(url, [run]), figures, is_over))
        await asyncio.sleep(1)
        await every(0.05, lambda: time_refusal(http), lambda: is_over() or len(seconds) == 100)
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
    return seconds, figures


if __name__ == "__main__":
    main()
