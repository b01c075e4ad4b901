"""A file that is written for hours: `<name>.part` and a journal of it, from which the same command goes on."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from gptask.errors import UserError, listing
from gptask.runs.atomic_write import finite, sync_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("gptask")
JOURNAL_FORMAT = 1
COMMIT_SECONDS = 5.0  # between two entries of the journal: what a kill can cost, and two fsyncs take far less than 1%


class PartFile:
    """The file that becomes ``target`` when it is complete; a context, in which this process alone may write it.

    ``identity`` is all that decides the content. ``state`` is what the journal holds of a file with the same identity,
    empty for one that begins anew. Raises `UserError` where another process writes the file.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.journal = target.with_name(f"{target.name}.part.json")
        self.identity: dict[str, Any] = json.loads(json.dumps(finite(dict(identity)), default=str))
        self.state: dict[str, Any] = {}
        self.kept_state: dict[str, Any] = {}  # of the journal as it is now
        self._pending: list[bytes] = []
        self._committed = self._end = 0  # bytes that the journal covers; end of the last window in the file
        self._end_state: dict[str, Any] = {}
        self._is_whole = False

    def __enter__(self) -> PartFile:
        if self.target.exists() and not os.access(self.target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._stream = self._locked_stream()
        try:
            self._read_journal()
            self._cut(self._end)
            self._next_commit = time.monotonic() + COMMIT_SECONDS
        except BaseException:
            os.close(self._stream)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None and not self._is_whole:
                with suppress(OSError):  # a full disk: the journal is as it was
                    self._cut(self._end)
                    self._commit()
                if not self._committed:
                    self.path.unlink(missing_ok=True)
        finally:
            os.close(self._stream)

    def begin_anew(self) -> None:
        """Drop the content and the journal, the journal first: it must never speak of other content."""
        self.journal.unlink(missing_ok=True)
        sync_folder(self.journal.parent)
        self.state = self.kept_state = self._end_state = {}
        self._committed = self._end = 0
        self._cut(0)

    def write(self, data: bytes) -> None:
        """Append to the window that is being computed."""
        self._pending.append(data)

    def end_window(self, state: dict[str, Any]) -> None:
        """Write the window; ``state`` is what a restart needs to go on after it."""
        self.flush()
        self._end, self._end_state = os.lseek(self._stream, 0, os.SEEK_CUR), state
        if time.monotonic() >= self._next_commit:
            self._commit()
            self._next_commit = time.monotonic() + COMMIT_SECONDS

    def flush(self) -> None:
        """Write what is pending; a restart computes it again."""
        data, self._pending = memoryview(b"".join(self._pending)), []
        while data:
            data = data[os.write(self._stream, data) :]

    def publish(self, made_of_it: Path | None = None) -> None:
        """Give the complete file its name, or the file that was ``made_of_it``."""
        path = made_of_it or self.path
        if self.target.exists():
            path.chmod(self.target.stat().st_mode & 0o7777)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        self._is_whole = True  # from here on a stop may find the file under its name
        path.replace(self.target)
        self.journal.unlink(missing_ok=True)
        self.kept_state = {}
        if made_of_it:
            self.path.unlink()
        sync_folder(self.target.parent)

    def _locked_stream(self) -> int:
        while True:
            stream = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(stream)
                if _is_file_at(stream, self.path):
                    return stream
            except BaseException:
                os.close(stream)
                raise
            os.close(stream)  # the process that had the lock has given the file its name meanwhile

    def _lock(self, stream: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process writes {self.target} (it has locked {self.path}); wait for its end, or choose "
                "another output"
            ) from error
        except OSError as error:
            log.warning(
                "%s: its file system has no locks (%s), so let no other command write it", self.path, error.strerror
            )

    def _read_journal(self) -> None:
        """Take over what the journal says if it is of this identity; else say what differs and begin anew."""
        try:
            journal = json.loads(self.journal.read_bytes())
            is_known = journal["format"] == JOURNAL_FORMAT
            identity, size, state = dict(journal["identity"]), int(journal["bytes"]), dict(journal["state"])
        except FileNotFoundError:
            self.begin_anew()
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            is_known, identity, size, state = False, {}, 0, {}
        if not is_known or os.fstat(self._stream).st_size < size:
            log.warning("%s does not fit %s, so the predictions begin anew", self.journal, self.path)
            self.begin_anew()
        elif changes := _changes(identity, self.identity):
            log.warning("%s is of another command, so the predictions begin anew: %s", self.path, listing(changes, 6))
            self.begin_anew()
        else:
            self.state = self.kept_state = self._end_state = state
            self._committed = self._end = size

    def _cut(self, size: int) -> None:
        self._pending = []
        os.ftruncate(self._stream, size)
        os.lseek(self._stream, size, os.SEEK_SET)

    def _commit(self) -> None:
        """Enter the windows of the file into the journal, once their bytes are on the disk."""
        if self._end == self._committed:
            return
        os.fsync(self._stream)
        values = {"format": JOURNAL_FORMAT, "bytes": self._end, "state": self._end_state, "identity": self.identity}
        new = self.journal.with_name(f"{self.journal.name}.new")
        try:
            with new.open("w", encoding="ascii") as stream:  # a file's name may hold what UTF-8 lacks
                stream.write(json.dumps(values, indent=1) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(self.journal)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        self._committed, self.kept_state = self._end, self._end_state


def _is_file_at(stream: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream), path.stat())
    except FileNotFoundError:
        return False


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, a phrase each."""
    names = dict.fromkeys([*now, *before])
    return [f"{name} is {_short(now, name)}, it was {_short(before, name)}" for name in names
            if now.get(name) != before.get(name)]  # fmt: skip


def _short(values: Mapping[str, Any], name: str) -> str:
    text = json.dumps(values.get(name), ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
