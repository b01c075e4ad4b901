"""`gptask compress`: make a run smaller, and compare it with what it was."""

from __future__ import annotations

from collections.abc import Sequence

from gptask.cli.hydra.launch import launch
from gptask.config.compression import Compress


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    return launch("compress", arguments, run)


def run(config: Compress, command: str | None) -> None:
    """Compress, then print the test result of every task."""
    from gptask.analysis.compress.methods import compress
    from gptask.cli.run_summary import show_run  # for start-up time

    for task_run in compress(config, command).tasks.values():
        show_run(task_run.folder)
