"""`gptask sweep`: its command line, the checks before the study is made, and the table at the end."""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gptask.cli.arguments import Parser
from gptask.cli.hydra.compose import checked, compose, loader
from gptask.cli.hydra.error_messages import mended
from gptask.cli.hydra.launch import open_keys, read
from gptask.config.overrides import normalize_overrides
from gptask.config.trainer_options import check_trainer_options
from gptask.errors import UserError
from gptask.training.sweep.space import GRAMMAR, Dimension, in_file, on_line, together
from gptask.training.sweep.study import PRUNERS, SAMPLERS, refuse_grid

if TYPE_CHECKING:
    from gptask.config.schemas import Train
    from gptask.training.sweep.driver import SweepPlan
    from gptask.training.sweep.study import Study

USAGE = "gptask sweep [option=value ...] option=<space> ... [--trials 20]"
ABOUT = f"""Search for the options of `gptask train` that do best on the task's main validation metric, with Optuna.

A space is {GRAMMAR};
quote it for the shell. What has one value is fixed for all trials. The study and its run folders lie in
<outputs>/sweeps/<study>; the same command goes on with it: what is done counts, what was stopped is done again.

  gptask sweep task=sentiment 'tuning.lr=tag(log,interval(1e-4,1e-2))' tuning.rank=4,8,16 --trials 20
"""
OURS = {  # options that a sweep settles itself, or can't have
    "folder": "each trial gets a folder in <outputs>/sweeps/<study>",
    "resume": "a stopped trial is asked again",
    "tasks": "it searches for what is best for one task (gptask train -m runs several values)",
}
ALIKE = ("task", "outputs", "data.seed", "data.validation", "data.cut", "data.limit.validation")  # of all trials
SHOWN = 10


def run(arguments: Sequence[str], report: Callable[[Exception, str], int]) -> int:
    """Read the line, check what it asks for, search, show the best; return the exit code."""
    given = parser().parse_intermixed_args(list(arguments))
    plan, first = _plan(given, report)
    if not find_spec("optuna"):
        raise UserError("gptask sweep needs a package that is not installed: pip install 'gptask[sweep]'")
    from gptask.training.sweep.driver import run_sweep

    show(plan, run_sweep(plan, first))
    return 0


def parser() -> Parser:
    """The options of the verb; whatever is no option is an override."""
    made = Parser("sweep", usage=USAGE, description=ABOUT)
    made.add_argument("overrides", nargs="*", help="options of gptask train, some of them with a space")
    made.add_argument("--trials", type=int, default=20, help="trials wanted in all, complete or pruned (default 20)")
    made.add_argument("--space", metavar="FILE", help="YAML: option -> a list of choices, or a space as on the line")
    made.add_argument("--study", metavar="NAME", help="its folder's name (default: the task and a digest of the line)")
    made.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="how options are picked (default tpe)")
    made.add_argument("--pruner", choices=PRUNERS, default="median", help="what ends a trial early (default median)")
    made.add_argument("--timeout", metavar="MINUTES", type=float, help="begin no trial after so long")
    return made


def _plan(given: argparse.Namespace, report: Callable[[Exception, str], int]) -> tuple[SweepPlan, Train]:
    """What the line asks for, every choice in it tried out on the config."""
    if given.trials < 1 or (given.timeout is not None and given.timeout <= 0):
        raise UserError(f"--trials {given.trials}: expected 1 or more" if given.trials < 1 else
                        f"--timeout {given.timeout:g}: expected minutes above 0")  # fmt: skip
    if given.study and not re.fullmatch(r"\w[\w.-]*", given.study):
        raise UserError(f"--study {given.study}: expected a name of letters, digits, '-', '_' and '.'")
    read("train", [])  # makes the plugins choices
    known = {override.partition("=")[0].split(".")[0].lstrip("+") for override in given.overrides}
    space, fixed = on_line(given.overrides, normalize_overrides(given.overrides, True, known, open_keys()))
    space = together(in_file(given.space) if given.space else [], space, fixed)
    _refuse(space, fixed)
    if given.sampler == "grid":
        refuse_grid(space)
    first = _first(space, fixed)
    from gptask.plugins.discovery import plugin_of
    from gptask.training.sweep.driver import SweepPlan, deciding

    text = repr([deciding(fixed), sorted((d.key, str(d)) for d in space), given.sampler, given.pruner])
    name = given.study or f"{plugin_of(first.task).name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return SweepPlan(
        space, fixed, name, given.trials, given.sampler, given.pruner, given.timeout, configure, report
    ), first


def _refuse(space: Sequence[Dimension], fixed: Sequence[str]) -> None:
    if not space:
        raise UserError(f"there is no search space: give an option {GRAMMAR} (or --space space.yaml)")
    for key in [*(d.key for d in space), *(override.partition("=")[0].lstrip("+~") for override in fixed)]:
        if key in OURS:
            raise UserError(f"{key}= is not for a sweep: {OURS[key]}")
    if wrong := [d.key for d in space if d.key in ALIKE]:
        raise UserError(f"{wrong[0]} has one value in a sweep: only what is measured alike can be compared")
    if any(d.key == "seed" for d in space) and not any(o.lstrip("+").startswith("data.seed=") for o in fixed):
        raise UserError("seed decides what is validation data: data.seed=<number> fixes that, so that trials compare")


def _first(space: Sequence[Dimension], fixed: Sequence[str]) -> Train:
    """The config of the first values; those with each other choice are made too, so that no trial fails hours later."""
    start = {d.key: d.override(d.choices[0] if d.choices else d.low) for d in space}
    first = configure([*fixed, *start.values()])
    for d in space:
        for choice in d.choices[1:]:
            other = configure([*fixed, *(start | {d.key: d.override(choice)}).values()])
            if type(other.task) is not type(first.task):
                raise UserError(f"{d.key}={choice} is of another task than {start[d.key]}: a sweep has one")
    return first


def configure(overrides: Sequence[str]) -> Train:
    """The checked config of `gptask train` with overrides."""
    from omegaconf import open_dict

    line, flags = read("train", overrides)

    def made() -> Any:
        with loader() as configs:
            config = compose(configs, "train", line.overrides)
            with open_dict(config):
                del config["hydra"]
            return checked(config, line)

    if flags:
        raise UserError(f"{flags[0]} is not for gptask sweep")
    config = mended(line, made)
    check_trainer_options(config.trainer)
    return config


def show(plan: SweepPlan, study: Study) -> None:
    """Print the best trials, and the command that trains like the best."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    best, metric = study.ranked(), study.about["metric"]
    states = {name: len(study.of(name)) for name in ("COMPLETE", "PRUNED", "FAIL")}
    counts = f"{states['COMPLETE']} complete, {states['PRUNED']} pruned, {states['FAIL']} failed"
    table = Table("trial", f"val/{metric}", *(d.key for d in plan.space), "run folder", title=f"{plan.name}: {counts}")
    for trial in best[:SHOWN]:
        values = [override.partition("=")[2] for override in study.overrides(trial.params)]
        table.add_row(str(trial.number), f"{trial.value:.2f}", *values, trial.user_attrs["folder"])
    console.print(table)
    if best:
        line = shlex.join(["gptask", "train", *plan.fixed, *study.overrides(best[0].params)])
        console.print(f"\ntrain like the best: {line}", soft_wrap=True, highlight=False, markup=False)
