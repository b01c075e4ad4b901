"""What Hydra and OmegaConf can do but offer in no public form; no other module touches their private names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any


def argument_parser() -> argparse.ArgumentParser:
    """The parser of Hydra's flags: in public it exists only within `hydra.main`, which exits on errors."""
    from hydra._internal.utils import get_args_parser

    parser: argparse.ArgumentParser = get_args_parser()
    return parser


def multirun(verb: str, job: Callable[[Any], int], overrides: Sequence[str]) -> list[int]:
    """The exit codes of a job for every combination of values: `hydra.main` runs them too, but returns nothing.

    Hydra has to be initialized.
    """
    from hydra.core.global_hydra import GlobalHydra

    hydra: Any = GlobalHydra.instance().hydra
    batches = hydra.multirun(verb, job, [*overrides, "hydra.mode=MULTIRUN"])
    return [result.return_value for batch in batches for result in batch]


def read_preset(configs: Any, name: str, overrides: Sequence[str]) -> Any:
    """The defaults list and the values of one config: `hydra.compose` returns only what they compose to."""
    _, repository = configs._parse_overrides_and_create_caching_repo(None, list(overrides))  # heeds hydra.searchpath
    return repository.load_config(name)


def complete_overrides(configs: Any, verb: str, line: str) -> list[str]:
    """Hydra's completions of a line of overrides: in public it prints those of a whole command line."""
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    candidates: list[str] = DefaultCompletionPlugin(configs)._query(config_name=verb, line=line)
    return candidates


def child_node(config: Any, key: Any) -> Any:
    """The node below a key as it is: in public only its value can be had, interpolated, an error where it misses."""
    return config._get_node(key)
