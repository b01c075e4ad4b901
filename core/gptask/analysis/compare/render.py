"""A comparison as text: Markdown, CSV, JSON or a web page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from html import escape
from typing import Any

from gptask.analysis.compare.comparison import Comparison, ComparisonTable
from gptask.analysis.compare.records import RunRecord
from gptask.analysis.compare.seed_groups import SeedGroup, options
from gptask.plugins.metric import interval_text, value_text
from gptask.runs.markdown import escaped
from gptask.runs.markdown import table as grid
from gptask.runs.prediction_tables import harmless
from gptask.runs.verdict import Verdict, decimal_places

ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
STYLE = """:root{color-scheme:light dark}body{font:15px/1.5 system-ui,"Noto Sans CJK SC",sans-serif;margin:2rem auto;
max-width:75rem;padding:0 1rem}div{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid #8886;text-align:left;vertical-align:top}
b{color:light-dark(#06c,#7bf)}p{color:light-dark(#555,#aaa)}"""


def title(table: ComparisonTable) -> str:
    """Task, split and test set of the table."""
    first = table.first.result
    return f"{table.task}: {table.split}, n = {first['n']}, test data {table.test_hash}"


def folded(table: ComparisonTable) -> str:
    """The facts that are equal for all rows, in one line, and why no test was run, if none was."""
    equal = {"in": table.folder} | table.facts[0]
    return "; ".join([*(f"{name}: {value}" for name, value in equal.items()), *([table.note] if table.note else [])])


def header(table: ComparisonTable) -> list[str]:
    """Column names."""
    tested = [table.main] if any(table.verdicts.values()) else []
    metrics = [f"{name} {ARROWS[entry['direction']]}".strip() for name, entry in table.metrics.items()]
    differing = ["options"] if any(options(table.methods)) else []
    return ["run", *metrics, *(f"{name} against the baseline" for name in tested), *table.facts[1], *differing]


def rows(table: ComparisonTable, mark: Callable[[str], str], text: Callable[[str], str] = str) -> Iterator[list[str]]:
    """Cells of each method; ``mark`` highlights a metric's best values, ``text`` escapes names chosen by users."""
    best, differing = {name: table.best(name) for name in table.metrics}, options(table.methods)
    for number, method in enumerate(table.methods):
        values = [(name, cell(table, method, name)) for name in table.metrics]
        conclusion = verdict(table, number)
        facts = [method.facts[name] for name in table.facts[1]]
        facts += [differing[number]] if any(differing) else []
        yield [
            text(method.below(table.folder)),
            *(mark(value) if number in best[name] else value for name, value in values),
            *([conclusion] if conclusion else []),
            *map(text, facts),
        ]


def verdict(table: ComparisonTable, number: int) -> str:
    """The verdict on a method in the main metric; empty if no test was run."""
    if not any(table.verdicts.values()):
        return ""
    outcome = table.verdicts.get(table.main, {}).get(number)
    return outcome.sentence if outcome else "baseline"


def cell(table: ComparisonTable, method: SeedGroup, metric: str) -> str:
    """A value with its interval, or with its standard deviation over the seeds."""
    places = decimal_places(table.width(metric))
    value, spread = value_text(method.value(metric), places), method.spread(metric)
    if spread is not None:
        return f"{value} ± {spread:.{places}f}" if math.isfinite(spread) else value
    return f"{value} ({interval_text(method.records[0].metrics[metric], places)})"


def details(table: ComparisonTable) -> Iterator[list[str]]:
    """How a candidate differs from the baseline in each metric; for two methods only."""
    if len(table.methods) == 2:
        for name, verdicts in table.verdicts.items():
            for verdict in verdicts.values():
                yield [name, verdict.value_with_interval, f"{verdict.p:.2g}", verdict.difference.test, verdict.sentence]


DETAILS = ["metric", "difference to the baseline", "p (Holm)", "test", "verdict"]


def problems(records: Iterable[RunRecord]) -> list[str]:
    """A line for each run that can't be compared."""
    return [f"not compared: {record.folder}: {record.problem}" for record in records]


def markdown(comparison: Comparison) -> str:
    """GitHub tables with the best values in bold."""
    parts = []
    for table in comparison.tables:
        shared = folded(table)
        parts += [f"**{escaped(title(table))}**", *([f"All runs: {escaped(shared)}"] if shared else [])]
        parts.append(grid(header(table), rows(table, lambda text: f"**{text}**", escaped)))
        if lines := list(details(table)):
            parts.append(grid(DETAILS, lines))
    return "\n\n".join(parts + [escaped(line) for line in problems(comparison.problems)]) + "\n"


def html(comparison: Comparison) -> str:
    """A web page."""
    parts = []
    for table in comparison.tables:
        parts += [f"<h2>{escape(title(table))}</h2>", f"<p>{escape(folded(table))}</p>" if folded(table) else ""]
        parts.append(html_grid(header(table), list(rows(table, lambda text: f"\0{text}"))))
        if lines := list(details(table)):
            parts.append(html_grid(DETAILS, lines))
    parts += [f"<p>{escape(line)}</p>" for line in problems(comparison.problems)]
    return page("gptask compare", "\n".join(parts))


def page(name: str, body: str) -> str:
    """A self-contained web page."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(name)}</title><style>{STYLE}</style><h1>{escape(name)}</h1>\n{body}\n</html>\n"
    )


def html_grid(names: list[str], lines: list[list[str]]) -> str:
    """A table with its marked cells in bold."""

    def td(text: str) -> str:
        return f"<td><b>{escape(text[1:])}</b></td>" if text.startswith("\0") else f"<td>{escape(text)}</td>"

    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "\n".join(f"<tr>{''.join(map(td, line))}</tr>" for line in lines)
    return f"<div><table><tr>{head}</tr>\n{body}</table></div>"


def as_csv(comparison: Comparison) -> str:
    """A row per method and metric, in plain numbers."""
    stream = io.StringIO()
    lines = [line for table in comparison.tables for line in _records(table)]
    writer = csv.DictWriter(stream, list(lines[0]) if lines else ["run"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: harmless(cell) for name, cell in line.items()} for line in lines)
    return stream.getvalue()


def _records(table: ComparisonTable) -> Iterator[dict[str, Any]]:
    for number, method in enumerate(table.methods):
        for name, entry in table.metrics.items():
            low, high = method.interval(name) or (None, None)
            verdict = table.verdicts.get(name, {}).get(number)
            tested = verdict.difference if verdict else None
            yield {
                "task": table.task, "split": table.split, "test_data": table.test_hash, "run": method.name,
                "metric": name, "direction": entry["direction"], "value": method.value(name), "low": low, "high": high,
                "spread": method.spread(name), "n": entry["n"], "baseline": table.baseline.name,
                "difference": tested and tested.value, "difference_low": tested and tested.low,
                "difference_high": tested and tested.high, "p": tested and tested.p,
                "p_holm": verdict and verdict.p, "test": tested and tested.test,
                "verdict": verdict.word if verdict else "", **method.facts,
            }  # fmt: skip


def as_json(comparison: Comparison) -> str:
    """All tables with their tests, and the runs that can't be compared."""
    content = {
        "tables": [_plain(table) for table in comparison.tables],
        "not_compared": [{"run": str(r.folder), "problem": r.problem} for r in comparison.problems],
    }
    return json.dumps(_strict(content), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    """A value with None for nan and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(table: ComparisonTable) -> dict[str, Any]:
    return {
        "task": table.task,
        "split": table.split,
        "test_data_hash": table.test_hash,
        "main_metric": table.main,
        "baseline": table.baseline.name,
        "note": table.note,
        "metrics": {
            name: {key: entry[key] for key in ("direction", "signature", "n")} for name, entry in table.metrics.items()
        },
        "methods": [_method(table, number, method) for number, method in enumerate(table.methods)],
    }


def _method(table: ComparisonTable, number: int, method: SeedGroup) -> dict[str, Any]:
    return {
        "runs": [str(record.folder) for record in method.records],
        "facts": method.facts,
        "metrics": {
            name: {
                "value": method.value(name),
                "interval": method.interval(name),
                "interval_method": method.records[0].metrics[name].get("interval_method"),
                "values": method.values(name),
                "spread": method.spread(name),
            }
            for name in table.metrics
        },
        "against_baseline": {
            name: _verdict(verdicts[number]) for name, verdicts in table.verdicts.items() if number in verdicts
        },
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    difference = verdict.difference
    corrected = {"p_holm": verdict.p, "tests": verdict.test_count, "effect": difference.effect}
    detectable = difference.detectable(verdict.test_count)
    conclusion = {"words": verdict.sentence, "detectable": detectable, "verdict": verdict.word}
    return asdict(difference) | corrected | conclusion


TEXTS: dict[str, Callable[[Comparison], str]] = {
    "markdown": markdown, "csv": as_csv, "json": as_json, "html": html,
}  # fmt: skip
