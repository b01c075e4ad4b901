"""`make bench`: gptask beside what a user would run instead, on the same machine, weights and data.

    python tests/benchmarks/bench.py [--tier quick|full] [comparison ...]
    python tests/benchmarks/bench.py --tier full time_to_quality:multi30k,xquad     # some races of a comparison

Both sides take turns in one process (memory and start-up: in processes of their own). The report goes to
outputs/bench/<date>.json and .md.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import time
import warnings

from harness import ROOT, Result, report

COMPARISONS = ("training", "pretraining", "inference", "generation")
COMPARISONS += ("activation_cache", "memory", "startup", "attention", "packed_weights", "time_to_quality")
COMPARISONS += ("distillation",)


def main() -> None:
    """Run the comparisons and write the report, also after an interrupt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=("quick", "full"), default="quick")
    parser.add_argument("comparisons", nargs="*", default=list(COMPARISONS), help=" ".join(COMPARISONS))
    arguments = parser.parse_args()
    chosen = [comparison.partition(":")[::2] for comparison in arguments.comparisons]
    if unknown := {name for name, _ in chosen}.difference(COMPARISONS):
        parser.error(f"unknown comparison {', '.join(unknown)}: choose from {', '.join(COMPARISONS)}")
    warnings.filterwarnings("ignore")
    logging.getLogger("gptask").setLevel(logging.ERROR)
    results: list[Result] = []
    try:
        for name, parts in chosen:
            start = time.perf_counter()
            comparison_results = importlib.import_module(name).run(arguments.tier, *filter(None, parts.split(",")))
            results += comparison_results
            for result in comparison_results:
                print(" | ".join(result.row()), flush=True)
            print(f"({name}: {time.perf_counter() - start:.0f} s)", flush=True)
            gc.collect()
    finally:
        if results:
            page = report(results, arguments.tier, ROOT / "outputs" / "bench")
            print(page.read_text(), page, sep="\n")


if __name__ == "__main__":
    main()
