"""transformers' own messages."""

from __future__ import annotations

import warnings


def quiet_transformers() -> None:
    """Keep transformers' own progress bars, and its warnings to its own developers, out of the log."""
    from transformers.utils import logging as chatter

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    chatter.disable_progress_bar()
