"""`make fuzz`: cases of every target in worker processes, with their count, faults and seconds written as they end.

A worker is forked for each chunk of cases, so that nothing of one chunk is left for the next. The parent watches it: a
case that takes too long is a hang, a worker that dies is a fault too. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(GPTASK_PLUGINS="gptask", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="agg")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "core"), str(ROOT / "tasks"), str(ROOT / "conf")]

from tests.fuzz.base_runs import base_runs  # noqa: E402
from tests.fuzz.cases import ChunkResult, run_case, run_chunk  # noqa: E402
from tests.fuzz.run_folders import VERBS, FolderCase  # noqa: E402
from tests.fuzz.sandbox import MEMORY, Sandbox  # noqa: E402
from tests.fuzz.target import Setting  # noqa: E402
from tests.fuzz.targets import TARGETS  # noqa: E402
from tests.support.recorded_counts import record_count  # noqa: E402

CHUNK = 100  # cases
PROGRESS = struct.Struct("<qdd")  # the number of the case at work, when it began, processor seconds used before
WAITING = 6  # times the limit that a case may take by the clock: it may wait for a processor


@dataclass
class Worker:
    """A child process at a chunk."""

    pid: int
    target: str
    chunk: int
    folder: Path
    progress: mmap.mmap

    @property
    def case_number(self) -> int:
        return int(PROGRESS.unpack(self.progress[:])[0])

    def case_seconds(self) -> tuple[float, float]:
        """How long the case at work takes by now: of the processor, and by the clock."""
        _, began, used = PROGRESS.unpack(self.progress[:])
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") - used, time.monotonic() - began


class Fuzz:
    """The chunks of a seed, in an order that gives each target its share; ``results.jsonl`` has a line for each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.output).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = self.folder / "results.jsonl"
        self.lines = [json.loads(line) for line in self._whole_lines()]
        self.targets = [TARGETS[name] for name in options.target or TARGETS]
        self.setting: Setting = base_runs(self.folder / "base")
        self._warm_up()
        self.workers: list[Worker] = []
        self.start = time.monotonic()
        self.next_chunk = 0

    def _warm_up(self) -> None:
        """Read an unchanged run by every verb, so that workers are forked from a process that has imported all."""
        box = Sandbox(self.folder / "warm")
        for verb in dict.fromkeys(VERBS):
            case = FolderCase("adapted", verb, [], True, 1)
            if fault := run_case(TARGETS["run folders"], case, box, self.setting):
                raise SystemExit(f"an unchanged run has a fault: {fault.signature}\n{fault.text}")
        shutil.rmtree(box.root)

    def _whole_lines(self) -> list[str]:
        """The lines of an earlier start; the last one may have been cut off."""
        if not self.results.exists():
            return []
        text = self.results.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        self.results.write_text(whole, encoding="utf-8")
        return whole.splitlines()

    @property
    def cases(self) -> int:
        return sum(line["cases"] for line in self.lines)

    @property
    def known(self) -> list[str]:
        return sorted({signature for line in self.lines for signature in line["counts"]})

    def run(self) -> int:
        """Run until time or cases are used up; 1 where a fault was found."""
        try:
            while not self._ended() or self.workers:
                while not self._ended() and len(self.workers) < self.options.workers:
                    self._begin()
                for worker in list(self.workers):
                    self._watch(worker)
                time.sleep(0.02)
        finally:
            for worker in self.workers:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
            text = self.summary()
            (self.folder / "summary.md").write_text(text, encoding="utf-8")
            print(text)
        if self.options.record:
            self._record()
        return int(any(line["counts"] for line in self.lines))

    def _record(self) -> None:
        cases = ", ".join(
            f"{sum(line['cases'] for line in self.lines if line['target'] == name):,} {name}" for name in TARGETS
        )
        faults = sum(sum(line["counts"].values()) for line in self.lines)
        peak = max(line["peak"] for line in self.lines) / 2**30
        record_count(
            "fuzz", f"{self.cases:,} hostile cases ({cases}): stack traces, hangs, files outside; peak memory",
            f"{faults}; {peak:.1f} GB", "none; < 4 GB", not faults and peak < 4,
        )  # fmt: skip

    def _ended(self) -> bool:
        seconds = time.monotonic() - self.start
        waiting = CHUNK * len(self.workers)
        return seconds > 60 * self.options.minutes or self.cases + waiting >= self.options.cases

    def _begin(self) -> None:
        """Start the next chunk that no earlier start has finished."""
        done = {line["chunk"] for line in self.lines} | {worker.chunk for worker in self.workers}
        while self.options.seed + self.next_chunk in done:
            self.next_chunk += 1
        chunk = self.options.seed + self.next_chunk
        self.next_chunk += 1
        target = self._target_of(chunk)
        folder = self.folder / "workers" / str(chunk)
        folder.mkdir(parents=True, exist_ok=True)
        progress = mmap.mmap(-1, PROGRESS.size)
        progress[:] = PROGRESS.pack(0, time.monotonic(), 0.0)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._work(target, chunk, folder, progress)
        self.workers.append(Worker(pid, target, chunk, folder, progress))

    def _target_of(self, chunk: int) -> str:
        """The target whose share is due at this number: the largest that the chunks before have not used up."""
        share, position = sum(target.share for target in self.targets), (chunk * 0.6180339887498949) % 1
        for target in self.targets:
            position -= target.share / share
            if position < 0:
                return target.name
        return self.targets[-1].name

    def _work(self, name: str, chunk: int, folder: Path, progress: mmap.mmap) -> None:
        """Run a chunk in a child and end the process."""
        code = 1
        try:
            log = (folder / "worker.log").open("w")
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            faulthandler.enable(log, all_threads=True)
            faulthandler.register(signal.SIGUSR1, log, all_threads=True)
            sys.dont_write_bytecode = True
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))

            def before_case(number: int) -> None:
                progress[:] = PROGRESS.pack(number, time.monotonic(), time.process_time())

            result = run_chunk(
                TARGETS[name], chunk, min(CHUNK, self.options.cases), Sandbox(folder / "box"), self.setting,
                self.known, not self.options.no_shrink, before_case,
            )  # fmt: skip
            (folder / "result.json").write_text(json.dumps(result.to_dict()), encoding="utf-8")
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def _watch(self, worker: Worker) -> None:
        """Take in the result of a worker that has ended, or end one that hangs."""
        pid, status = os.waitpid(worker.pid, os.WNOHANG)
        kind = "died"
        if not pid:
            seconds, by_clock = worker.case_seconds()
            if seconds < self.options.limit and by_clock < WAITING * self.options.limit:
                return
            kind = "hang"
            os.kill(worker.pid, signal.SIGUSR1)  # faulthandler then writes where it is
            time.sleep(1)
            os.kill(worker.pid, signal.SIGKILL)
            _, status = os.waitpid(worker.pid, 0)
        self.workers.remove(worker)
        file = worker.folder / "result.json"
        result: dict[str, Any]
        if status == 0 and file.exists():
            result = json.loads(file.read_text(encoding="utf-8"))
        else:
            result = self._lost(worker, kind, status)
        with self.results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(result) + "\n")
        self.lines.append(result)
        for found in result["found"]:
            print(f"chunk {worker.chunk}: {found['target']}: {found['kind']}: {found['place']}", flush=True)
        if not result["found"]:
            shutil.rmtree(worker.folder, ignore_errors=True)
        (self.folder / "summary.md").write_text(self.summary(), encoding="utf-8")

    def _lost(self, worker: Worker, kind: str, status: int) -> dict[str, Any]:
        """The result of a worker that hung or died, whose folder with the case stays."""
        case = worker.folder / "box" / "case" / "case.txt"
        text = case.read_text(encoding="utf-8", errors="replace") if case.exists() else ""
        log = (worker.folder / "worker.log").read_text(encoding="utf-8", errors="replace")
        frames = re.findall(r'File "\S*?/((?:gptask|gptask_tasks|fuzz)/\S+)", line \d+ in (\S+)', log)
        place = " ".join(frames[0]) if frames else f"signal or code {status}"
        log = re.sub(r"^Extension modules: .*", "", log, flags=re.M)
        found = {"target": worker.target, "kind": kind, "place": place, "case": text[:6000], "text": log[-6000:],
                 "chunk": worker.chunk}  # fmt: skip
        result = ChunkResult(worker.target, worker.chunk, worker.case_number + 1, slowest=self.options.limit)
        return result.to_dict() | {"counts": {f"{kind}: {place}": 1}, "found": [found]}

    def summary(self) -> str:
        """A table of the targets, and the faults by signature with their first case."""
        rows = ["| target | cases | faults | kinds of fault | seconds | slowest case, s | peak memory, MB |",
                "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
        for name in [*TARGETS, "all"]:
            lines = [line for line in self.lines if name in ("all", line["target"])]
            faults = Counter[str]()
            for line in lines:
                faults.update(line["counts"])
            slowest, peak = (max((line[key] for line in lines), default=0) for key in ("slowest", "peak"))
            rows.append(
                f"| {name} | {sum(line['cases'] for line in lines):,} | {sum(faults.values()):,} | {len(faults)} | "
                f"{sum(line['seconds'] for line in lines):,.0f} | {slowest:.1f} | {peak / 2**20:,.0f} |"
            )
        totals = Counter[tuple[str, str]]()
        for line in self.lines:
            totals.update({(line["target"], signature): count for signature, count in line["counts"].items()})
        parts = [f"Seed {self.options.seed}, {self.options.workers} workers.\n", *rows]
        for (target, signature), count in totals.most_common():
            found = next(
                (
                    f
                    for x in self.lines
                    for f in x["found"]
                    if (f["target"], f"{f['kind']}: {f['place']}") == (target, signature)
                ),
                None,
            )
            parts.append(f"\n## {target}: {signature} ({count})\n")
            if found:
                parts.append(
                    f"chunk {found['chunk']}\n\n    {found['case'][:1500]}\n\n    "
                    + found["text"][-1500:].replace("\n", "\n    ")
                )
        return "\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0, help="number of the first chunk")
    parser.add_argument("--limit", type=float, default=30, help="seconds of the processor after which a case hangs")
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--output", default="outputs/fuzz", help="folder of results; the same one goes on")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--record", action="store_true", help="write the counts into docs/results.json")
    return Fuzz(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
