"""`gptask cache`: what the cache holds, by kind, and the removal of what is stale."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gptask.cli.arguments import VerbParser
from gptask.cli.output import print_json, write_out
from gptask.data.cache import SUFFIXES, CacheEntry, cache_folder, entries, remove
from gptask.errors import UserError, aligned

DESCRIPTION = """List what the cache holds: entries and megabytes by kind. The folder is $GPTASK_CACHE, else
~/.cache/gptask; all of it can be deleted at any time, and is made again when it is needed.

--prune removes what is stale: entries that are damaged or were not used for --days, and what processes that were
killed have left unfinished. Run it while no other gptask command runs.
"""


def main(arguments: Sequence[str]) -> int:
    """List the cache by kind, or prune it; return the exit code."""
    options = _parser().parse_args(arguments)
    if options.days < 0:
        raise UserError(f"--days {options.days} must be 0 or more")
    listed = entries()
    oldest = time.time() - options.days * 24 * 3600
    stale = {id(entry) for entry in listed if entry.problem or entry.used < oldest}
    if options.prune:
        for entry in listed:
            if id(entry) in stale:
                for path in entry.paths:
                    remove(path)
    rows = [_row(kind, listed, stale) for kind in (*SUFFIXES, "unfinished")]
    rows.append({name: "total" if name == "kind" else sum(row[name] for row in rows) for name in rows[0]})
    if options.format == "json":
        print_json({"folder": str(cache_folder()), "pruned": options.prune, "kinds": rows})
        return 0
    table = [["kind", "entries", "MB", "stale", "stale MB"]]
    for row in rows:
        sizes = [f"{row[name] / 1e6:,.1f}" for name in ("bytes", "stale_bytes")]
        table.append([row["kind"], f"{row['entries']:,}", sizes[0], f"{row['stale']:,}", sizes[1]])
    write_out("\n".join([str(cache_folder()), *aligned(table), ""]))
    if options.prune:
        write_out(f"removed the stale entries: {rows[-1]['stale']}, {rows[-1]['stale_bytes'] / 1e6:.1f} MB\n")
    return 0


def _row(kind: str, listed: Sequence[CacheEntry], stale: set[int]) -> dict[str, Any]:
    of_kind = [entry for entry in listed if entry.kind == kind]
    stale_ones = [entry for entry in of_kind if id(entry) in stale]
    return {
        "kind": kind,
        "entries": len(of_kind),
        "bytes": sum(entry.size for entry in of_kind),
        "stale": len(stale_ones),
        "stale_bytes": sum(entry.size for entry in stale_ones),
    }


def _parser() -> VerbParser:
    parser = VerbParser("cache", description=DESCRIPTION)
    parser.add_argument("--prune", action="store_true", help="remove what is stale")
    parser.add_argument("--days", type=float, default=30.0, metavar="N", help="unused for N days is stale (30)")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="json is for machines")
    return parser
