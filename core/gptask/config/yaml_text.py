"""YAML from elsewhere: read without aliases, which a few lines can make stand for gigabytes, and not nested deeply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptask.errors import UserError

MAX_BYTES = 2**24  # of a config file
MAX_DEPTH = 50


def load_yaml(text: str, name: object, texts_only: bool = False) -> Any:
    """The value of a YAML text; ``texts_only`` leaves every scalar a text. ``name`` says in errors where it is from.

    Raises `UserError` for aliases, deep nesting and too much text, and ``yaml.YAMLError`` for what is no YAML.
    """
    import yaml  # for start-up time

    if len(text) > MAX_BYTES:
        raise UserError(f"{name} has {len(text):,} characters, at most {MAX_BYTES:,} are read")
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(
                f"{name}: line {event.start_mark.line + 1} has a YAML alias (*{event.anchor}): write it out"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"{name}: line {event.start_mark.line + 1} is nested deeper than {MAX_DEPTH} levels")
    loader = yaml.BaseLoader if texts_only else getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(text, loader)


def read_yaml(file: Path) -> Any:
    """The value of a YAML file, as `load_yaml` gives it; raises `UserError` for a pipe or a device."""
    if not file.is_file():  # reading it may never end
        raise UserError(f"{file} is no regular file")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise UserError(f"{file} has {size:,} bytes, at most {MAX_BYTES:,} are read")
    return load_yaml(file.read_text(encoding="utf-8"), file)
