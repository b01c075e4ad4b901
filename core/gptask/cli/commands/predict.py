"""`gptask predict`: a run's predictions for a file or standard input."""

from __future__ import annotations

from collections.abc import Sequence

from gptask.cli.hydra.launch import launch
from gptask.config.schemas import Predict


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    return launch("predict", arguments, lambda config, command: run(config))


def run(config: Predict) -> None:
    """Write the predictions to the config's output."""
    if config.server:
        from gptask.serving.client import predict_by_server  # for start-up time

        predict_by_server(config)
        return
    from gptask.runs.predict_file import predict  # for start-up time

    predict(config)
