"""Conversion of configs between typed objects, plain values and nodes of Hydra's store."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

from gptask.config.schemas import GROUP_SCHEMAS, Train
from gptask.config.verb_schemas import VERB_SCHEMAS
from gptask.errors import UserError, damaged


def register_schemas() -> None:
    """Register every schema with Hydra, so that a misspelled or mistyped option is refused before anything loads."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for verb, schema in VERB_SCHEMAS.items():
        store.store(name=f"{verb}_schema", node=schema, provider="gptask")
    for group, kinds in GROUP_SCHEMAS.items():
        for name, schema in kinds.items():
            store.store(group=group, name=name, node=schema, provider="gptask")


def validated_copy(config: Any) -> Any:
    """Return a copy of a config built in Python, with every value checked and converted as on the command line.

    Raises `UserError` for a value of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.structured(escaped(config)))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or type(config).__name__}: {str(error).splitlines()[0]}") from error


def to_plain(config: Any) -> dict[str, Any]:
    """Convert a config dataclass to plain values; each group gets its ``kind``, the schema that loads it.

    A `Train` config keeps either ``task`` and ``data``, or ``tasks`` (each a config of its own) and ``mixing``.
    """
    from omegaconf import OmegaConf

    plain: dict[str, Any] = {}
    omitted: tuple[str, ...] = ()
    if isinstance(config, Train):
        omitted = ("task", "data") if config.tasks else ("tasks", "mixing")
    for name in (f.name for f in fields(config) if f.name not in omitted):
        value = getattr(config, name)
        plain[name] = value.name if isinstance(value, Enum) else value
        if name == "tasks":
            plain[name] = {task_name: to_plain(task_config) for task_name, task_config in value.items()}
        elif isinstance(value, Enum):
            plain[name] = value.name
        elif is_dataclass(value):
            plain[name] = OmegaConf.to_container(OmegaConf.structured(escaped(value)), resolve=True, enum_to_str=True)
            kinds = {schema: kind for kind, schema in GROUP_SCHEMAS.get(name, {}).items()}
            if type(value) in kinds:
                plain[name] = {"kind": kinds[type(value)], **plain[name]}
    return plain


def from_plain(group: str, plain: dict[str, Any], schema: type | None = None) -> Any:
    """Reverse `to_plain` for one group: merge the values over their typed schema and check them.

    Raises `UserError` for values that are not of the schema; its cause is what OmegaConf raises.
    """
    from omegaconf import OmegaConf

    values = dict(plain)
    kind = values.pop("kind", None)
    if schema is None and (schema := GROUP_SCHEMAS[group].get(str(kind))) is None:
        raise UserError(f"the saved options of {group} are damaged: its kind is {str(kind)[:40]!r}")
    with damaged(f"the saved options of {group}"):
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), escaped(values)))


def escaped(value: Any) -> Any:
    """A copy of plain values or of a config object that OmegaConf resolves to these values, whatever texts they hold.

    A ``${`` in it, of a label or of a run from elsewhere, is text: only command lines and presets have interpolations.
    """
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if "${" in value else value
    if isinstance(value, PurePath):
        return escaped(str(value))
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        value = copy(value)
        for f in fields(value):
            setattr(value, f.name, escaped(getattr(value, f.name)))
    return value
