"""The parser of verbs that read their own arguments."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from gptask.errors import UserError


class VerbParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises `UserError` instead of exiting."""

    def __init__(self, verb: str, **options: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(f"gptask {verb}", allow_abbrev=False, formatter_class=raw, **options)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(f"{message}; `{self.prog} --help` shows the arguments")
