"""Tables of docs/results.json as Markdown, for cog's blocks: ``figures.results("sst2")``, ``figures.speed()``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from results_file import Bound, Compressed, Entry, Machine, Record, Result, Score, Side, Speed, load

EntryType = TypeVar("EntryType", Result, Speed, Bound, Compressed)


def results(*ids: str) -> None:
    """Write the table of these results in this order; of all, grouped by task, without ids."""
    _write(results_table(load(), ids))


def speed(*ids: str, notes: bool = True) -> None:
    """Write the table of these comparisons in this order; of all, sorted by id, without ids."""
    _write(speed_table(load(), ids, notes))


def bounds(*ids: str) -> None:
    """Write the table of these figures and the bounds they keep, in this order."""
    _write(bounds_table(load(), ids))


def compression(*ids: str) -> None:
    """Write the table of these models made smaller; of all, by data set and size, without ids."""
    _write(compression_table(load(), ids))


def results_table(record: Record, ids: Sequence[str] = ()) -> str:
    """Task, data, result, minutes and command of each result, and below it what they were measured on."""
    chosen = _chosen(record.results, ids)
    if not ids:
        chosen.sort(key=lambda result: (result.task, result.data, result.id))
    rows = [
        [
            result.task.replace("_", " "),
            result.data + (f" ({result.note})" if result.note else ""),
            f"{result.main_metric} {_score(result.metrics[result.main_metric])}, n = {result.n:,}",
            _minutes(result.wall_seconds),
            f"`{result.command}`",
        ]
        for result in chosen
    ]
    return _table(["task", "data", "result (95% interval)", "minutes", "command"], rows) + _caption(chosen)


def speed_table(record: Record, ids: Sequence[str] = (), notes: bool = True) -> str:
    """A row for each reference of each comparison, and below them what they were measured on."""
    chosen = _chosen(record.speed, ids)
    rows = [_speed_row(comparison, side, notes) for comparison in chosen for side in comparison.sides[1:]]
    header = ["measure", "against", "gptask", "reference", "ratio", "share of the matrix peak", "quality"]
    return _table(header, rows) + _caption(chosen)


def bounds_table(record: Record, ids: Sequence[str] = ()) -> str:
    """A row for each figure with its bound and its command, and below them what they were measured on."""
    chosen = _chosen(record.bounds, ids)
    values = [entry.value if entry.is_met else f"**{entry.value}, missed**" for entry in chosen]
    rows = [
        [entry.measure, value, entry.bound, f"`{entry.command}`"] for entry, value in zip(chosen, values, strict=True)
    ]
    return _table(["measure", "measured", "bound", "command"], rows) + _caption(chosen)


def compression_table(record: Record, ids: Sequence[str] = ()) -> str:
    """Quality, sizes and speeds of each model, and below them what they were measured on."""
    if not record.compression:
        return "No figures are recorded yet."
    chosen = _chosen(record.compression, ids)
    if not ids:
        chosen.sort(key=lambda entry: (entry.data, -entry.disk_mb, entry.memory_mb, entry.model))
    rows = [
        [
            entry.data,
            entry.model,
            f"{entry.metric} {_score(entry.score)}, n = {entry.n:,}",
            entry.verdict or "–",
            f"{entry.disk_mb:,.0f}",
            f"{entry.memory_mb:,.0f}",
            _three_digits(entry.examples_per_second),
            "–" if entry.tokens_per_second is None else _three_digits(entry.tokens_per_second),
            f"{_three_digits(entry.speed)}×",
        ]
        for entry in chosen
    ]
    header = ["data", "model", "quality (95% interval)", "against the parent", "MB on disk", "MB in memory"]
    return _table([*header, "examples/s", "tokens/s", "speed in turns"], rows) + _caption(chosen)


def _speed_row(comparison: Speed, side: Side, notes: bool) -> list[str]:
    ours = comparison.sides[0]
    ratio = f"{_two_digits(comparison.ratio(side))}×"
    return [
        f"{comparison.measure}, {comparison.unit}",
        side.name + (f" ({side.note})" if notes and side.note else ""),
        _span(ours.values, ours.median) + (f" ({ours.note})" if notes and ours.note else ""),
        _span(side.values, side.median),
        f"({ratio}, with worse quality)" if comparison.is_worse(side) else f"**{ratio}**",
        _pair(ours.matrix_peak_share, side.matrix_peak_share, ".0%"),
        _pair(ours.quality, side.quality, ".1f"),
    ]


def _caption(entries: Sequence[Entry]) -> str:
    """When, with which commit and on what the entries were measured; what differs is a range, or left to the file."""
    days = sorted({entry.date for entry in entries})
    when = f"on {days[0]}" if len(days) == 1 else f"from {days[0]} to {days[-1]}"
    commits = {entry.commit for entry in entries}
    commit = f", commit {entries[0].commit[:7]}" if len(commits) == 1 else ""
    machines = "; ".join(_machines([entry.machine for entry in entries]))
    rest = "" if len(commits) == 1 else " `docs/results.json` has date, commit and machine of each."
    return f"\n\nMeasured {when}{commit}, on {machines}.{rest}"


def _machines(machines: Sequence[Machine]) -> Iterable[str]:
    """A phrase for each processor."""
    for processor, cores in dict.fromkeys((machine.processor, machine.cores) for machine in machines):
        same = [machine for machine in machines if (machine.processor, machine.cores) == (processor, cores)]
        peaks = [
            f"{_range(known)} in {name}"
            for name, key in (("bfloat16", "bf16_peak_gflops"), ("float32", "fp32_peak_gflops"))
            if (known := [peak for machine in same if (peak := getattr(machine, key))])
        ]
        count = "1 core" if cores == 1 else f"{cores} cores"
        yield f"{count} of {processor}" + (f" (matrix peak in GFLOP/s: {', '.join(peaks)})" if peaks else "")


def _chosen(entries: Mapping[str, EntryType], ids: Sequence[str]) -> list[EntryType]:
    if not entries:
        raise ValueError("docs/results.json has no such entries yet; tests/benchmarks/record.py adds them")
    for name in ids:
        if name not in entries:
            similar = get_close_matches(name, entries, n=3)
            raise ValueError(f"docs/results.json has no {name!r}; similar: {', '.join(similar) or 'none'}")
    return [entries[name] for name in ids or sorted(entries)]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


def _score(score: Score) -> str:
    """The value and its interval, with a second decimal where all are small and have one."""
    known = [number for number in (score.value, score.low, score.high) if number is not None]
    decimals = 2 if max(map(abs, known)) < 10 and any(round(number, 1) != number for number in known) else 1
    value, *interval = (f"{number:.{decimals}f}" for number in known)
    return value + (f" ({interval[0]} to {interval[1]})" if interval else "")


def _minutes(seconds: float | None) -> str:
    return "" if seconds is None else "{}:{:02d}".format(*divmod(round(seconds), 60))


def _span(values: list[float], median: float) -> str:
    span = f" ({_three_digits(min(values))} to {_three_digits(max(values))})" if len(values) > 1 else ""
    return _three_digits(median) + span


def _two_digits(value: float) -> str:
    return _digits(value, 2)


def _three_digits(value: float) -> str:
    return _digits(value, 3)


def _digits(value: float, count: int) -> str:
    """A positive number rounded to so many significant digits, without an exponent."""
    rounded = float(f"{value:.{count}g}")
    decimals = count - 1 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{rounded:,.{max(decimals, 0)}f}"


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _pair(ours: float | None, reference: float | None, form: str) -> str:
    """Both sides' numbers; a dash stands for one that is not known, nothing for two."""
    if ours is None and reference is None:
        return ""
    return " / ".join("–" if value is None else format(value, form) for value in (ours, reference))


def _write(text: str) -> None:
    import cog  # exists while cogapp runs a block

    cog.outl(f"\n{text}\n")


def terminal(lines: int) -> None:
    """Write the first lines of the terminal that docs/pictures.py recorded."""
    import cog

    excerpt = Path(__file__).with_name("images") / "terminal.txt"
    text = "\n".join(excerpt.read_text(encoding="utf-8").splitlines()[:lines])
    cog.outl(f"\n```text\n{text}\n```\n")
