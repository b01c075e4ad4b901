"""`gptask evaluate`: score a run folder or the bare backbone."""

from __future__ import annotations

from collections.abc import Sequence

from gptask.cli.hydra.launch import launch
from gptask.config.schemas import Evaluate


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    return launch("evaluate", arguments, run)


def run(config: Evaluate, command: str | None) -> None:
    """Evaluate, then print the result."""
    from gptask.cli.run_summary import show_run  # for start-up time
    from gptask.training.evaluate import evaluate

    show_run(evaluate(config, command=command))
