"""The one call of this room whose name begins with an underscore; it is public all the same."""

from __future__ import annotations

import os
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End the process at once, without waiting for its threads."""
    os._exit(code)
