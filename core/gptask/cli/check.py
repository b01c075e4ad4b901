"""`gptask tasks --check`: the plugin contract, clause by clause."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any

from gptask.cli.output import print_json, write_out
from gptask.errors import UserError, listing, nearest
from gptask.plugins.deprecation import ContractDeprecation
from gptask.plugins.discovery import Plugin, load_task_class
from gptask.plugins.source_location import class_location
from gptask.testing import Result, check_results

STYLES = {"ok": "green", "failed": "bold red", "does not apply": "dim", "not run": "yellow"}


def check_plugins(plugins: Sequence[Plugin], names: Sequence[str], as_json: bool) -> int:
    """Run the contract on the named plugins, without names on all that are enabled; 1 if one of them fails."""
    warnings.simplefilter("always", ContractDeprecation)  # the plugin's author reads this, or someone who can tell them
    selected = _select(plugins, names)
    if as_json:
        reports = [_report(plugin, list(_results(plugin))) for plugin in selected]
        print_json(reports)
        return int(not all(report["keeps_contract"] for report in reports))
    passed = [_show_results(plugin) for plugin in selected]
    write_out(f"{sum(passed)} of {len(passed)} tasks keep the contract\n")
    return int(not all(passed))


def _select(plugins: Sequence[Plugin], names: Sequence[str]) -> list[Plugin]:
    enabled = {plugin.name: plugin for plugin in plugins if plugin.state != "disabled"}
    for name in names:
        if name not in enabled:
            reason = "".join(f"; '{name}' is {plugin.error}" for plugin in plugins if plugin.name == name)
            raise UserError(f"unknown task '{name}'; installed: {listing(enabled)}{reason}.{nearest(name, enabled)}")
    return [enabled[name] for name in dict.fromkeys(names)] or list(enabled.values())


def _results(plugin: Plugin) -> Iterator[Result]:
    """The results of the clauses, the first of which is that the task loads."""
    try:
        task = load_task_class({plugin.name: plugin}, plugin.name)
    except UserError as error:
        yield Result("loads", "failed", str(error), plugin.cause)
        return
    if required := [f.name for f in fields(task) if f.default is MISSING and f.default_factory is MISSING]:
        values = ", ".join(f"{name}=..." for name in required)
        yield Result(
            "loads",
            "failed",
            f"the task can't be made without a value for {listing(required)}; "
            f"check it in a test: gptask.testing.check_task({task.__name__}({values}))",
        )
        return
    yield Result("loads", "ok")
    yield from check_results(task())


def _show_results(plugin: Plugin) -> bool:
    """Print the results as they come; return whether no clause failed."""
    from rich.text import Text  # for start-up time

    from gptask.analysis.console import VisibleConsole

    console = VisibleConsole(highlight=False, soft_wrap=True)
    passed = True
    for number, result in enumerate(_results(plugin)):
        if not number:  # only now the plugin is loaded
            contract = f"contract {plugin.contract}" if plugin.contract else "no contract stated"
            where = f"  {class_location(plugin.task)}" if plugin.task else ""
            console.print(Text(f"{plugin.name} ({plugin.origin}, {contract}){where}", style="bold"))
        line = Text("  ").append(f"{result.outcome:<16}", STYLES[result.outcome]).append(result.clause)
        console.print(line)
        if result.message:
            console.print(Text("\n".join(f"{'':18}{text}" for text in result.message.splitlines())))
        passed = passed and result.outcome != "failed"
    console.print()
    return passed


def _report(plugin: Plugin, clause_results: Sequence[Result]) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "contract": plugin.contract,
        "place": class_location(plugin.task) if plugin.task else None,
        "keeps_contract": all(result.outcome != "failed" for result in clause_results),
        "clauses": [{"clause": r.clause, "outcome": r.outcome, "message": r.message or None} for r in clause_results],
    }
