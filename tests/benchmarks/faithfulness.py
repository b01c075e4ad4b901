"""How faithful the methods of `gptask explain` are on a run: insertion − deletion, paired with random orders.

``python tests/benchmarks/faithfulness.py outputs/sentiment/sst2``
``python tests/benchmarks/faithfulness.py outputs/sentiment/sst2 --methods ig --steps 16 --count 30``     # its time

The first of the run's own test examples are explained, their predicted class alone. Integrated gradients must beat
random orders by `BOUND` on 100 texts of SST-2, and with 16 steps take at most `SECONDS` a text on one core.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from gptask.analysis.explain import explainer as explainer_module
from gptask.analysis.explain.explainer import Explainer
from gptask.analysis.explain.faithfulness import METHODS, summarize
from gptask.config.explain_options import ExplainMethod
from gptask.config.schemas import Files
from gptask.data.columns import Columns
from gptask.data.reading import read
from gptask.data.rows import Source
from gptask.runs.predictor import Predictor, read_inputs
from gptask.runs.run import load_run
from serving import Kept, finish

BOUND, SECONDS = 0.25, 3.0


def main() -> None:
    """Explain the texts by each method; print, and record, what the comparison with random orders says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a classification task")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--steps", type=int, help="of integrated gradients; by default as many as they need")
    parser.add_argument("--record", action="store_true", help="write the figures into docs/results.json")
    options = parser.parse_args()
    run, data, figures, summaries = load_run(options.run), Files(), [], {}
    columns = Columns(run.task, data, run.task.inputs())
    source = Source.parse(str(options.run / "predictions.jsonl"), None)
    explainer_module.MAX_DELETED = 0  # only leave-one-out deletes each word in turn
    for method in options.methods:
        explainer = Explainer(
            Predictor(run.task, run.backbone, run.head, data),
            ExplainMethod(method),
            steps=options.steps if method == "ig" else None,
            other_classes=0,
        )
        rows = read(source, data, columns.header_names)
        start, explanations = time.perf_counter(), []
        for number, entry in enumerate(islice(read_inputs(rows, columns, source.path.name), options.count), 1):
            explanations.append(explainer.explain(entry))
            if number % 5 == 0:
                print(f"{number} {summarize(method, explanations).sentence}", flush=True)
        summary = summarize(method, explanations)
        seconds = (time.perf_counter() - start) / len(explanations)
        maps = [explanation.maps[0] for explanation in explanations]
        missing = [entry.completeness_error for entry in maps if entry.completeness_error is not None]
        steps = [entry.steps for entry in maps if entry.steps]
        summaries[method] = vars(summary) | {"seconds": seconds, "steps": steps, "errors": missing}
        print(f"{method}: {summary.sentence} {seconds:.1f} s a text", flush=True)
        if steps:
            complete = sum(error < 0.05 for error in missing)
            print(f"  {sum(steps) / len(steps):.0f} steps a text, less than 5% missing in {complete} of {len(missing)}")
        if options.steps and method == "ig":
            figures.append(
                Kept(
                    "faithful_seconds",
                    f"explaining a text by {METHODS[method]}, {options.steps} steps, with its faithfulness, "
                    f"{torch.get_num_threads()} core(s), {len(explanations)} texts",
                    f"{seconds:.1f} s",
                    f"≤ {SECONDS:.0f} s",
                    seconds <= SECONDS,
                )
            )
            continue
        bound = f"≥ {BOUND}" if method == "ig" else "reported"
        figures.append(
            Kept(
                f"faithful_{method}",
                f"insertion − deletion of {METHODS[method]} above random order, {len(explanations)} texts",
                f"{summary.difference:.2f} ({summary.low:.2f} to {summary.high:.2f})",
                bound,
                method != "ig" or summary.difference >= BOUND,
            )
        )
    finish(summaries, options.record, figures)


if __name__ == "__main__":
    main()
