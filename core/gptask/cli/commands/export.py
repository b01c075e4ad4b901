"""`gptask export`: write a run as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence

from gptask.cli.hydra.launch import launch
from gptask.cli.output import write_error
from gptask.config.schemas import Export


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    return launch("export", arguments, lambda config, command: run(config))


def run(config: Export) -> None:
    """Export and name the folder on standard error."""
    from gptask.runs.export import export  # for start-up time

    write_error(f"exported to {export(config)}\n")
