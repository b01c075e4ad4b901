"""`gptask sweep`: its command line, the checks before the study is made, and the table at the end."""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from gptask.cli.arguments import VerbParser
from gptask.cli.hydra.compose import compose, loader
from gptask.cli.hydra.error_messages import with_user_errors
from gptask.cli.hydra.launch import open_keys, read_command_line
from gptask.cli.hydra.validate import validated_config
from gptask.cli.output import report_error
from gptask.config.engine import refuse_openvino
from gptask.config.overrides import normalize_overrides
from gptask.config.schemas import Train
from gptask.config.trainer_options import check_trainer_options
from gptask.errors import UserError
from gptask.plugins.discovery import plugin_of
from gptask.training.sweep.driver import SweepPlan, deciding_overrides, run_sweep
from gptask.training.sweep.space import GRAMMAR, Dimension, merge_spaces, read_space_file, split_overrides
from gptask.training.sweep.study import PRUNERS, SAMPLERS, Study, refuse_grid

USAGE = "gptask sweep [option=value ...] option=<space> ... [--trials 20]"
DESCRIPTION = f"""Search with Optuna for the options of `gptask train` that do best on the main validation metric.

A space is {GRAMMAR};
quote it for the shell. An option with one value is the same in all trials. The study and its run folders lie in
<outputs>/sweeps/<study>; the same command continues it: finished trials count, a stopped trial is run again.

  gptask sweep task=sentiment 'tuning.lr=tag(log,interval(1e-4,1e-2))' tuning.rank=4,8,16 --trials 20
"""
REFUSED = {  # options that a sweep sets itself, or can't have
    "folder": "each trial gets a folder in <outputs>/sweeps/<study>",
    "resume": "the same command runs a stopped trial again",
    "tasks": "a sweep searches for the best options of one task (gptask train -m runs several values)",
}
CUT = ("data.seed", "data.validation", "data.cut", "data.stratify", "data.group", "data.limit.validation")
CONSTANT = ("task", "outputs", *CUT)  # in all trials
MAX_ROWS = 10  # of the table of trials


def main(arguments: Sequence[str]) -> int:
    """Read the command line, check it, search, show the best trials; return the exit code."""
    options = parser().parse_intermixed_args(list(arguments))
    plan, first = _plan(options)
    if not find_spec("optuna"):
        raise UserError("gptask sweep needs a package that is not installed: pip install 'gptask[sweep]'")
    show(plan, run_sweep(plan, first))
    return 0


def parser() -> VerbParser:
    """The arguments of the verb; an argument that is no option is an override."""
    verb_parser = VerbParser("sweep", usage=USAGE, description=DESCRIPTION)
    add = verb_parser.add_argument
    add("overrides", nargs="*", help="options of gptask train, some of them with a space")
    add("--trials", type=int, default=20, help="trials wanted in all, complete or pruned (default 20)")
    add("--space", metavar="FILE", help="YAML: option -> a list of choices, or a space as on the command line")
    add("--study", metavar="NAME", help="name of its folder (default: the task and a digest of the command line)")
    add("--sampler", choices=SAMPLERS, default="tpe", help="how options are picked (default tpe)")
    add("--pruner", choices=PRUNERS, default="median", help="what ends a trial early (default median)")
    add("--timeout", metavar="MINUTES", type=float, help="start no trial after this time")
    return verb_parser


def _check_arguments(options: argparse.Namespace) -> None:
    if options.trials < 1:
        raise UserError(f"--trials {options.trials}: expected 1 or more")
    if options.timeout is not None and options.timeout <= 0:
        raise UserError(f"--timeout {options.timeout:g}: expected minutes above 0")
    if options.study and not re.fullmatch(r"\w[\w.-]*", options.study):
        raise UserError(f"--study {options.study}: expected a name of letters, digits, '-', '_' and '.'")


