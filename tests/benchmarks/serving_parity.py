"""The answers of a server of many runs, asked at the same time, against those of the runs by themselves.

python tests/benchmarks/serving_parity.py RUN... --examples 50 --dtype bfloat16
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from serving import (
    Examples,
    Figures,
    Kept,
    ServedFolder,
    arguments,
    ask,
    client,
    finish,
    pin,
    predict_request,
    serve_command,
    served_folders,
    started,
)


def main() -> None:
    """Measure."""
    options = arguments(__doc__, examples=50, dtype="float32", backbone="smollm2", clients=16)
    runs = served_folders(options.runs)
    examples = {run.name: run.examples()[: options.examples] for run in runs}
    serve_options = [f"backbone={options.backbone}", f"backbone.dtype={options.dtype}", *options.option]
    with started(lambda port: serve_command(runs, port, serve_options), core=None, log=options.log) as server:
        pin(1)
        figures, answers = asyncio.run(asked(server.url, examples, options.clients))
    compared = {run.name: compare(answers[run.name], *alone(run, examples[run.name], options.dtype)) for run in runs}
    result = {"dtype": options.dtype, **figures.summary(), "runs": compared, **verdict(options.dtype, compared)}
    finish(result, options.record, [kept(options.dtype, compared, result["passed"])])


async def asked(url: str, examples: dict[str, Examples], count: int) -> tuple[Figures, dict[str, list[Any]]]:
    """The answer to every example; the runs take turns, so that batches are mixed."""
    figures, answers = Figures(), {name: [None] * len(given) for name, given in examples.items()}
    places = [(name, number) for name, given in examples.items() for number in range(len(given))]
    turns = iter(sorted(places, key=lambda place: place[1]))

    async def one() -> None:
        async with client(timeout=3600) as http:
            for name, number in turns:
                post = predict_request(url, name, examples[name][number])
                if (response := await ask(http, figures, name, post)) is not None and response.is_success:
                    (answers[name][number],) = response.json()

    await asyncio.gather(*(one() for _ in range(count)))
    return figures, answers


def alone(run: ServedFolder, examples: Examples, dtype: str) -> tuple[list[dict[str, Any]], float]:
    """What `gptask predict` writes for the examples, and the probability from which a label of many is predicted."""
    from gptask import load_run
    from gptask.config.schemas import DType
    from gptask.runs.predictions_file import prediction_fields

    loaded = load_run(run.folder, dtype=DType(dtype))
    threshold = getattr(loaded.task, "threshold", None) or 0.5
    return [prediction_fields(prediction) for prediction in loaded.predict(examples)], threshold


def compare(served: list[Any], local: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """How two lists of answers differ: values, probabilities, and labels whose probability leads by a margin.

    The probability of a text or of spans is compared where these are equal: it is no other text's.
    """
    differences, equal, clear, clear_equal = list[float](), 0, 0, 0
    for one, other in itertools.zip_longest(served, local):
        one = one or {"prediction": None}
        values, scores = without_scores(one["prediction"])
        local_values, local_scores = without_scores(other["prediction"])
        is_equal = values == local_values
        equal += is_equal
        if shares := other.get("probabilities"):
            theirs = one.get("probabilities") or {}
            differences += [abs(share - theirs.get(name, -1.0)) for name, share in shares.items()]
            if isinstance(other["prediction"], list):
                margin = min(abs(share - threshold) for share in shares.values())
            else:
                second, first = sorted([0.0, *shares.values()])[-2:]
                margin = first - second
            clear, clear_equal = clear + (margin > 0.05), clear_equal + (margin > 0.05 and is_equal)
        elif is_equal:
            pairs = zip([one.get("score"), *scores], [other.get("score"), *local_scores], strict=True)
            differences += [abs(score - local_score) for score, local_score in pairs if local_score is not None]
    near = sum(difference <= 0.02 for difference in differences) / len(differences) if differences else None
    return {
        "n": len(local),
        "lost": sum(one is None for one in served),
        "equal": equal,
        "largest_difference": round(max(differences), 6) if differences else None,
        "within_0.02": near and round(near, 4),
        "with_margin": [clear, clear_equal],
    }


def without_scores(value: Any) -> tuple[Any, list[float]]:
    """A predicted value, of spans without the probability of each, and these."""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        return value, []
    spans = [{name: cell for name, cell in span.items() if name != "score"} for span in value]
    return spans, [span["score"] for span in value]


def verdict(dtype: str, compared: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether each run's answers are near enough."""
    near = {}
    for name, result in compared.items():
        clear, clear_equal = result["with_margin"]
        if result["lost"]:
            near[name] = False
            continue
        if dtype == "float32":
            near[name] = result["equal"] == result["n"] and (result["largest_difference"] or 0) <= 1e-4
        else:
            near[name] = clear == clear_equal and (result["within_0.02"] is None or result["within_0.02"] >= 0.99)
    return {"near_enough": near, "passed": all(near.values())}


def kept(dtype: str, compared: dict[str, dict[str, Any]], passed: bool) -> Kept:
    """The worst of all runs, and whether each is near enough."""
    equal, total = (sum(result[key] for result in compared.values()) for key in ("equal", "n"))
    measure = f"answers of {len(compared)} runs against gptask predict, {dtype}"
    if dtype == "float32":
        worst = max(result["largest_difference"] or 0 for result in compared.values())
        value, bound = f"{equal} of {total} equal, numbers within {worst:.1g}", "texts and labels equal, 1e-4"
    else:
        near = min(result["within_0.02"] or 1.0 for result in compared.values())
        clear, clear_equal = (sum(result["with_margin"][place] for result in compared.values()) for place in (0, 1))
        value = f"{near:.1%} or more within 0.02; {clear_equal} of {clear} labels equal"
        bound = "99% within 0.02; labels equal where the margin is above 0.05"
    return Kept(f"serving_parity_{dtype}", measure, value, bound, passed)


if __name__ == "__main__":
    main()
