"""The command line that repeats a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from gptask.config import schemas
from gptask.config.conversion import escaped, to_plain
from gptask.config.overrides import quote_if_needed, quoted
from gptask.config.verb_schemas import VERB_SCHEMAS, verb_of_run
from gptask.plugins.discovery import discover

# options that belong to one run or machine only (folder to engine), or that the command states in another way
NOT_REPRODUCED = {"folder", "outputs", "resume", "probe", "engine", "run", "task", "tasks"}


def reproduce_command(config: dict[str, Any]) -> str:
    """The command line that a run's config.yaml holds; ``config`` is what `read_config` returns.

    For a run from Python or a resumed one, a command of all values that differ from the defaults. Of the engines, one
    decides the result: it is named where the run has it from the environment, too.
    """
    command = str(config.get("command") or _command_of_values(config))
    is_openvino = (config.get("engine") or {}).get("kind") == "openvino_schema"
    return f"{command} engine=openvino" if is_openvino and "engine=openvino" not in command else command


def _command_of_values(config: dict[str, Any]) -> str:
    verb = verb_of_run(config)
    defaults = to_plain(VERB_SCHEMAS[verb]())
    parent = config["run"] if verb == "compress" else config.get("parent")
    words = [f"run={quote_if_needed(str(parent))}"] if parent else []
    if "tasks" in config:
        words += _multitask_overrides(config["tasks"])
    else:
        words += [] if parent else [f"task={config['plugin']['name']}"]
        words += _changed_values("task", config["task"], _task_defaults(config))
    for name in (f.name for f in fields(VERB_SCHEMAS[verb])):
        from_parent = parent and name in ("backbone", "data")
        if name in config and name not in NOT_REPRODUCED and not from_parent:
            words += _group_overrides(name, config[name], defaults.get(name))
    return " ".join(map(_shell_word, ["gptask", verb, *words]))


def _multitask_overrides(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """The list of several tasks, and the options of each that differ from its defaults."""
    pairs = [f"{name}:{values['plugin']['name']}" for name, values in tasks.items()]
    words = [f"tasks=[{','.join(pairs)}]"]
    default_data = to_plain(schemas.Train())["data"]
    for name, values in tasks.items():
        words += _changed_values(f"tasks.{name}.task", values["task"], _task_defaults(values))
        words += [f"tasks.{name}.{word}" for word in _group_overrides("data", values["data"], default_data)]
        words += _changed_values(f"tasks.{name}.weight", values["weight"], 1.0)
    return words


def _task_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The default values of the task's options; empty if its plugin is not installed."""
    from omegaconf import OmegaConf

    name = config["plugin"]["name"]
    task = discover({name})[name].task if name in discover(()) else None
    defaults: Any = OmegaConf.to_container(OmegaConf.structured(task), enum_to_str=True) if task else {}
    return dict(defaults)


def _group_overrides(name: str, value: Any, default: Any) -> Iterator[str]:
    """The overrides of a config group: the choice within the group, and the values that differ from that choice's.

    An option that is no group has at most one override.
    """
    if name not in schemas.GROUP_SCHEMAS or not isinstance(value, dict):
        yield from _changed_values(name, value, default)
        return
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in schemas.GROUP_SCHEMAS[name]:
        return
    choice = {"pretrained": None, "scratch": "nano"}.get(kind, kind.removesuffix("_schema"))
    if choice and (default or {}).get("kind") != kind:
        yield f"{name}={choice}"
    schema = schemas.GROUP_SCHEMAS[name][kind]
    pretrained = kind == "pretrained"
    kind_defaults = default if pretrained else to_plain(schemas.Train(**{name: schema()}))[name]
    same_source = pretrained and value.get("source") == kind_defaults.get("source")
    omitted = {"kind", "install", "license"} if same_source else {"kind"}  # the preset of a source sets these two
    yield from _changed_values(name, {key: item for key, item in value.items() if key not in omitted}, kind_defaults)


def _changed_values(name: str, value: Any, default: Any) -> Iterator[str]:
    """Overrides for the values that differ from their default; dictionaries are compared key by key."""
    if isinstance(value, dict):
        defaults = default if isinstance(default, dict) else {}
        for key, item in value.items():
            yield from _changed_values(f"{name}.{key}", item, defaults.get(key))
    elif value not in (default, None):
        yield f"{name}={_override_value(value)}"


def _override_value(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_override_value, value))}]"
    if not isinstance(value, str):
        return str(value)
    text = escaped(value)
    return quoted(text) if "\\" in text else quote_if_needed(text)  # the grammar reads backslashes only in quotes


def _shell_word(word: str) -> str:
    """A word quoted for bash, on one line."""
    if "\n" not in word:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"$'{escaped}'"
