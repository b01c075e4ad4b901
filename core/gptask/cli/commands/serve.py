"""`gptask serve`: answer requests for many runs from one backbone."""

from __future__ import annotations

from collections.abc import Sequence

from gptask.cli.hydra.launch import launch
from gptask.config.schemas import Serve


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    return launch("serve", arguments, lambda config, command: run(config))


def run(config: Serve) -> None:
    """Serve until the process is told to end."""
    from gptask.serving.server import serve  # for start-up time

    serve(config)
