"""A run folder that is replaced in place again and again while clients ask it: no answer may be wrong, lost or crossed.

Every request has a text of its own behind a beginning that all share; its answer must be that of the one or the other
version of the run, which are computed before.

    python tests/benchmarks/serving_reload.py RUN --requests 10000
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from serving import Kept, ServedFolder, Server, arguments, client, finish, pin, serve_command, served_folders, started

BEGINNING = "Once upon a time there was a story that every one of these texts begins with, and then: "
TOLERANCE = 0.004  # of a probability; the two versions and the texts differ by more


@dataclass
class Version:
    """A version of a run: its folder, and its answer to each text."""

    folder: Path
    answers: list[dict[str, Any]]


def main() -> None:
    """Measure."""
    options = arguments(__doc__, requests=10_000, clients=16, texts=200, backbone="smollm2")
    (run,) = served_folders(options.runs)
    with tempfile.TemporaryDirectory() as folder:
        served, other = Path(folder) / "served", Path(folder) / "other"
        scaled_copy(run.folder, other, 0.6)
        examples = canaries(run.folder, options.texts)
        versions = [Version(path, answers(path, examples)) for path in (run.folder, other)]
        shutil.copytree(run.folder, served)
        pin(1)
        target = [ServedFolder(served, "canary")]
        serve_options = [f"backbone={options.backbone}", "backbone.dtype=float32", *options.option]
        with started(lambda port: serve_command(target, port, serve_options), log=options.log) as server:
            result = asyncio.run(
                reload_under_load(server, served, versions, examples, options.requests, options.clients)
            )
    bad = sum(result[name] for name in ("wrong", "lost", "crossed"))
    value = f"{bad} in {result['requests']:,} requests, {result['replaced']} replacements"
    measure = "wrong, lost or crossed answers while a run is replaced in place"
    finish(
        {**result, "exit_code": server.code}, options.record, [Kept("serving_reload", measure, value, "none", not bad)]
    )


def scaled_copy(run: Path, target: Path, factor: float) -> None:
    """A run whose adapter changes the backbone by ``factor`` times as much."""
    from gptask.runs.manifest import write_manifest
    from safetensors.torch import load_file, save_file

    shutil.copytree(run, target, ignore=shutil.ignore_patterns("checkpoints"))
    file = target / "model/adapter_model.safetensors"
    save_file({n: w * factor if "lora_B" in n else w for n, w in load_file(file).items()}, file, {"format": "pt"})
    write_manifest(target, "0" * 16, "train", {})


def canaries(run: Path, count: int) -> list[dict[str, Any]]:
    """Examples that begin alike and end in a number of their own."""
    from gptask import load_task

    fields = [field.name for field in load_task(run).inputs() if field.required]
    return [dict.fromkeys(fields, f"{BEGINNING}{number * 7919 % 9973} times {number}.") for number in range(count)]


def answers(run: Path, examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the run by itself predicts, in float32."""
    from gptask import load_run
    from gptask.config.schemas import DType
    from gptask.runs.predictions_file import prediction_fields

    return [prediction_fields(prediction) for prediction in load_run(run, dtype=DType.float32).predict(examples)]


def replace_in_place(served: Path, version: Path) -> None:
    """Put a version of a run in the place of the one that is served."""
    new, old = served.with_name("new"), served.with_name("old")
    shutil.copytree(version, new, ignore=shutil.ignore_patterns("checkpoints"))
    served.rename(old)
    new.rename(served)
    shutil.rmtree(old)


async def reload_under_load(
    server: Server,
    served: Path,
    versions: Sequence[Version],
    examples: Sequence[dict[str, Any]],
    requests: int,
    count: int,
    pause: float = 0.2,
) -> dict[str, Any]:
    """Ask ``requests`` times while the folder is replaced again and again; how many answers were what.

    It is replaced ``pause`` seconds after the first answer of the version that is in it.
    """
    seen, numbers, replaced = Counter[str](), iter(range(requests)), 0
    expected, is_seen = "old", asyncio.Event()
    start = time.monotonic()

    async def ask() -> None:
        async with client() as http:
            for number in numbers:
                place = number % len(examples)
                try:
                    response = await http.post(f"{server.url}/v1/predict/canary", json=[examples[place]])
                    (answer,) = response.json() if response.is_success else (None,)
                except (httpx2.TransportError, ValueError):
                    answer = None
                verdict = _judged(answer, place, versions)
                seen[verdict] += 1
                if verdict == expected:
                    is_seen.set()

    async def replace() -> None:
        nonlocal replaced, expected
        for name, version in itertools.islice(itertools.cycle(zip(("old", "new"), versions, strict=True)), 1, None):
            await is_seen.wait()
            await asyncio.sleep(pause)
            await asyncio.to_thread(replace_in_place, served, version.folder)
            expected, replaced = name, replaced + 1
            is_seen.clear()

    replacing = asyncio.create_task(replace())
    await asyncio.gather(*(ask() for _ in range(count)))
    replacing.cancel()
    await asyncio.gather(replacing, return_exceptions=True)
    return {
        "requests": requests, "replaced": replaced, "seconds": round(time.monotonic() - start, 1),
        **{name: seen[name] for name in ("old", "new", "either", "lost", "crossed", "wrong")},
    }  # fmt: skip


def _judged(answer: dict[str, Any] | None, place: int, versions: Sequence[Version]) -> str:
    """Of which version an answer is; ``either``, where they agree; else lost, another text's, or nobody's."""
    if answer is None:
        return "lost"
    matches = [_same(answer, version.answers[place]) for version in versions]
    if any(matches):
        return "either" if all(matches) else "old" if matches[0] else "new"
    others = (other for version in versions for other in version.answers)
    return "crossed" if any(_same(answer, other) for other in others) else "wrong"


def _same(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    shares = answer.get("probabilities") or {}
    return answer["prediction"] == expected["prediction"] and all(
        abs(share - shares.get(name, -1.0)) <= TOLERANCE
        for name, share in (expected.get("probabilities") or {}).items()
    )


if __name__ == "__main__":
    main()
