"""Add figures to docs/results.json, from which the tables of README.md and docs/ are rendered.

python tests/benchmarks/record.py <run folder> --data "SST-2" [--id sst2] [--wall 7:56]
python tests/benchmarks/record.py outputs/bench/<date>.json

An entry of the same id is replaced, and keeps its --data and --note if they are not given. Record on the machine that
measured: a run folder does not name its processor.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from dataclasses import fields
from datetime import date
from math import isfinite
from pathlib import Path
from typing import Any

from gptask.errors import UserError
from gptask.runs.config_file import read_config
from gptask.runs.folder import refuse_multitask
from gptask.runs.manifest import MANIFEST, read_manifest
from gptask.runs.reproduce import reproduce_command
from harness import FULL, ROOT, machine

sys.path.insert(0, str(ROOT / "docs"))
import results_file
from results_file import Machine, Record, Result, Score, Side, Speed

RENDER = "The pages' tables follow with: make docs-tables"
WHERE = ("folder=", "outputs=", "data.root=")  # options that say where files lie, not what is measured


class RecordError(Exception):
    """A mistake of the user."""


def main(arguments: list[str] | None = None) -> int:
    """Add what the command line names; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        record = results_file.load(options.file)
        path = Path(options.source)
        entries = comparisons(path) if path.suffix == ".json" else [run_result(path, options, record)]
    except (RecordError, UserError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for entry in entries:
        print(f"{entry.id}: {'replaced' if record.add(entry) else 'added'}")
    results_file.save(record, options.file)
    print(RENDER)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a finished run folder, or a file that bench.py --tier full wrote")
    parser.add_argument("--id", help="id of a run's entry; by default that of the same command, or made of its options")
    parser.add_argument("--data", help="name of a run's data set, for people")
    parser.add_argument("--note", help="a few words on a run that its command does not say")
    parser.add_argument("--wall", type=_seconds, help="a run's time, 7:56 or seconds, of the whole command")
    parser.add_argument("--file", type=Path, default=results_file.FILE, help="the record; by default %(default)s")
    return parser


def _seconds(text: str) -> float:
    if not re.fullmatch(r"(\d+:)?\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected minutes:seconds or seconds, got {text!r}")
    minutes, _, seconds = text.rpartition(":")
    return 60 * int(minutes or 0) + float(seconds)


# --- a run folder -------------------------------------------------------------------------------------------------


def run_result(folder: Path, options: argparse.Namespace, record: Record) -> Result:
    """The entry of a finished run folder; what its command line leaves out comes from ``options`` or the old entry."""
    config, values = _read_run(folder, options)
    command = _command(reproduce_command(config))
    identifier = options.id or _known_id(command, record) or _new_id(command)
    old = record.results.get(identifier)
    data = options.data or (old and old.data)
    if not data:
        raise RecordError(f'{identifier!r} is a new entry: name its data set, as in --data "SST-2"')
    return Result(
        id=identifier,
        command=command,
        commit=values["git_commit"],
        date=date.fromtimestamp((folder / MANIFEST).stat().st_mtime).isoformat(),  # written last
        machine=_machine(machine()),
        seed=values["seed"],
        task=values["task"],
        data=data,
        metrics={
            name: _score(metric)
            for name, metric in values["metrics"].items()
            if metric["value"] is not None and isfinite(metric["value"])
        },
        main_metric=next(iter(values["metrics"])),
        n=values["n"],
        wall_seconds=round(values["wall_seconds"] if options.wall is None else options.wall, 1),
        note=old.note if options.note is None and old else options.note or "",
    )


def _read_run(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.yaml and metrics.json of a run that says all that an entry needs."""
    config, manifest = read_config(folder), read_manifest(folder)
    refuse_multitask(folder, config)
    manifest.verify("metrics.json")
    values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if not values["metrics"]:
        raise RecordError(f"{folder} has no metrics, as no example was scored")
    if not values["git_commit"]:
        raise RecordError(f"{folder} names no commit: gptask did not run from a git checkout")
    if config.get("resume") and options.wall is None:
        raise RecordError(f"{folder} was resumed, so it knows only its last part's time: give --wall 7:56")
    if config.get("task_name") and not options.id:
        raise RecordError(f"the command of {folder} trained several tasks, so it names no entry: give --id")
    return config, values


def _command(command: str) -> str:
    """The command without the options that only say where files lie."""
    return shlex.join(word for word in shlex.split(command) if not word.startswith(WHERE))


def _known_id(command: str, record: Record) -> str | None:
    """The id of the entry with this command."""
    return next((result.id for result in record.results.values() if result.command == command), None)


def _new_id(command: str) -> str:
    """``sst2_lora`` for ``gptask train experiment=sst2 tuning=lora``."""
    verb, *options = shlex.split(command)[1:]
    words = [word.partition("=") for word in options]
    experiment = [value for name, _, value in words if name == "experiment"]
    values = [value for name, _, value in words if name != "experiment"]
    parts = [*(experiment or ["run"]), *values, *([] if verb == "train" else [verb])]
    return re.sub(r"\W+", "_", "_".join(parts)).strip("_")


def _score(metric: dict[str, Any]) -> Score:
    """A metric of metrics.json, rounded: the interval of a few hundred examples knows no third digit."""
    low, high = (round(bound, 2) for bound in metric["interval"]) if metric["interval"] else (None, None)
    return Score(round(metric["value"], 2), low, high)


def _machine(values: dict[str, Any]) -> Machine:
    return Machine(**{f.name: values[f.name] for f in fields(Machine)})


# --- a bench file -------------------------------------------------------------------------------------------------


def comparisons(file: Path) -> list[Speed]:
    """The entries of a file that harness.report wrote; only the full tier's are accurate enough."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["tier"] != FULL:
            raise RecordError(f"{file} is of the {values['tier']} tier, which is too rough: run bench.py --tier {FULL}")
        common = {
            "command": values["command"],
            "commit": values["commit"],
            "date": values["date"][:10],
            "machine": _machine(values["machine"]),
            "seed": values.get("seed"),
        }
        return [_comparison(row, common) for row in values["results"]]
    except OSError as error:
        raise RecordError(f"can't read {file}: {error.strerror}") from error
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{file} is not a file that bench.py writes: {error!r}") from error


def _comparison(row: dict[str, Any], common: dict[str, Any]) -> Speed:
    qualities, shares = row["quality"] or (None, None), row["shares"]
    names, rounds, notes = ("gptask", row["against"]), (row["ours"], row["reference"]), (row["note"], "")
    sides = [Side(*side) for side in zip(names, rounds, qualities, shares, notes, strict=True)]
    return Speed(
        id=row["id"], measure=row["measure"], unit=row["unit"], lower_is_better=row["lower"], sides=sides, **common
    )


if __name__ == "__main__":
    sys.exit(main())
