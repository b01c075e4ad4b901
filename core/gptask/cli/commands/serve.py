"""`gptask serve`: answer requests for many runs from one backbone."""

from __future__ import annotations

from collections.abc import Sequence

from gptask.cli.hydra.launch import launch
from gptask.config.schemas import Serve


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    names = [argument.lstrip("+").partition("=")[0] for argument in arguments]
    if "backbone" not in names and any(name.startswith("backbone.") for name in names):
        arguments = ["backbone=smollm2", *arguments]  # other options of it need one; null leaves it to the runs
    return launch("serve", arguments, lambda config, command: run(config))


def run(config: Serve) -> None:
    """Serve until the process is told to end."""
    from gptask.serving.serve_options import check_files, check_options  # for start-up time: `server` imports torch

    check_options(config)
    check_files(config)
    from gptask.serving.server import serve

    serve(config)
