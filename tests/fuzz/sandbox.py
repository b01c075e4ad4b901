"""A folder in which a case runs, and what every case must satisfy there, whatever it is."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gptask.cli import main
from gptask.errors import UserError

from tests.fuzz.guard import Watch, watched

MEMORY = 4 * 2**30  # bytes
CODES = (0, 1, 2)
MAX_MESSAGE = 20_000  # characters of an error message


class Fault(Exception):
    """A case that the product did not take as it should; ``signature`` is equal for the same cause."""

    def __init__(self, kind: str, place: str, text: str = "") -> None:
        super().__init__(kind, place, text)
        self.kind, self.place, self.text = kind, place, text

    @property
    def signature(self) -> str:
        return f"{self.kind}: {self.place}"


class Sandbox:
    """``root`` has the folder of the case at work, a cache, and an empty home and temporary folder.

    A case's files are below ``folder``, which is the working folder; what a command writes belongs into ``out``.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.out = root, root / "case", root / "case" / "out"
        self.cache, self.home, self.temporary = root / "cache", root / "home", root / "tmp"
        for folder in (self.cache, self.home, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
        self.environment = {
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "GPTASK_CACHE": str(self.cache),
            "HF_HOME": str(self.cache / "hub"),
            "MPLCONFIGDIR": str(self.cache / "matplotlib"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.cache / "inductor"),
            "GPTASK_DEBUG": "0",
        }

    @contextmanager
    def case(self, text: str) -> Iterator[None]:
        """An empty folder for a case, whose description is kept in it; the process is as before afterwards."""
        import tempfile

        shutil.rmtree(self.folder, ignore_errors=True)
        self.out.mkdir(parents=True)
        (self.folder / "case.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        here, environment, argv, path = os.getcwd(), dict(os.environ), sys.argv, list(sys.path)
        handlers, level = logging.root.handlers[:], logging.root.level
        os.environ.update(self.environment)
        sys.argv, tempfile.tempdir = ["gptask"], None
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv, sys.path[:], tempfile.tempdir = argv, path, None
            logging.root.handlers[:], logging.root.level = handlers, level
        for folder in (self.home, self.temporary):
            if left := sorted(path.name for path in folder.rglob("*")):
                shutil.rmtree(folder)
                folder.mkdir()
                raise Fault("left over", folder.name, str(left[:10]))

    @contextmanager
    def _watched(self, writable: Sequence[Path], may_ask_hub: bool) -> Iterator[Watch]:
        with watched([self.cache, self.temporary, *writable]) as watch:
            try:
                yield watch
            finally:  # whatever the product made of the refusal
                faults = [fault for fault in watch.faults if not (may_ask_hub and fault[0] == "network")]
                if faults:
                    kind, text = faults[0]
                    raise Fault(kind, re.sub(r"[^a-zA-Z._ ]+", "#", text)[:80], text)

    def command(
        self, *arguments: str, stdin: bytes = b"", writable: Sequence[Path] | None = None, may_ask_hub: bool = False
    ) -> tuple[int, str, str]:
        """Run a command line as a user does: exit code, standard output and standard error; `Fault` where it fails.

        It may write below ``writable``, by default into ``out`` alone.
        """
        names = ("stdin", "stdout", "stderr")
        streams = [io.TextIOWrapper(io.BytesIO(content), "utf-8") for content in (stdin, b"", b"")]
        streams[2].reconfigure(errors="backslashreplace")
        saved = [getattr(sys, name) for name in names]
        code: Any = None
        try:
            for name, stream in zip(names, streams, strict=True):
                setattr(sys, name, stream)
            with self._watched([self.out] if writable is None else writable, may_ask_hub):
                main(list(arguments))
        except SystemExit as end:
            code = end.code
        except MemoryError:
            raise Fault("memory", arguments[0], f"more than {MEMORY} bytes") from None
        except Fault:
            raise
        except BaseException as error:
            raise _fault_of(error) from error
        finally:
            for stream in streams[1:]:
                stream.flush()
            for name, stream in zip(names, saved, strict=True):
                setattr(sys, name, stream)
        texts = [stream.buffer.getvalue().decode("utf-8", "replace") for stream in streams[1:]]  # type: ignore[attr-defined]
        _check_ended(code, *texts)
        return code, *texts

    def call(self, function: Callable[[], Any], writable: Sequence[Path] = (), may_ask_hub: bool = False) -> Any:
        """What a function of the product returns, or the `UserError` that it raises; `Fault` for all else."""
        try:
            with self._watched(writable, may_ask_hub):
                return function()
        except UserError as error:
            if not str(error).strip() or len(str(error)) > MAX_MESSAGE:
                raise Fault("message", f"{len(str(error))} characters", str(error)[:2000]) from error
            return error
        except Fault:
            raise
        except BaseException as error:
            raise _fault_of(error) from error


def _fault_of(error: BaseException) -> Fault:
    text = "".join(traceback.format_exception(error))
    return Fault("memory" if isinstance(error, MemoryError) else "trace", place_of(text), text)


def _check_ended(code: Any, out: str, err: str) -> None:
    """Raise `Fault` unless a command line ended as documented, with a message where it failed."""
    if "Traceback (most recent call last)" in err or "Traceback (most recent call last)" in out:
        kind = "memory" if re.search(r"^(\w+\.)*(MemoryError|_ArrayMemoryError)\b", err, re.M) else "trace"
        raise Fault(kind, place_of(err or out), err)
    if code not in CODES:
        raise Fault("exit code", str(code), err)
    if code == 2:
        message = err[err.rfind("\ngptask: ") + 1 :] if "\ngptask: " in err else err
        if not message.startswith("gptask: ") or not message.removeprefix("gptask: ").strip():
            raise Fault("message", "none", err)
        if len(message) > MAX_MESSAGE:
            raise Fault("message", "too long", message[:2000])


def place_of(text: str) -> str:
    """The class of a printed exception and the innermost function of gptask that it came through."""
    last = re.sub(r"^gptask: .*", "", text[text.rfind("Traceback (most recent call last)") :], flags=re.M | re.S)
    frames = re.findall(r'File "(.+?)", line \d+, in (\S+)', last)
    ours = [(path, name) for path, name in frames if re.search(r"/(gptask|gptask_tasks)/", path)]
    path, name = (ours or frames or [("?", "?")])[-1]
    file = re.split(r"/(?=gptask(?:_tasks)?/)", path)[-1]
    library = re.search(r"/site-packages/(\w+)", frames[-1][0]) if frames else None
    error = re.findall(r"^(?:\w+\.)*(\w+)(?:: .*)?$", last, re.M)
    return f"{error[0] if error else '?'} in {file} {name}" + (f" (from {library[1]})" if library else "")


def reset_peak_memory() -> None:
    """Let `peak_memory` count from here on, so that a case is not blamed for one before it (proc(5), clear_refs)."""
    with suppress(OSError):  # a container may not allow it
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most memory that this process has held since `reset_peak_memory`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
