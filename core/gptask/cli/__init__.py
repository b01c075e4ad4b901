"""The command line: ``gptask <verb> [Hydra overrides]``, and the one boundary where errors become messages."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from gptask.errors import UserError, listing, nearest

VERBS = {
    "train": "fine-tune on a task, keep the best checkpoint, test it",
    "evaluate": "score a run folder or the bare backbone without training",
    "sweep": "search for the options that do best on validation",
    "predict": "run a run folder on a file or standard input",
    "chat": "talk to a run folder or a bare backbone",
    "export": "write a Hugging Face folder for plain transformers",
    "compare": "compare runs: intervals, paired tests, leaderboard",
    "report": "write one HTML page on a run, or on several side by side",
    "tasks": "list the installed task plugins and their options, check them",
    "new-task": "write an installable package for a task of your own",
}
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit: 0 done, 2 a user's mistake, 130 Ctrl-C, 1 a defect of ours."""
    try:
        code = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # `gptask tasks | head`: nobody reads on, and Python would complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        code = told(error)
    sys.exit(code)


def told(error: BaseException, where: str = "") -> int:
    """Write the message for an error, behind the name of the job it ended, and return the exit code."""
    from gptask.cli.hydra.error_messages import explain

    message = explain(error)
    interrupted = isinstance(error, KeyboardInterrupt)
    if os.environ.get("GPTASK_DEBUG", "") not in ("", "0") or (message is None and not interrupted):
        traceback.print_exception(error)
    if interrupted:
        sys.stderr.write(f"\ngptask: {where}{error or 'stopped'}\n")
        return 130
    if message is None:
        sys.stderr.write(f"gptask: {where}this is a defect of gptask or of a plugin, not of your input: report it\n")
        return 1
    sys.stderr.write(f"gptask: {where}{message}\n")
    return 2


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["-sc"] or arguments[:1] == ["--shell-completion"]:
        from gptask.cli.hydra.completion import complete

        complete(arguments[1:])
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {name:<10}{text}" for name, text in VERBS.items())
        sys.stdout.write(USAGE.format(verbs=verbs))
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb == "--version" or "--version" in rest:
        sys.stdout.write(f"gptask {version('gptask')}\n")
        return 0
    if verb not in VERBS:
        raise UserError(f"unknown verb '{verb}'; there are {listing(VERBS)}.{nearest(verb, VERBS)}")
    if verb in OWN:
        return OWN[verb](rest)
    from gptask.cli.hydra.launch import launch

    return launch(verb, rest, ACTIONS[verb], told)


def _tasks(arguments: Sequence[str]) -> int:
    from gptask.cli.commands.tasks import show

    return show(arguments)


def _sweep(arguments: Sequence[str]) -> int:
    from gptask.cli.commands.sweep import run

    return run(arguments, told)


def _compare(arguments: Sequence[str]) -> int:
    from gptask.cli.commands.compare import compare

    return compare(arguments)


def _chat(arguments: Sequence[str]) -> int:
    from gptask.cli.commands.chat import chat

    return chat(arguments)


def _report(arguments: Sequence[str]) -> int:
    from gptask.cli.commands.report import report

    return report(arguments)


def _new_task(arguments: Sequence[str]) -> int:
    from gptask.cli.commands.new_task import new_task

    return new_task(arguments)


OWN: dict[str, Callable[[Sequence[str]], int]] = {  # verbs that read their own arguments, and return the exit code
    "sweep": _sweep,
    "chat": _chat,
    "compare": _compare,
    "report": _report,
    "tasks": _tasks,
    "new-task": _new_task,
}


def _train(config: Any) -> None:
    from gptask.cli.run_summary import show_run
    from gptask.training.train import train_tasks

    runs = train_tasks(config)
    for run in runs.tasks.values():
        show_run(run.folder)


def _evaluate(config: Any) -> None:
    from gptask.cli.run_summary import show_run
    from gptask.training.evaluate import evaluate

    show_run(evaluate(config))


def _predict(config: Any) -> None:
    from gptask.runs.predict_file import predict

    predict(config)


def _export(config: Any) -> None:
    from gptask.runs.export import export

    sys.stderr.write(f"exported to {export(config)}\n")


ACTIONS: dict[str, Callable[[Any], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
}
