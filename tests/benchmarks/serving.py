"""Shared by the measurements of `gptask serve`: a server process on one core, clients on another, and their figures.

They are programs of their own, not parts of `make bench`: each needs run folders, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import os
import re
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

CORE_COLUMNS = {"id", "digest", "group", "references", "prediction", "score", "samples", "probabilities", "extra",
                "statistics"}  # fmt: skip
Examples = list[dict[str, Any]]
Post = Callable[[httpx2.AsyncClient], Awaitable[httpx2.Response]]


# --- runs and their requests ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServedFolder:
    """A run folder, the name it is served under, and whether it writes texts."""

    folder: Path
    name: str

    @property
    def writes(self) -> bool:
        """Whether the run writes texts: the head of such a run has no weights."""
        return not (self.folder / "model/head.safetensors").exists()

    def examples(self) -> Examples:
        """The inputs of the run's test set, from its predictions."""
        lines = (self.folder / "predictions.jsonl").read_text("utf-8").splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in CORE_COLUMNS} for line in lines]


def served_folders(folders: Sequence[str]) -> list[ServedFolder]:
    """Finished runs, named by their folders."""
    paths = [Path(folder).absolute() for folder in folders]
    for path in paths:
        assert (path / "manifest.json").exists(), f"{path} is no finished run"
    return [ServedFolder(path, path.name) for path in paths]


def predict_requests(url: str, runs: Sequence[ServedFolder]) -> Iterator[tuple[str, Post]]:
    """Endless requests that take turns among the runs and their examples; each with its kind, label or text."""
    turns = [itertools.cycle(run.examples()) for run in runs]
    for run, examples in itertools.cycle(zip(runs, turns, strict=True)):
        yield "text" if run.writes else "label", predict_request(url, run.name, next(examples))


def predict_request(url: str, name: str, example: dict[str, Any]) -> Post:
    """A request for the prediction of one example."""
    return lambda client: client.post(f"{url}/v1/predict/{name}", json=[example])


# --- servers --------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A server process."""

    process: subprocess.Popen[str]
    url: str
    code: int | None = None  # its exit code, once it has ended

    def memory_mb(self) -> float:
        """Its anonymous resident memory, in megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        return int(kilobytes) / 1024


def serve_command(runs: Sequence[ServedFolder], port: int, options: Sequence[str] = ()) -> list[str]:
    """The command line of `gptask serve`."""
    listed = ",".join(f"{run.name}:{run.folder}" for run in runs)
    return [sys.executable, "-m", "gptask", "serve", f"runs=[{listed}]", f"port={port}", *options]


@contextmanager
def started(
    command: Callable[[int], list[str]], core: int | None = 0, log: Path | None = None, **variables: str
) -> Iterator[Server]:
    """A server that listens, of the command for a port, on one core; it is told to end, and waited for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | variables
    with (log or Path(os.devnull)).open("w") as stream:
        process = subprocess.Popen(
            command(port), stdout=stream, stderr=subprocess.STDOUT, text=True, env=environment,
            preexec_fn=lambda: pin(core),
        )  # fmt: skip
        server = Server(process, f"http://127.0.0.1:{port}")
        try:
            wait_until_ready(server)
            yield server
        finally:
            process.terminate()
            try:
                server.code = process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                server.code = process.wait()


def pin(core: int | None) -> None:
    """Keep this process on one core, where the machine has it."""
    if core is not None and core in os.sched_getaffinity(0) and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {core})


def wait_until_ready(server: Server, seconds: float = 300) -> None:
    """Wait until a server is ready; one without /ready is so when it is alive."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (code := server.process.poll()) is not None:
            raise RuntimeError(f"the server has ended with code {code}")
        try:
            if httpx2.get(f"{server.url}/ready", timeout=10, trust_env=False).status_code in (200, 404):
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the server does not get ready")


# --- load -----------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What clients have measured: seconds by kind of request, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, seconds: float) -> None:
        """Count one answer."""
        self.seconds.setdefault(kind, []).append(seconds)

    def summary(self) -> dict[str, Any]:
        """Counts and quantiles, in milliseconds."""
        kinds = {kind: {"n": len(values), **quantiles_ms(values)} for kind, values in sorted(self.seconds.items())}
        return {**kinds, "errors": sum(self.problems.values()), "problems": dict(self.problems.most_common(5))}


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest, in milliseconds; none of fewer than two values."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    named = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(seconds)}
    return {name: round(1000 * value, 2) for name, value in named.items()}


def client(timeout: float = 120) -> httpx2.AsyncClient:
    """A client that keeps its connections."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(timeout=timeout, limits=limits, trust_env=False)


