"""``gptask <verb> --help``: the config groups, and the composed config with the comments of YAML files and tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from typing import Any

from gptask.cli.commands.tasks import task_options
from gptask.cli.hydra.compose import compose, groups, loader
from gptask.cli.verbs import Verb

YAML_KEY = re.compile(r"(?P<indent> *)(?P<name>[\w./-]+):(?: (?P<value>.*?))?(?: +# (?P<comment>.*))?")
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
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    with loader() as configs:
        config = compose(configs, verb.name, overrides)
        available = groups(configs, verb.name, overrides)
        chosen = configs.compute_defaults_list(verb.name, list(overrides), RunMode.RUN).overrides.known_choices
    config = OmegaConf.masked_copy(config, [key for key in config.keys() if key != "hydra"])  # noqa: SIM118
    task = OmegaConf.get_type(config.task) if "task" in config else None
    group_rows = "".join(f"  {name:<12}{', '.join(choices)}\n" for name, choices in reversed(available.items()))
    notes = NOTES.format(verb=verb.name) + (MULTIRUN_NOTES.format(verb=verb.name) if verb.multirun else "")
    return (
        f"gptask {verb.name} [group=choice ...] [option=value ...]: {verb.summary}\n"
        + (f"\nGroups:\n{group_rows}" if group_rows else "")
        + "\nOptions (trainer.max_epochs=3, and so on) with their present values:\n"
        + "".join(_annotated(OmegaConf.to_yaml(config), _comments(verb.name, chosen, task)))
        + f"\n{notes}"
    )


def _comments(verb: str, choices: Mapping[str, Any], task: Any) -> dict[str, str]:
    """Full name of an option -> its comment in the verb's YAML, the chosen groups' YAML or the task's dataclass."""
    comments = dict(_yaml_comments(f"{verb}.yaml"))
    for group, choice in choices.items():
        if not group.startswith("hydra/") and isinstance(choice, str):
            for name, comment in _yaml_comments(f"{group}/{choice}.yaml"):
                comments[name if name.startswith(f"{group}.") else f"{group}.{name}"] = comment
    if is_dataclass(task) and fields(task):
        comments |= {f"task.{option.name}": option.help for option in task_options(task)}  # type: ignore[arg-type]
    return comments


def _annotated(yaml: str, comments: Mapping[str, str]) -> Iterator[str]:
    """The lines of a YAML text, indented, each with the comment on its key."""
    for key, line in _keys(yaml):
        comment = comments.get(key) or ("required" if line.endswith(": ???") else "")
        yield f"  {line:<34}  # {comment}\n" if comment else f"  {line}\n"


def _yaml_comments(name: str) -> Iterator[tuple[str, str]]:
    """Full name and comment of the commented keys in a file of gptask_conf."""
    file = files("gptask_conf").joinpath(name)
    if file.is_file():
        for key, line in _keys(file.read_text(encoding="utf-8")):
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
