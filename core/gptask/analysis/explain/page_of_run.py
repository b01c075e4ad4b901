"""Where the page of a run's explanations lies, and whether it explains the weights that are there now. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from gptask.runs.prediction_identity import run_digest

EXPLAIN_PAGE = "explain.html"  # in the run folder
HEAD_BYTES = 4096  # of the page, in which its run's digest stands
DIGEST = re.compile(rb'<meta name="gptask-run" content="([0-9a-f]*)">')


def page_of_run(folder: Path) -> tuple[Path | None, str]:
    """The page of a finished run's explanations, None without one; and why it is not that of these weights, if so."""
    path = folder / EXPLAIN_PAGE
    if not path.is_file():
        return None, ""
    try:
        with path.open("rb") as stream:
            match = DIGEST.search(stream.read(HEAD_BYTES))
    except OSError as error:
        return path, f"it can't be read ({error.strerror})"
    if match is None:
        return path, "it was not written by gptask explain"
    return path, "" if match[1].decode() == run_digest(folder) else "it explains another run, or other weights"
