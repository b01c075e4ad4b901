"""The command line: ``gptask <verb> [Hydra overrides]``, and the one boundary where errors become messages."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import version

from gptask.cli.output import is_blocked, report_error, write_out
from gptask.cli.verbs import VERBS
from gptask.errors import UserError, listing, nearest
from gptask.training.interrupts import interruptible

USAGE = """gptask <verb> [option=value ...]

One GPT in memory, many NLP tasks on top of it.

{verbs}

  gptask train task=sentiment                                        fine-tune on the bundled sample
  gptask train task=qa data=files data.train=train.json tuning=full  ... on your own files
  gptask train -m task=sentiment,classification                      ... several, one after the other
  gptask sweep tuning.rank=4,8,16 --trials 3                         ... and let Optuna choose the options
  gptask predict run=outputs/sentiment/<run> input=reviews.txt       predict with a run folder
  gptask chat smollm2 temperature=0.2                                talk to a model in the terminal

gptask <verb> --help shows the verb's options; --cfg job prints a config without running it; --version the version.
Shell completion: eval "$(gptask -sc install=bash)"
GPTASK_DEBUG=1 shows stack traces.
"""
BROKEN_PIPE = 141  # as a shell reports a program that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit: 0 success, 2 user error, 70 internal error, 130 Ctrl-C, 143 SIGTERM.

    1 is the bad news that a verb is asked for: `compare --fail-if-worse`, `tasks --check`.
    """
    _repair_standard_streams()
    code = 0
    try:
        code = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # `gptask tasks | head`: the reader is gone, and flushing at exit would raise again
        code = BROKEN_PIPE
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        code = BROKEN_PIPE  # rich exits with 1, which is bad news here
    except (Exception, KeyboardInterrupt) as error:
        code = code or report_error(error)  # a job may have reported the same
    finally:
        for stream in (sys.stdout, sys.stderr):
            if is_blocked(stream):  # Python would try again at exit, and change the exit code
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _repair_standard_streams() -> None:
    """Streams that the shell has closed (``>&-``) take and give nothing; a terminal gets what it lacks escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["-sc"] or arguments[:1] == ["--shell-completion"]:
        from gptask.cli.hydra.completion import complete  # for start-up time

        complete(arguments[1:])
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {verb.name:<10}{verb.summary}" for verb in VERBS.values())
        write_out(USAGE.format(verbs=verbs))
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version" or "--version" in rest:
        write_out(f"gptask {version('gptask')}\n")
        return 0
    if name not in VERBS:
        raise UserError(f"unknown verb '{name}'; available: {listing(VERBS)}.{nearest(name, VERBS)}")
    with nullcontext() if VERBS[name].own_signals else interruptible():
        code: int = import_module(VERBS[name].module).main(rest)
    return code
