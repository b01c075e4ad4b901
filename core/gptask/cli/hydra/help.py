"""``gptask <verb> --help``: the config groups, and the composed config with the comments of YAML files and tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from typing import Any

from gptask.cli.hydra.compose import compose, groups, loader
from gptask.cli.hydra.private import child_node
from gptask.cli.verbs import Verb

YAML_KEY = re.compile(r"(?P<indent> *)(?P<name>[\w./-]+):(?: (?P<value>.*?))?(?: +# (?P<comment>.*))?")
CONTINUED_COMMENT = re.compile(r"\n +# (?=.)")  # an indented line of comment goes on with the one before it
NOTES = """Values: lists [a,b], dictionaries {{a:b}}, null, true, false. Keys of dictionaries need no +.
  gptask {verb} ... --cfg job    prints the config of a command line without running it
  gptask {verb} ... --info       prints where each part of it comes from
  gptask tasks <name>          describes a task: its data fields and options
"""
MULTIRUN_NOTES = """  gptask {verb} -m a=1,2 b=x,y   runs every combination, one by one; started again, the unfinished
  hydra/launcher=joblib        ... in parallel: pip install 'gptask[joblib]'; submitit_slurm: 'gptask[slurm]'
"""


def help_text(verb: Verb, overrides: Sequence[str]) -> str:
    """The help of a verb, its config composed with the overrides; raises Hydra's errors."""
    from omegaconf import OmegaConf

    with loader() as configs:
        config, comments = commented_config(configs, verb.name, overrides)
        available = groups(configs, verb.name, overrides)
    group_rows = "".join(f"  {name:<12}{', '.join(choices)}\n" for name, choices in reversed(available.items()))
    notes = NOTES.format(verb=verb.name) + (MULTIRUN_NOTES.format(verb=verb.name) if verb.multirun else "")
    return (
        f"gptask {verb.name} [group=choice ...] [option=value ...]: {verb.summary}\n"
        + (f"\nGroups:\n{group_rows}" if group_rows else "")
        + "\nOptions (trainer.max_epochs=3, and so on) with their present values:\n"
        + "".join(_annotated(OmegaConf.to_yaml(config), comments))
        + f"\n{notes}"
    )


def commented_config(configs: Any, verb: str, overrides: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """The config of a verb with overrides, and the comments on its options by their full names.

    An option's comment stands in the verb's YAML, the YAML of the chosen group or the help of the dataclass's field.
    Raises Hydra's errors.
    """
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    config = compose(configs, verb, overrides)
    config = OmegaConf.masked_copy(config, [key for key in config.keys() if key != "hydra"])  # noqa: SIM118
    chosen = configs.compute_defaults_list(verb, list(overrides), RunMode.RUN).overrides.known_choices
    comments = dict(_schema_comments(config)) | dict(_yaml_comments(f"{verb}.yaml"))
    for group, choice in chosen.items():
        if not group.startswith("hydra/") and isinstance(choice, str):
            for name, comment in _yaml_comments(f"{group}/{choice}.yaml"):
                comments[name if name.startswith(f"{group}.") else f"{group}.{name}"] = comment
    return config, comments


def _schema_comments(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Full name and help of the options whose dataclass explains them."""
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(node):
        return
    schema = OmegaConf.get_type(node)
    for option in fields(schema) if is_dataclass(schema) else ():
        if comment := option.metadata.get("help"):
            yield f"{prefix}{option.name}", comment
    for name in node.keys():  # noqa: SIM118 (none where the value is missing or null)
        yield from _schema_comments(child_node(node, name), f"{prefix}{name}.")


def _annotated(yaml: str, comments: Mapping[str, str]) -> Iterator[str]:
    """The lines of a YAML text, indented, each with the comment on its key."""
    for key, line in _keys(yaml):
        comment = comments.get(key) or ("required" if line.endswith(": ???") else "")
        yield f"  {line:<34}  # {comment}\n" if comment else f"  {line}\n"


def _yaml_comments(name: str) -> Iterator[tuple[str, str]]:
    """Full name and comment of the commented keys in a file of gptask_conf."""
    file = files("gptask_conf").joinpath(name)
    if file.is_file():
        text = CONTINUED_COMMENT.sub(" ", file.read_text(encoding="utf-8"))
        for key, line in _keys(text):
            match = YAML_KEY.fullmatch(line)
            if key and match and match["comment"]:
                yield key, match["comment"]


def _keys(yaml: str) -> Iterator[tuple[str, str]]:
    """Each line with the full name of the key it sets, empty for a line that sets none."""
    parents: list[tuple[int, str]] = []
    for line in yaml.splitlines():
        if not (match := YAML_KEY.fullmatch(line)):
            yield "", line
            continue
        indent = len(match["indent"])
        parents = [*((i, name) for i, name in parents if i < indent), (indent, match["name"])]
        yield ".".join(name for _, name in parents), line
