"""The composed config made into the verb's dataclass, or refused with a message."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import Any

from gptask.cli.hydra.error_messages import CommandLine
from gptask.cli.hydra.private import child_node
from gptask.config.schemas import Full, Scratch
from gptask.errors import UserError


def validated_config(config: Any, command_line: CommandLine) -> Any:
    """The composed config as the verb's dataclass, its task as an instance of the plugin's class.

    Raises `UserError` for options that the schema lacks, and OmegaConf's errors for values that don't resolve.
    """
    from omegaconf import OmegaConf

    _refuse_unknown_options(config, "", command_line)
    _drop_tuning_of_preset(config, command_line)
    _resolve_interpolations(config)
    return OmegaConf.to_object(config)


def _drop_tuning_of_preset(config: Any, command_line: CommandLine) -> None:
    """Leave open a tuning that only a preset or the default names, where it would freeze random weights."""
    from omegaconf import OmegaConf

    if command_line.verb != "train" or OmegaConf.get_type(child_node(config, "backbone")) is not Scratch:
        return
    names = {re.split("[=.@]", override.lstrip("+~"))[0] for override in command_line.overrides}
    if "tuning" not in names and OmegaConf.get_type(child_node(config, "tuning")) is not Full:
        config.tuning = None


def _refuse_unknown_options(node: Any, prefix: str, command_line: CommandLine) -> None:
    """Refuse keys that ``+`` added to a schema or ``~`` removed from one."""
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(node):
        return
    if not is_dataclass(schema := OmegaConf.get_type(node)):
        for key in node:
            _refuse_unknown_options(child_node(node, key), f"{prefix}{key}.", command_line)
        return
    option_names = {f.name for f in fields(schema)}
    for key in node.keys() - option_names:
        raise UserError(command_line.unknown_option(f"{prefix}{key}"))
    for key in option_names - node.keys():
        raise UserError(f"~{prefix}{key}: this option can't be removed; set it to null or leave it out")
    for key in option_names:
        _refuse_unknown_options(child_node(node, key), f"{prefix}{key}.", command_line)


def _resolve_interpolations(node: Any) -> None:
    """Resolve interpolations one by one, so that an error names the option that holds it."""
    from omegaconf import OmegaConf

    for key in range(len(node)) if OmegaConf.is_list(node) else list(node):
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_config(value := node[key]):
            _resolve_interpolations(value)
