"""Arguments of verbs that are no Hydra overrides."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from gptask.errors import UserError


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose mistakes look and exit like all others."""

    def __init__(self, verb: str, **options: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(f"gptask {verb}", allow_abbrev=False, formatter_class=raw, **options)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(f"{message}; `{self.prog} --help` shows what there is")