async def ask(http: httpx2.AsyncClient, figures: Figures, kind: str, post: Post) -> httpx2.Response | None:
    """Send a request and count its answer."""
    start = time.perf_counter()
    try:
        response = await post(http)
    except httpx2.TransportError as error:
        figures.problems[f"{kind}: {type(error).__name__}"] += 1
        return None
    if response.is_success:
        figures.add(kind, time.perf_counter() - start)
    else:
        figures.problems[f"{kind}: {response.status_code} {response.text[:100]}"] += 1
    return response


async def clients(
    count: int, requests: Iterator[tuple[str, Post]], figures: Figures, until: Callable[[], bool]
) -> None:
    """Clients that each send one request after another, of a common source, until it is time or the source ends.

    Where a server is full, they wait as long as it says.
    """

    async def one() -> None:
        async with client() as http:
            for kind, post in requests:
                if until():
                    return
                response = await ask(http, figures, kind, post)
                if response is not None and response.status_code == 429:
                    await asyncio.sleep(float(response.headers["Retry-After"]))

    await asyncio.gather(*(one() for _ in range(count)))


async def every(seconds: float, action: Callable[[], Awaitable[object]], until: Callable[[], bool]) -> None:
    """Do something again and again, at most once in so many seconds."""
    while not until():
        start = time.monotonic()
        await action()
        await asyncio.sleep(max(0.0, start + seconds - time.monotonic()))


def after(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds have passed from now on."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


async def load(
    server: Server, requests: Iterator[tuple[str, Post]], count: int, seconds: float
) -> tuple[Figures, list[tuple[float, float]]]:
    """Clients for so many seconds; their figures with those of /health beside them, and the memory over time."""
    figures, memory, start = Figures(), list[tuple[float, float]](), time.monotonic()
    is_over = after(seconds)
    async with client() as http:

        async def look() -> None:
            memory.append((round(time.monotonic() - start, 1), round(server.memory_mb(), 1)))

        await asyncio.gather(
            clients(count, requests, figures, is_over),
            every(0.1, lambda: ask(http, figures, "health", lambda c: c.get(f"{server.url}/health")), is_over),
            every(max(0.5, seconds / 120), look, is_over),
        )
    return figures, memory


# --- the programs ---------------------------------------------------------------------------------------------------


def arguments(about: str | None, **defaults: Any) -> argparse.Namespace:
    """The arguments of a program: run folders, options for the server, and its own options with their defaults."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("runs", nargs="+", help="finished run folders")
    parser.add_argument("--option", action="append", default=[], help="an option of gptask serve, such as kv_mb=512")
    parser.add_argument("--log", type=Path, help="file for what the server prints")
    parser.add_argument("--record", action="store_true", help="write the figures into docs/results.json")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


class Kept(NamedTuple):
    """A figure, the bound that it is to keep, both for people, and whether it does."""

    id: str
    measure: str
    value: str
    bound: str
    is_met: bool


def finish(result: dict[str, Any], record: bool = False, figures: Sequence[Kept] = ()) -> None:
    """Print a program's result, and write its figures into docs/results.json."""
    print(json.dumps(result, ensure_ascii=False))
    for figure in figures:
        print(f"{figure.measure}: {figure.value} ({figure.bound}){'' if figure.is_met else ': missed'}")
    if record:
        add_to_record(figures)


def add_to_record(figures: Sequence[Kept]) -> None:
    """Write figures into docs/results.json, with the command that measured them."""
    from gptask.runs.provenance import git_commit
    from harness import ROOT, machine

    sys.path.insert(0, str(ROOT / "docs"))
    import results_file

    file = results_file.load()
    command = shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *(a for a in sys.argv[1:] if a != "--record")])
    facts = machine()
    computer = results_file.Machine(**{f.name: facts[f.name] for f in dataclasses.fields(results_file.Machine)})
    for figure in figures:
        file.add(
            results_file.Bound(
                id=figure.id, command=command, commit=git_commit(), date=date.today().isoformat(), machine=computer,
                seed=None, measure=figure.measure, value=figure.value, bound=figure.bound, is_met=figure.is_met,
            )
        )  # fmt: skip
    results_file.save(file)
