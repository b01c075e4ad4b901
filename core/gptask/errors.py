"""Errors that a user can fix, and helpers that word messages."""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

# why a system refuses to write: no room, no permission, a limit, a broken disk
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
NUMBER_IN_TEXT = re.compile(r"\bos error (\d+)\)")  # of Rust's libraries: safetensors, tokenizers
SQLITE_REFUSALS = re.compile(r"database or disk is full|disk I/O error|attempt to write a readonly database")
TORCH_REFUSALS = re.compile(r"unexpected pos \d+ vs|PytorchStreamWriter failed|iostream error")
# C0 but tab and newline, DEL, C1, the overrides of writing direction, and half surrogate pairs
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A mistake the user can fix: the message says what, what was got, what was expected and how to fix it."""


class DataError(UserError):
    """A bad row or file; the reader puts the file and the line in front of the message.

    ``field`` is the name of the field that is wrong, where it is one.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Interrupted(KeyboardInterrupt):
    """Ctrl-C where gptask handles it; unlike its base class, it takes weak references."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asks the process to end; whoever handles Ctrl-C handles it alike."""


class WriteError(UserError):
    """A file or folder that the system refuses to write; the message says why, and how to go on."""


@contextmanager
def writing(path: object, way_out: Callable[[], str] = str) -> Iterator[None]:
    """Turn what fails because the system refuses to write into a `WriteError` that names the file, or else ``path``.

    The sentences of ``way_out`` tell how to go on. They are added to a `WriteError` of the block, too.
    """
    try:
        yield
    except WriteError as error:
        raise WriteError(f"{error} {way_out()}".strip()) from error.__cause__
    except Exception as error:
        if (reason := write_failure(error)) is None:
            raise
        name = (
            getattr(error, "filename2", None) or getattr(error, "filename", None) or path
        )  # the 2nd: where a copy goes
        raise WriteError(f"{reason} while writing {name}. {way_out()}".strip()) from error


def write_failure(error: BaseException) -> str | None:
    """Why the system refused to write, None for any other error.

    Libraries in other languages raise classes of their own with the system's words in the text; SQLite and PyTorch,
    where it opened the file itself, have words of their own.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if isinstance(cause, OSError) and cause.errno in REFUSALS:
            return _reason(cause.errno)
        if (match := NUMBER_IN_TEXT.search(text)) and int(match[1]) in REFUSALS:
            return _reason(int(match[1]))
        if match := SQLITE_REFUSALS.search(text):
            return match[0]
        of_torch = isinstance(cause, RuntimeError) and TORCH_REFUSALS.search(text)
        following = cause.__cause__ or (cause.__context__ if of_torch else None)  # torch hides what its stream raised
        if of_torch and following is None:
            return "a disk that is full or refuses more (the library does not say which)"
        cause = following
    return None


def _reason(number: int) -> str:
    limit = " (a limit of the file system, or of the shell: ulimit -f)" if number == errno.EFBIG else ""
    return os.strerror(number) + limit


@contextmanager
def damaged(path: object, error_class: type[UserError] = UserError) -> Iterator[None]:
    """Turn what a library raises while it parses the content of a named file into an error of that file.

    It belongs round the parsing call alone, so that gptask's own defects keep their stack trace. ``path`` names the
    file, with the place in it where that is known. A `UserError` and a `MemoryError` pass unchanged.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or "no message"
        raise error_class(f"{path} can't be read, its content is damaged: {cause} ({type(error).__name__})") from error


def visible(text: str) -> str:
    """The text with control characters, which could rewrite a terminal's screen, as escapes: ``\\u001b``.

    Newlines and tabs stay. Each character is escaped by itself, so a text may come in pieces; JSON stays the same JSON.
    """
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class VisibleFormatter(logging.Formatter):
    """Formats log records without control characters: they may hold cells, labels and names of files."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return visible(super().format(record))


def user_path(text: object) -> Path:
    """The path that a user names, with ``~`` for a home folder; raises `UserError` where there is no such user."""
    try:
        return Path(str(text)).expanduser()
    except RuntimeError as error:
        raise UserError(f"no such file or folder: {text} ({str(error).rstrip('.')})") from error


def real_path(path: str | Path) -> Path:
    """The absolute path behind links; unlike `Path.resolve`, it raises nothing for links that lead to each other."""
    return Path(os.path.realpath(path))


def listing(names: Iterable[object], limit: int = 12) -> str:
    """Join names for a message, cut to ``limit`` names so that the message stays on one line."""
    texts = [str(name) for name in names]
    rest = f", … ({len(texts) - limit} more)" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + rest or "(none)"


def nearest(word: str, known: Iterable[object]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    matches = get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return a table as one line a row: the first ``left`` columns are aligned at the left, the others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    adjust = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    lines = ([f(cell, width) for f, cell, width in zip(adjust, row, widths, strict=True)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in lines]
