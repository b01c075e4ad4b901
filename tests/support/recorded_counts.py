"""Counts of long programs, written into docs/results.json beside the figures of the benchmarks."""

import sys
from pathlib import Path


def record_count(name: str, measure: str, value: str, bound: str, is_met: bool) -> None:
    """Write a count with its bound, for people, and the command that made it."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from serving import Kept, add_to_record

    add_to_record([Kept(name, measure, value, bound, is_met)])
