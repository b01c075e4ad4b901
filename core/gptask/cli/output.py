"""What the command line writes besides results: error messages for people, JSON for machines."""

from __future__ import annotations

import json
import os
import sys
import traceback
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from typing import Any

from gptask.errors import Terminated, UserError, visible, write_failure

LINE_END = "\n"
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h; 1 is what `compare --fail-if-worse` reports


def write_out(text: str) -> None:
    """Write a text to standard output; on a terminal, control characters of data are made visible."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)


def write_error(text: str) -> None:
    """Write a text for people to standard error, with the control characters of data made visible."""
    sys.stderr.write(visible(text))


def report_error(error: BaseException, where: str = "") -> int:
    """Write the message of an error to standard error and return the exit code.

    ``where`` names the job or trial that raised it. The stack trace is shown for an internal error, and for every error
    if GPTASK_DEBUG is set.
    """
    with suppress(OSError):  # standard error is full, too; the exit code tells
        return _report(error, where)
    if isinstance(error, KeyboardInterrupt):
        return _interrupted_code(error)
    return INTERNAL_ERROR if user_message(error) is None else 2


def _interrupted_code(error: KeyboardInterrupt) -> int:
    """The exit code of a program that a signal has ended, as a shell reports it."""
    return 143 if isinstance(error, Terminated) else 130


def _report(error: BaseException, where: str) -> int:
    message = user_message(error)
    if os.environ.get("GPTASK_DEBUG", "") not in ("", "0") or (
        message is None and not isinstance(error, KeyboardInterrupt)
    ):
        write_error("".join(traceback.format_exception(error)))
    if isinstance(error, KeyboardInterrupt):
        write_error(f"\ngptask: {where}{str(error) or 'stopped'}\n")
        return _interrupted_code(error)
    if message is None:
        write_error(f"gptask: {where}{_internal_error(error)}\n")
        return INTERNAL_ERROR
    write_error(f"gptask: {where}{message}\n")
    return 2


def user_message(error: BaseException) -> str | None:
    """The message of an error that the user can fix, None for an internal error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename and error.errno:
        return f"{error.filename}: {error.strerror}"
    if reason := write_failure(error):
        return f"{reason} while writing{' to standard output' if is_blocked(sys.stdout, probe=LINE_END) else ''}"
    if isinstance(error, BrokenExecutor):  # joblib raises it
        return (
            "the process of a job was killed, possibly for lack of memory: hydra.launcher.n_jobs=1 runs one job at a "
            "time. The same command again skips the finished jobs"
        )
    return None


def is_blocked(stream: Any, probe: str = "") -> bool:
    """Whether a stream can't write what it holds back, or ``probe``: its disk is full, or its reader is gone."""
    try:
        stream.write(probe)
        stream.flush()
    except (OSError, ValueError):
        return True
    return False


def _internal_error(error: BaseException) -> str:
    """Whose defect an error is: the plugin's whose code raised it, else gptask's."""
    from gptask.plugins.discovery import failing_plugin  # for start-up time

    if not (failing := failing_plugin(error)):
        return "internal error in gptask or a plugin; please report it"
    plugin, hook, place = failing
    return f"task '{plugin.name}' ({plugin.origin}): {hook}() fails, {place}; the plugin's author must fix this"


def print_json(value: Any) -> None:
    """Write a value as JSON to standard output, in ASCII where its encoding lacks a character."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, default=str)
    sys.stdout.write(visible(text) + "\n")
