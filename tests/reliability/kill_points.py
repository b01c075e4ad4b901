"""Where a process is killed: before a file operation, in the middle of a write, at a step, or after a time."""

from __future__ import annotations

import builtins
import io
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = {"file": "file", "power": "file", "step": "step", "time": ""}  # of kill, and what they count
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
STEPS = ("training_step", "validation_step", "test_step", "on_before_backward", "on_validation_epoch_end")


@dataclass(frozen=True)
class KillPoint:
    """The ``at``-th file operation or step of a process, or its seconds.

    With the kind ``power`` the machine loses power: what no fsync has brought to the disk is cut off.
    """

    kind: str
    at: float

    @classmethod
    def draw(cls, chance: random.Random, points: dict[str, int], seconds: float) -> KillPoint:
        """A point of a random kind among those that an undisturbed process passes, in ``seconds``."""
        kind = chance.choice([kind for kind, counted in KINDS.items() if not counted or points.get(counted)])
        return cls(kind, chance.uniform(0, seconds) if kind == "time" else chance.randint(1, points[KINDS[kind]]))


class CountedFile(io.FileIO):
    """A file whose writes are kill points."""

    counter: PointCounter

    def write(self, data: Any) -> int:
        """Write; where the process dies at this write, half of the data."""
        self.counter.counts["file"] += 1
        if self.counter.reached("file"):
            content = memoryview(data).cast("B")
            super().write(content[: len(content) // 2])
            self.counter.die()
        self.counter.synced.discard(os.fstat(self.fileno()).st_ino)
        return super().write(data)


class PointCounter:
    """Counts the kill points that this process passes, and kills it at one of them.

    File operations are those of Python's audit events and each write of a Python file, in the middle of which the kill
    comes; they count below ``folders``.
    """

    def __init__(self, folders: list[Path], output: Path, point: KillPoint | None) -> None:
        self.folders, self.output, self.point = [str(folder) for folder in folders], output, point
        self.counts = {"file": 0, "step": 0}
        self._open = io.open
        sys.addaudithook(self._audit)
        builtins.open = io.open = self._open_counted  # type: ignore[assignment]
        self.started = time.time()
        self.synced: set[int] = set()  # inodes
        self._fsync = os.fsync
        os.fsync = self._fsync_counted  # type: ignore[assignment]
        self._count_steps()

    def passed(self, kind: str) -> None:
        """Count a point, and kill the process if it is the one."""
        self.counts[kind] += 1
        if self.reached(kind):
            self.die()

    def reached(self, kind: str) -> bool:
        """Whether the point just counted is the one to die at."""
        return bool(self.point and KINDS[self.point.kind] == kind and self.counts[kind] == self.point.at)

    def die(self) -> None:
        """Kill this process; where it is the machine that dies, cut what is not on the disk off."""
        self.point, kind = None, self.point.kind if self.point else ""
        for path in (path for folder in self.folders for path in Path(folder).rglob("*")) if kind == "power" else ():
            state = path.stat()
            if path.is_file() and state.st_mtime > self.started and state.st_ino not in self.synced:
                os.truncate(path, state.st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def _fsync_counted(self, file: Any) -> None:
        self.passed("file")
        self._fsync(file)
        self.synced.add(os.fstat(file if isinstance(file, int) else file.fileno()).st_ino)

    def write(self) -> None:
        """Write the counts, once the process has ended its work."""
        with self._open(self.output, "w") as stream:
            stream.write(json.dumps(self.counts))

    def _below(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(tuple(self.folders))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags is not None and flags & (os.O_WRONLY | os.O_RDWR) and self._below(path):
                self.passed("file")
        elif event in CHANGES and self._below(arguments[0]):
            self.passed("file")

    def _open_counted(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        """Open a file as Python does, with counted writes where it is written below the folders."""
        if isinstance(file, int) or not set(mode) & set("wax+") or not self._below(file):
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = CountedFile(file, mode.translate({ord("b"): None, ord("t"): None}), closefd, opener)
        raw.counter = self
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

    def _count_steps(self) -> None:
        from gptask.runs.predictor import Predictor
        from gptask.training.module import GPTModule

        for owner, names in ((GPTModule, STEPS), (Predictor, ("predict_items",))):
            for name in names:
                if method := getattr(owner, name, None):
                    setattr(owner, name, self._counted(method))

    def _counted(self, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.passed("step")
            return method(*arguments, **options)

        return call
