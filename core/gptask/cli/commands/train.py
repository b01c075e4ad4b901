"""`gptask train`: fine-tune on one task or on several."""

from __future__ import annotations

from collections.abc import Sequence

from gptask.cli.hydra.launch import launch
from gptask.config.schemas import Train


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    return launch("train", arguments, run)


def run(config: Train, command: str | None) -> None:
    """Train, then print the test result of every task."""
    from gptask.cli.run_summary import show_run  # for start-up time
    from gptask.training.train import train_tasks

    for task_run in train_tasks(config, command=command).tasks.values():
        show_run(task_run.folder)
