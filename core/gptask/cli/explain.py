"""Errors of Hydra and OmegaConf in words a user can act on."""

from __future__ import annotations

import re
from typing import Any

from gptask.errors import UserError, listing, nearest


def explain(error: BaseException) -> str | None:
    """The message for an error a user can mend, None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    module = type(error).__module__.split(".")[0]
    if module in ("hydra", "omegaconf"):
        return _config_error(error)
    if (
        isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError)
        and error.filename
    ):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno == 28:
        return f"{error.strerror}: {error.filename or 'while writing'}"
    return None


def _config_error(error: BaseException) -> str:
    texts = _chain(error)
    whole = "\n".join(texts)
    if found := re.search(r"Could not find '([\w/]+)/([^']+)'", whole):
        return _unknown_choice(*found.groups(), whole)
    if found := re.search(r"Could not override '([^']+)'\.?(?:\s+No match in the defaults list)", whole):
        groups = re.findall(r"^\s+([\w/]+)$", whole, re.M)
        return f"unknown option group '{found[1]}'.{nearest(found[1], groups)} Options are set as group.name=value."
    if found := re.search(r"Could not override '([^']+)'", whole):
        return _unknown_key(found[1], whole)
    if found := re.search(r"[Mm]issing mandatory value: (\S+)", whole):
        return f"{found[1]} is required: {found[1]}=<value>"
    if found := re.search(r"full_key: (\S+)", whole):
        key = found[1].rstrip(".")
        if "not in" in texts[0] or "Key '" in texts[0]:
            return _unknown_key(key, whole)
        return f"{key}: {_cause(texts)}"
    return _cause(texts)


def _chain(error: BaseException | None) -> list[str]:
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return texts


def _cause(texts: list[str]) -> str:
    """The line that says what is wrong: OmegaConf's own if it spoke, else the innermost (outer ones say where)."""
    spoken = [text for text in texts if "full_key:" in text] + [text for text in reversed(texts) if text.strip()]
    return spoken[0].strip().splitlines()[0]


def _unknown_choice(group: str, name: str, whole: str) -> str:
    known = [n for n in re.findall(r"^\t(\S+)$", whole, re.M) if not n.endswith("_schema")]
    return f"unknown {group} '{name}'; there are {listing(known, 40)}.{nearest(name, known)}"


def _unknown_key(key: str, whole: str) -> str:
    """Name the siblings of an unknown key, read from the schema that refused it."""
    parent, _, name = key.rpartition(".")
    if wrong := re.search(r"(Value .*|Invalid value .*|Cannot convert .*)", whole):
        return f"{key}: {wrong[1].splitlines()[0]}"
    if found := re.search(r"Key '([^']+)' (?:is )?not in '?([\w ]+)'?", whole):
        name = found[1]
    known = siblings(parent)
    there = f"; there are {listing(known, 40)}.{nearest(name, known)}" if known else ""
    return f"unknown option '{key}'{there}"


def siblings(parent: str) -> list[str]:
    """The options under a key of the last command line, composed without its value overrides."""
    import sys

    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from gptask.cli import VERBS

    choices = [a for a in sys.argv[1:] if "=" in a and "." not in a.split("=")[0] and not a.startswith(("-", "+", "~"))]
    GlobalHydra.instance().clear()
    for verb in [v for v in VERBS if v != "tasks"]:
        try:
            with initialize_config_module("gptask_conf", version_base="1.3"):
                node: Any = compose(verb, overrides=choices)
        except HydraException:
            continue
        for part in parent.split(".") if parent else []:
            node = node.get(part) if hasattr(node, "get") else None
        if hasattr(node, "keys"):
            return [str(name) for name in node]
    return []
