"""Tokens a second of one run that writes texts: `gptask serve` against `transformers serve` of the exported run.

The servers take turns on core 0, each started anew for its round and warmed up; each round has prompts of its own.

    python tests/benchmarks/serving_throughput.py RUN --prompts prompts.txt --requests 64 --rounds 3
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
from serving import (
    Figures,
    Kept,
    Post,
    Server,
    arguments,
    clients,
    finish,
    pin,
    serve_command,
    served_folders,
    started,
)


def main() -> None:
    """Measure."""
    options = arguments(__doc__, prompts="", requests=64, rounds=3, clients=16, tokens=64)
    (run,) = served_folders(options.runs)
    pin(1)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / run.name
        texts = prompts(run.folder, options.prompts, exported, options.clients + options.requests * options.rounds)
        commands = {
            "ours": lambda port: serve_command([run], port, options.option),
            "plain": lambda port: transformers_command(exported, port, "--no-continuous-batching"),
            "batched": lambda port: transformers_command(exported, port, "--continuous-batching"),
        }
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
        warm_up = texts[: options.clients]
        for number in range(options.rounds):
            start = options.clients + number * options.requests
            for name, command in commands.items():
                with started(command, log=options.log) as server:
                    model = run.name if name == "ours" else str(exported)
                    asyncio.run(write(server, model, warm_up, options))
                    part = texts[start : start + options.requests]
                    results[name].append(asyncio.run(write(server, model, part, options)))
    rates = {
        name: statistics.median(result["tokens_per_second"] for result in given) for name, given in results.items()
    }
    best = max(("plain", "batched"), key=lambda name: rates[name])
    ratio = rates["ours"] / rates[best]
    value = f"{ratio:.1f} × ({rates['ours']:.0f} against {rates[best]:.0f} tokens/s, {best})"
    measure = f"one run that writes, {options.clients} clients, fresh prompts, against transformers serve"
    kept = Kept("serving_throughput", measure, value, "≥ 1.5 ×", ratio >= 1.5)
    finish({**results, "reference": best, "ratio": round(ratio, 3)}, options.record, [kept])


def transformers_command(model: Path, port: int, batching: str) -> list[str]:
    """The command line of `transformers serve` for one model on this processor."""
    program = Path(sys.executable).with_name("transformers")
    options = ["--device", "cpu", "--dtype", "bfloat16", "--host", "127.0.0.1", "--port", str(port), batching]
    return [str(program), "serve", str(model), *options]


def prompts(run_folder: Path, file: str, exported: Path, count: int) -> list[str]:
    """Export the run in bfloat16, and format its prompts for the inputs in a file, a line each, or of its test set."""
    from gptask import load_task
    from gptask.config.schemas import DType, Export
    from gptask.runs.export import export

    export(Export(run=str(run_folder), output=str(exported), dtype=DType.bfloat16))
    task: Any = load_task(run_folder)
    if file:
        (field,) = [field.name for field in task.inputs() if field.required]
        examples = [{field: line} for line in Path(file).read_text("utf-8").splitlines() if line.strip()]
    else:
        (served,) = served_folders([str(run_folder)])
        examples = served.examples()
    empty = {field.name: None for field in task.targets()}
    texts = [task.render(empty | example)[0] for example in itertools.islice(itertools.cycle(examples), count)]
    if len({*texts}) < count:
        print(f"{len({*texts})} different prompts for {count} requests: give more by --prompts", file=sys.stderr)
    return texts


async def write(server: Server, model: str, texts: list[str], options: Any) -> dict[str, Any]:
    """Have the texts written; tokens a second, and their number."""
    tokens, figures = 0, Figures()

    def request(text: str) -> Post:
        body = {"model": model, "prompt": text, "max_tokens": options.tokens, "temperature": 0}

        async def post(http: httpx2.AsyncClient) -> httpx2.Response:
            nonlocal tokens
            response = await http.post(f"{server.url}/v1/completions", json=body)
            if response.is_success:
                tokens += response.json()["usage"]["completion_tokens"]
            return response

        return post

    start = time.perf_counter()
    await clients(options.clients, iter([("text", request(text)) for text in texts]), figures, lambda: False)
    seconds = time.perf_counter() - start
    return {"tokens_per_second": round(tokens / seconds, 2), "tokens": tokens, "problems": dict(figures.problems)}


if __name__ == "__main__":
    main()
