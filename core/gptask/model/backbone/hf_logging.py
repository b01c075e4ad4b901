"""Keeps messages of transformers out of the log."""

from __future__ import annotations

import warnings
from typing import Any


def quiet_transformers() -> None:
    """Switch off progress bars of transformers, and the FutureWarnings that are meant for its developers."""
    from transformers.utils import logging

    hf_logging: Any = logging  # transformers leaves its functions untyped
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    hf_logging.disable_progress_bar()