def _plan(options: argparse.Namespace) -> tuple[SweepPlan, Train]:
    """The plan of a command line and the config of its first values; every choice is validated."""
    _check_arguments(options)
    read_command_line("train", [])  # registers the plugins with Hydra
    top_keys = {override.partition("=")[0].split(".")[0].lstrip("+") for override in options.overrides}
    space, fixed = split_overrides(
        options.overrides, normalize_overrides(options.overrides, True, top_keys, open_keys())
    )
    space = merge_spaces(read_space_file(options.space) if options.space else [], space, fixed)
    _refuse_space(space, fixed)
    if options.sampler == "grid":
        refuse_grid(space)
    first = _first_config(space, fixed)
    identity = repr(
        [deciding_overrides(fixed), sorted((d.key, str(d)) for d in space), options.sampler, options.pruner]
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    name = options.study or f"{plugin_of(first.task).name}_{digest}"
    plan = SweepPlan(
        space=space,
        fixed=fixed,
        name=name,
        trials=options.trials,
        sampler=options.sampler,
        pruner=options.pruner,
        minutes=options.timeout,
        configure=train_config,
        report=report_error,
    )
    return plan, first


def _refuse_space(space: Sequence[Dimension], fixed: Sequence[str]) -> None:
    """Raise `UserError` for options that a sweep can't have, or can't search over."""
    if not space:
        raise UserError(f"there is no search space: give an option {GRAMMAR} (or --space space.yaml)")
    for key in [*(d.key for d in space), *(override.partition("=")[0].lstrip("+~") for override in fixed)]:
        if key in REFUSED:
            raise UserError(f"{key}= is not for a sweep: {REFUSED[key]}")
    if varying := [d.key for d in space if d.key in CONSTANT]:
        raise UserError(f"{varying[0]} has one value in a sweep, so that the scores of its trials are comparable")
    if engines := [d.key for d in space if d.key.split(".")[0] == "engine"]:
        raise UserError(f"{engines[0]} has one value in a sweep: it decides how fast a trial is, not how good")
    if any(d.key == "seed" for d in space) and not any(o.lstrip("+").startswith("data.seed=") for o in fixed):
        raise UserError("seed decides what is validation data: data.seed=<number> fixes that, so that trials compare")


def _first_config(space: Sequence[Dimension], fixed: Sequence[str]) -> Train:
    """The config of the first values; each other choice is validated too, so that no trial fails hours later."""
    start = {d.key: d.override(d.choices[0] if d.choices else d.low) for d in space}
    first = train_config([*fixed, *start.values()])
    refuse_openvino(first.engine, "sweep")
    for d in space:
        for choice in d.choices[1:]:
            other = train_config([*fixed, *(start | {d.key: d.override(choice)}).values()])
            if type(other.task) is not type(first.task):
                raise UserError(f"{d.key}={choice} is of another task than {start[d.key]}: a sweep has one")
    return first


def train_config(overrides: Sequence[str]) -> Train:
    """The validated config of `gptask train` with overrides."""
    from omegaconf import open_dict

    command_line, flags = read_command_line("train", overrides)
    if flags:
        raise UserError(f"{flags[0]} is not for gptask sweep")

    def composed() -> Train:
        with loader() as configs:
            config = compose(configs, "train", command_line.overrides)
            with open_dict(config):
                del config["hydra"]
            validated: Train = validated_config(config, command_line)
            return validated

    config = with_user_errors(command_line, composed)
    check_trainer_options(config.trainer)
    _require_validation(config.trainer)
    return config


def _require_validation(options: Mapping[str, Any]) -> None:
    """Raise `UserError` for options of the Trainer with which no validation runs: there is nothing to compare then."""
    for name in ("limit_val_batches", "limit_train_batches", "max_epochs", "max_steps"):
        if options.get(name) == 0:
            raise UserError(
                f"trainer.{name}=0: no validation runs, and trials are compared by validation; leave it out"
            )
    every, epochs = options.get("check_val_every_n_epoch"), options.get("max_epochs")
    if every and epochs and 0 < epochs < every:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every}: no validation runs in trainer.max_epochs={epochs}, and trials "
            "are compared by validation; lower it"
        )


def show(plan: SweepPlan, study: Study) -> None:
    """Print the best trials, and the command that trains with the options of the best one."""
    from rich.table import Table  # for start-up time

    from gptask.analysis.console import VisibleConsole

    console = VisibleConsole(width=None if sys.stdout.isatty() else 200)
    ranked, metric = study.ranked(), study.about["metric"]
    numbers = {state: len(study.in_states(state)) for state in ("COMPLETE", "PRUNED", "FAIL")}
    counts = f"{numbers['COMPLETE']} complete, {numbers['PRUNED']} pruned, {numbers['FAIL']} failed"
    table = Table("trial", f"val/{metric}", *(d.key for d in plan.space), "run folder", title=f"{plan.name}: {counts}")
    for trial in ranked[:MAX_ROWS]:
        values = [override.partition("=")[2] for override in study.overrides(trial.params)]
        table.add_row(str(trial.number), f"{trial.value:.2f}", *values, trial.user_attrs["folder"])
    console.print(table)
    tied = [trial.number for trial in ranked if trial.value == ranked[0].value]
    if len(tied) > 1:
        console.print(
            f"\n{len(tied)} trials tie at {ranked[0].value:.2f}: validation can't tell them apart. "
            "More validation data (data.limit.validation, data.cut), or the test set of each, may."
        )
    if ranked:
        command = shlex.join(["gptask", "train", *plan.fixed, *study.overrides(ranked[0].params)])
        console.print(f"\ntrain like the best: {command}", soft_wrap=True, highlight=False)
