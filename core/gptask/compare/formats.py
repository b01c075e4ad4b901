"""A comparison as text: for a terminal, Markdown, CSV, JSON or a web page."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from html import escape
from typing import Any

from gptask.compare.comparison import Comparison, Table, Verdict
from gptask.compare.methods import Method, options
from gptask.markdown import table as grid

ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
STYLE = """:root{color-scheme:light dark}body{font:15px/1.5 system-ui,"Noto Sans CJK SC",sans-serif;margin:2rem auto;
max-width:75rem;padding:0 1rem}div{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid #8886;text-align:left;vertical-align:top}
b{color:light-dark(#06c,#7bf)}p{color:light-dark(#555,#aaa)}"""


def title(table: Table) -> str:
    """What the rows are about."""
    first = table.first.result
    return f"{table.task}: {table.split}, n = {first['n']}, test data {table.test_hash}"


def folded(table: Table) -> str:
    """What is equal for all rows, in one line, and why they were not tested, if they were not."""
    equal = {"in": table.folder} | table.facts[0]
    return "; ".join([*(f"{name}: {value}" for name, value in equal.items()), *([table.note] if table.note else [])])


def header(table: Table) -> list[str]:
    """Column names."""
    metrics = [f"{name} {ARROWS[found['direction']]}".strip() for name, found in table.metrics.items()]
    tested = [table.main] if any(table.verdicts.values()) else []
    differing = ["options"] if any(options(table.methods)) else []
    return ["run", *metrics, *(f"{name} against the baseline" for name in tested), *table.facts[1], *differing]


def rows(table: Table, mark: Callable[[str], str]) -> Iterator[list[str]]:
    """Cells of each method; ``mark`` makes the best value of a metric stand out."""
    best, differing = {name: table.best(name) for name in table.metrics}, options(table.methods)
    for number, method in enumerate(table.methods):
        values = [mark(cell(method, name)) if best[name] == number else cell(method, name) for name in table.metrics]
        verdict = table.verdicts.get(table.main, {}).get(number)
        said = verdict.words if verdict else "baseline"
        tested = [said] if any(table.verdicts.values()) else []
        more = [differing[number]] if any(differing) else []
        yield [method.below(table.folder), *values, *tested, *(method.facts[name] for name in table.facts[1]), *more]


def cell(method: Method, metric: str) -> str:
    """A value with its interval, or with its spread over the seeds."""
    low, high = method.records[0].metrics[metric]["range"]
    digits = 1 if high is not None and high - low >= 50 else 3
    value, spread, interval = method.value(metric), method.spread(metric), method.interval(metric)
    if spread is not None:
        return f"{value:.{digits}f} ± {spread:.{digits}f}"
    assert interval is not None
    return f"{value:.{digits}f} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def details(table: Table) -> Iterator[list[str]]:
    """Metric by metric, how a candidate differs from the baseline; for two methods only."""
    if len(table.methods) == 2:
        for name, verdicts in table.verdicts.items():
            for verdict in verdicts.values():
                found = verdict.difference
                shown = f"{found.value:+.3g} ({found.low:+.3g} to {found.high:+.3g})"
                yield [name, shown, f"{verdict.p:.2g}", found.test, verdict.words]


DETAILS = ["metric", "difference to the baseline", "p (Holm)", "test", "verdict"]


def problems(comparison: Comparison) -> list[str]:
    """A line for each run that could not be compared."""
    return [f"not compared: {record.folder}: {record.problem}" for record in comparison.problems]


def show(comparison: Comparison) -> None:
    """Print tables on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console()
    for table in comparison.tables:
        console.print(Text(title(table), style="bold"))
        if shared := folded(table):
            console.print(Text(f"all runs: {shared}", style="dim"))
        parts = [(header(table), rows(table, lambda text: f"{text} *")), (DETAILS, details(table))]
        for names, lines in parts:
            if content := list(lines):
                grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
                for name in names:
                    grid.add_column(name, overflow="fold")
                for texts in content:
                    grid.add_row(*(Text(text, style="bold" if text.endswith(" *") else "") for text in texts))
                console.print(grid)
    for line in problems(comparison):
        console.print(Text(line, style="yellow"))


def markdown(comparison: Comparison) -> str:
    """GitHub's tables, the best values in bold."""
    parts = []
    for table in comparison.tables:
        shared = folded(table)
        parts += [f"**{title(table)}**", *([f"All runs: {shared}"] if shared else [])]
        parts.append(grid(header(table), rows(table, lambda text: f"**{text}**")))
        if lines := list(details(table)):
            parts.append(grid(DETAILS, lines))
    return "\n\n".join(parts + problems(comparison)) + "\n"


def html(comparison: Comparison) -> str:
    """A page of its own."""
    parts = []
    for table in comparison.tables:
        parts += [f"<h2>{escape(title(table))}</h2>", f"<p>{escape(folded(table))}</p>" if folded(table) else ""]
        parts.append(html_grid(header(table), list(rows(table, lambda text: f"\0{text}"))))
        if lines := list(details(table)):
            parts.append(html_grid(DETAILS, lines))
    parts += [f"<p>{escape(line)}</p>" for line in problems(comparison)]
    return page("gptask compare", "\n".join(parts))


def page(name: str, body: str) -> str:
    """A self-contained web page."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(name)}</title><style>{STYLE}</style><h1>{escape(name)}</h1>\n{body}\n</html>\n"
    )


def html_grid(names: list[str], lines: list[list[str]]) -> str:
    """A table, its marked cells in bold."""

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
    writer.writerows(lines)
    return stream.getvalue()


def _records(table: Table) -> Iterator[dict[str, Any]]:
    for number, method in enumerate(table.methods):
        for name, found in table.metrics.items():
            low_high, verdict = method.interval(name) or (None, None), table.verdicts.get(name, {}).get(number)
            told = verdict.difference if verdict else None
            yield {
                "task": table.task, "split": table.split, "test_data": table.test_hash, "run": method.name,
                "metric": name, "direction": found["direction"], "value": method.value(name), "low": low_high[0],
                "high": low_high[1], "spread": method.spread(name), "n": found["n"],
                "baseline": table.baseline.name, "difference": told and told.value, "difference_low": told and told.low,
                "difference_high": told and told.high, "p": told and told.p, "p_holm": verdict and verdict.p,
                "test": told and told.test, "verdict": verdict.word if verdict else "",
                **method.facts,
            }  # fmt: skip


def as_json(comparison: Comparison) -> str:
    """Everything."""
    told = {
        "tables": [_plain(table) for table in comparison.tables],
        "not_compared": [{"run": str(r.folder), "problem": r.problem} for r in comparison.problems],
    }
    return json.dumps(told, ensure_ascii=False, indent=2, default=str) + "\n"


def _plain(table: Table) -> dict[str, Any]:
    return {
        "task": table.task,
        "split": table.split,
        "test_data_hash": table.test_hash,
        "main_metric": table.main,
        "baseline": table.baseline.name,
        "metrics": {
            name: {key: found[key] for key in ("direction", "signature", "n")} for name, found in table.metrics.items()
        },
        "methods": [_method(table, number, method) for number, method in enumerate(table.methods)],
    }


def _method(table: Table, number: int, method: Method) -> dict[str, Any]:
    return {
        "runs": [str(record.folder) for record in method.records],
        "facts": method.facts,
        "metrics": {
            name: {
                "value": method.value(name),
                "interval": method.interval(name),
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
    found = verdict.difference
    more = {"p_holm": verdict.p, "tests": verdict.tests, "effect": found.effect, "words": verdict.words}
    return asdict(found) | more | {"detectable": found.detectable(verdict.tests), "verdict": verdict.word}


TEXTS: dict[str, Callable[[Comparison], str]] = {
    "markdown": markdown, "csv": as_csv, "json": as_json, "html": html,
}  # fmt: skip
