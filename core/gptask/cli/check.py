"""`gptask tasks --check`: the plugin contract, clause by clause."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any

from gptask.errors import UserError, listing, nearest
from gptask.plugins.deprecation import ContractDeprecation
from gptask.plugins.discovery import Plugin, load_task_class
from gptask.plugins.source_location import class_location
from gptask.testing import Result, check_results

STYLES = {"ok": "green", "failed": "bold red", "does not apply": "dim", "not run": "yellow"}


def check(plugins: Sequence[Plugin], names: Sequence[str], as_json: bool) -> int:
    """Run the contract on the plugins named (all that are not disabled by default); 1 if one does not keep it."""
    warnings.simplefilter("always", ContractDeprecation)  # who runs this is the author, or can tell them
    if as_json:
        from gptask.cli.commands.tasks import write_json

        found = [_described(plugin, list(_checked(plugin))) for plugin in _asked(plugins, names)]
        write_json(found)
        return int(not all(task["keeps_contract"] for task in found))
    kept = [_shown(plugin) for plugin in _asked(plugins, names)]
    sys.stdout.write(f"{sum(kept)} of {len(kept)} tasks keep the contract\n")
    return int(not all(kept))


def _asked(plugins: Sequence[Plugin], names: Sequence[str]) -> list[Plugin]:
    there = {plugin.name: plugin for plugin in plugins if plugin.state != "disabled"}
    for name in names:
        if name not in there:
            off = [f"; '{name}' is {plugin.error}" for plugin in plugins if plugin.name == name]
            raise UserError(f"unknown task '{name}'; installed: {listing(there)}{''.join(off)}.{nearest(name, there)}")
    return [there[name] for name in dict.fromkeys(names)] or list(there.values())


def _checked(plugin: Plugin) -> Iterator[Result]:
    """The clauses of the contract, after the first of all: that there is a task."""
    try:
        task = load_task_class({plugin.name: plugin}, plugin.name)
    except UserError as error:
        yield Result("loads", "failed", str(error), plugin.cause)
        return
    if open_ := [f.name for f in fields(task) if f.default is MISSING and f.default_factory is MISSING]:
        given = ", ".join(f"{name}=..." for name in open_)
        way = f"check it in a test: gptask.testing.check_task({task.__name__}({given}))"
        yield Result("loads", "failed", f"there is no default for {listing(open_)}, so that it can't be tried; {way}")
        return
    yield Result("loads", "ok")
    yield from check_results(task())


def _shown(plugin: Plugin) -> bool:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    kept, begun = True, False
    for result in _checked(plugin):
        if not begun:
            about = [plugin.origin, f"contract {plugin.contract}" if plugin.contract else "no contract stated"]
            where = f"  {class_location(plugin.task)}" if plugin.task else ""
            console.print(Text(f"{plugin.name} ({', '.join(about)}){where}", style="bold"))
            begun = True
        line = Text("  ").append(f"{result.outcome:<16}", STYLES[result.outcome]).append(result.clause)
        console.print(line)
        if result.message:
            console.print(Text("\n".join(f"{'':18}{text}" for text in result.message.splitlines())))
        kept = kept and result.outcome != "failed"
    console.print()
    return kept


def _described(plugin: Plugin, found: Sequence[Result]) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "contract": plugin.contract,
        "place": class_location(plugin.task) if plugin.task else None,
        "keeps_contract": all(result.outcome != "failed" for result in found),
        "clauses": [{"clause": r.clause, "outcome": r.outcome, "message": r.message or None} for r in found],
    }
