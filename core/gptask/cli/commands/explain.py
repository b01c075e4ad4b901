"""`gptask explain`: why a run predicts what it predicts, word by word."""

from __future__ import annotations

from collections.abc import Sequence

from gptask.cli.hydra.launch import launch
from gptask.cli.output import write_error
from gptask.config.explain_options import Explain


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    return launch("explain", arguments, lambda config, command: run(config))


def run(config: Explain) -> None:
    """Write the explanations, and say how faithful the method is on standard error."""
    from gptask.analysis.explain.explain_file import explain_file  # for start-up time

    faithfulness = explain_file(config)
    if faithfulness:
        write_error(f"{faithfulness.sentence}\n")
