"""``gptask <verb> --help``: the groups, and the composed config with what the YAML files and tasks say about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from typing import Any

KEY = re.compile(r"(?P<indent> *)(?P<name>[\w./-]+):(?: (?P<value>.*?))?(?: +# (?P<comment>.*))?")
NOTES = """Values: lists [a,b], dictionaries {{a:b}}, null, true, false. Keys of dictionaries need no +.
  gptask {verb} ... --cfg job    prints the config of a command line without running it
  gptask {verb} ... --info       prints where each part of it comes from
  gptask tasks <name>          describes a task: its data fields and options
"""
SWEEP = """  gptask {verb} -m a=1,2 b=x,y   runs every combination, one by one; started again, the unfinished
  hydra/launcher=joblib        ... in parallel: pip install 'gptask[joblib]'; submitit_slurm: 'gptask[slurm]'
"""


def text(verb: str, summary: str, overrides: Sequence[str]) -> str:
    """The help of a verb, its config composed with the overrides; raises what Hydra raises."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from gptask.cli.hydra.compose import compose, groups, loader

    with loader() as configs:
        config = compose(configs, verb, overrides)
        listed = groups(configs, verb)
        chosen = configs.compute_defaults_list(verb, list(overrides), RunMode.RUN).overrides.known_choices
    config = OmegaConf.masked_copy(config, [key for key in config.keys() if key != "hydra"])  # noqa: SIM118
    task = OmegaConf.get_type(config.task) if "task" in config else None
    rows = "".join(f"  {name:<12}{', '.join(names)}\n" for name, names in reversed(listed.items()))
    notes = NOTES.format(verb=verb) + (SWEEP.format(verb=verb) if verb in ("train", "evaluate") else "")
    return (
        f"gptask {verb} [group=choice ...] [option=value ...]: {summary}\n"
        + (f"\nGroups:\n{rows}" if rows else "")
        + "\nOptions (trainer.max_epochs=3, and so on) with their values now:\n"
        + "".join(annotated(OmegaConf.to_yaml(config), comments(verb, chosen, task)))
        + f"\n{notes}"
    )


def comments(verb: str, chosen: Mapping[str, Any], task: Any) -> dict[str, str]:
    """What the verb's YAML, those of the chosen groups and the task's dataclass say about options, by full name."""
    found = dict(_of_file(f"{verb}.yaml"))
    for group, choice in chosen.items():
        if not group.startswith("hydra/") and isinstance(choice, str):
            inner = dict(_of_file(f"{group}/{choice}.yaml"))
            found |= {name if name.startswith(f"{group}.") else f"{group}.{name}": c for name, c in inner.items()}
    return found | dict(_of_task(task, "task"))


def annotated(yaml: str, said: Mapping[str, str]) -> Iterator[str]:
    """The lines of a YAML text, indented, with the comments on their keys."""
    for name, line in _keys(yaml):
        comment = said.get(name) or ("required" if line.endswith(": ???") else "")
        yield f"  {line:<34}  # {comment}\n" if comment else f"  {line}\n"


def _keys(yaml: str) -> Iterator[tuple[str, str]]:
    """Each line with the full name of the key it sets (empty for others)."""
    path: list[tuple[int, str]] = []
    for line in yaml.splitlines():
        if not (found := KEY.fullmatch(line)):
            yield "", line
            continue
        depth = len(found["indent"])
        path = [*((d, name) for d, name in path if d < depth), (depth, found["name"])]
        yield ".".join(name for _, name in path), line


def _of_file(name: str) -> Iterator[tuple[str, str]]:
    file = files("gptask_conf").joinpath(name)
    if file.is_file():
        for key, line in _keys(file.read_text(encoding="utf-8")):
            found = KEY.fullmatch(line)
            if key and found and found["comment"]:
                yield key, found["comment"]


def _of_task(schema: Any, prefix: str) -> Iterator[tuple[str, str]]:
    from gptask.cli.commands.tasks import options

    if is_dataclass(schema) and fields(schema):
        for option in options(schema):  # type: ignore[arg-type]
            yield f"{prefix}.{option.name}", option.help
