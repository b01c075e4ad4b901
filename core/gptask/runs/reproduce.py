"""The one line that would do a run again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from gptask.config import schemas
from gptask.config.conversion import to_plain
from gptask.config.overrides import quote_if_needed
from gptask.plugins.discovery import discover

NOT_REPRODUCED = {"folder", "outputs", "resume", "probe", "run", "task", "tasks"}  # of that one run, or said otherwise


def reproduce_command(config: dict[str, Any]) -> str:
    """The command line a run was started with; where it was not (from Python, or resumed), one made of all values of
    its config.yaml that are not the defaults."""
    if written := config.get("command"):
        return str(written)
    verb = "train" if "optimizer" in config else "evaluate"
    defaults = to_plain(schemas.VERBS[verb]())
    parent = config.get("parent")
    words = [f"run={quote_if_needed(str(parent))}"] if parent else []
    words += _tasks(config["tasks"]) if "tasks" in config else _task(config, named=not parent)
    for name in (f.name for f in fields(schemas.VERBS[verb])):
        if name in config and name not in NOT_REPRODUCED and not (parent and name in ("backbone", "data")):
            words += _group(name, config[name], defaults.get(name))
    return " ".join(map(_quoted, ["gptask", verb, *words]))


def _task(config: dict[str, Any], named: bool) -> list[str]:
    """The one task, and what it was told."""
    words = [f"task={config['plugin']['name']}"] if named else []
    return [*words, *_different("task", config["task"], _task_defaults(config))]


def _tasks(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """Several tasks, and what each was told."""
    pairs = [f"{name}:{own['plugin']['name']}" for name, own in tasks.items()]
    words = [f"tasks=[{','.join(pairs)}]"]
    sample = to_plain(schemas.Train())["data"]
    for name, own in tasks.items():
        words += _different(f"tasks.{name}.task", own["task"], _task_defaults(own))
        words += [f"tasks.{name}.{word}" for word in _group("data", own["data"], sample)]
        words += _different(f"tasks.{name}.weight", own["weight"], 1.0)
    return words


def _task_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """What the task's options are where nobody sets them; unknown where its plugin is not there."""
    from omegaconf import OmegaConf

    name = config["plugin"]["name"]
    task = discover({name})[name].task if name in discover(()) else None
    found: Any = OmegaConf.to_container(OmegaConf.structured(task), enum_to_str=True) if task else {}
    return dict(found)


def _quoted(word: str) -> str:
    """A word for a shell, on one line."""
    if "\n" not in word:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"


def _group(name: str, value: Any, default: Any) -> Iterator[str]:
    """A config group: which of its kinds, and what is not that kind's default."""
    if name not in schemas.GROUPS or not isinstance(value, dict):
        yield from _different(name, value, default)
        return
    kind = value.get("kind")
    if kind not in schemas.GROUPS[name]:
        return
    choice = {"pretrained": None, "scratch": "nano"}.get(kind, kind.removesuffix("_schema"))
    if choice and (default or {}).get("kind") != kind:
        yield f"{name}={choice}"
    schema = schemas.GROUPS[name][kind]
    pretrained = kind == "pretrained"
    own = default if pretrained else to_plain(schemas.Train(**{name: schema()}))[name]
    preset = {"install", "license"} if pretrained and value.get("source") == own.get("source") else set()
    yield from _different(name, {key: item for key, item in value.items() if key not in {"kind", *preset}}, own)


def _different(name: str, value: Any, default: Any) -> Iterator[str]:
    """Overrides for what differs from a default, dictionaries key by key."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _different(
                f"{name}.{key}", item, (default or {}).get(key) if isinstance(default, dict) else None
            )
    elif value not in (default, None):
        yield f"{name}={_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return quote_if_needed(str(value)) if isinstance(value, str) else str(value)
