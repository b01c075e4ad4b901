"""A run against the run it comes from: quality by paired tests, sizes, and speeds measured in turns.

Shapes: N test examples, K statistics of an example.
"""

from __future__ import annotations

import statistics as stats
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.analysis.compare.records import RunRecord
from gptask.errors import UserError
from gptask.plugins.metric import Metric
from gptask.plugins.resampling import number_groups
from gptask.plugins.task import Task
from gptask.plugins.types import Example
from gptask.runs.atomic_write import json_text
from gptask.runs.run import Run
from gptask.runs.significance import difference
from gptask.runs.verdict import Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from gptask.data.examples import Examples

ROUNDS = 3  # of predicting, in which the two runs take turns
ROUND_SECONDS = 5.0  # that a round of one run takes at most, by its first examples
FIRST_EXAMPLES = 16


@dataclass
class Pair:
    """Two values of one measure: of the run, and of its parent."""

    run: float
    parent: float

    @property
    def ratio(self) -> float:
        """The run's value in those of the parent."""
        return self.run / self.parent if self.parent else float("inf")

    def to_dict(self) -> dict[str, float]:
        """The form that metrics.json holds."""
        return {"run": round(self.run, 3), "parent": round(self.parent, 3)}


# --- quality --------------------------------------------------------------------------------------------------------


def tested_rows(parent: RunRecord, task: Task, examples: Examples | Sequence[Example]) -> list[dict[str, Any]]:
    """The parent's lines of predictions.jsonl for test examples, in their order.

    Raises `UserError` unless the parent was tested on all of them, with the same references.
    """
    rows = dict(zip(parent.predictions.keys, parent.predictions.rows, strict=True))
    found = [rows.get((str(example["id"]), f"{example['digest'] + 2**63:016x}")) for example in examples]
    targets = [field.name for field in task.targets()]
    present = [
        row
        for row, example in zip(found, examples, strict=True)
        if row and json_text(row["references"]) == json_text({name: example[name] for name in targets})
    ]
    if len(present) < len(found):
        raise UserError(
            f"{len(found) - len(present)} of the {len(found)} test examples are not among the {len(rows)} that "
            f"{parent.folder} was tested on, and a paired test needs the same: leave data.test, data.cut, data.seed "
            "and seed as they are (data.limit.test=<fewer> is fine)"
        )
    return present


def quality(
    parent_rows: Sequence[dict[str, Any]],
    metrics: Sequence[Metric],
    examples: Sequence[Example],
    statistics: Sequence[dict[str, list[float]]],
) -> dict[str, dict[str, Any]]:
    """Every metric of the N ``examples`` against the parent's: both values, the difference with its test, the verdict.

    ``statistics`` are the run's. A metric that ranks nothing has no verdict, and
    one with other statistics than the parent's is left out.
    """
    groups, results = number_groups([example["group"] for example in examples]), {}
    for metric in metrics:
        rows = np.asarray([row[metric.name] for row in statistics], dtype=float)
        parents = np.asarray([row["statistics"][metric.name] for row in parent_rows], dtype=float)
        if rows.shape != parents.shape:  # with other options of the task it counts other things
            continue
        values = Pair(metric.aggregate(rows), metric.aggregate(parents))
        results[metric.name] = {**values.to_dict()} | _tested(metric, rows, parents, groups)
    return results


def _tested(metric: Metric, rows: np.ndarray, parents: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    tested, (low, high) = difference(metric, [rows], [parents], groups), metric.range
    verdict = Verdict(tested, metric.higher_is_better is not False, high - low, p=tested.p)
    word = "none" if metric.higher_is_better is None else verdict.word
    return {
        "difference": round(tested.value, 4),
        "interval": [round(tested.low, 4), round(tested.high, 4)],
        "p": tested.p,
        "verdict": word,
        "sentence": "" if metric.higher_is_better is None else verdict.sentence,
    }


# --- sizes ----------------------------------------------------------------------------------------------------------


def memory_bytes(run: Run) -> int:
    """The bytes of a run's parameters and buffers in memory, its adapter and head among them."""
    tensors = [t for module in (run.backbone, run.head) for t in (*module.parameters(), *module.buffers())]
    return _bytes(tensors)


def export_bytes(run: Run) -> int:
    """The bytes of the weights that `gptask export` writes of a run: the adapter merged, the head inside."""
    writes_texts = run.head.export_class in ("AutoModelForCausalLM", None)
    model = run.backbone.model if writes_texts else run.backbone.body
    merged = [parameter for name, parameter in model.named_parameters() if ".lora_" not in name]
    head_elements = sum(parameter.numel() for parameter in run.head.parameters())
    return _bytes(merged) + head_elements * int(run.backbone.model.dtype.itemsize)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in {id(tensor): tensor for tensor in tensors}.values())


# --- speeds ---------------------------------------------------------------------------------------------------------


@dataclass
class Speeds:
    """How fast two runs predict the same examples: medians of rounds in turns. ``tokens`` are those they write."""

    examples: Pair
    tokens: Pair | None
    faster: bool  # in every round


def measure_speeds(run: Run, parent: Run, examples: Sequence[Example]) -> Speeds:
    """Let two runs predict the same examples in turns, after a first few to warm up, for some `ROUND_SECONDS` each."""
    names = [field.name for field in run.task.inputs()]
    inputs = [{name: example[name] for name in names if example.get(name) is not None} for example in examples]
    first = inputs[:FIRST_EXAMPLES]
    for side in (run, parent):
        _predict(side, first)
    seconds_each = max(_predict(side, first)[0] for side in (run, parent)) / len(first)
    inputs = inputs[: max(len(first), int(ROUND_SECONDS / seconds_each))]
    rounds = [[_predict(side, inputs) for side in (parent, run)] for _ in range(ROUNDS)]
    examples_each = Pair(*(stats.median(len(inputs) / r[side][0] for r in rounds) for side in (1, 0)))
    tokens_each = Pair(*(stats.median(r[side][1] / r[side][0] for r in rounds) for side in (1, 0)))
    faster = all(of_run[0] < of_parent[0] for of_parent, of_run in rounds)
    return Speeds(examples_each, tokens_each if run.head.decodes else None, faster)


def _predict(run: Run, inputs: Sequence[dict[str, Any]]) -> tuple[float, int]:
    """The seconds that a run takes for its predictions, and the tokens that it writes if it writes texts."""
    start = time.perf_counter()
    predictions = list(run.predict(inputs))
    seconds = time.perf_counter() - start
    texts = [str(prediction.value) for prediction in predictions] if run.head.decodes else []
    return seconds, sum(map(len, run.backbone.tokenizer(texts, add_special_tokens=False)["input_ids"])) if texts else 0


# --- the conclusion -------------------------------------------------------------------------------------------------


def against_parent(
    run: Run, parent: Run, quality: dict[str, dict[str, Any]], examples: Sequence[Example]
) -> dict[str, Any]:
    """What metrics.json holds of a run against its parent: quality, sizes, speeds, and whether the run is worth it."""
    speeds = measure_speeds(run, parent, examples)
    pairs = {
        "export_mb": Pair(export_bytes(run) / 2**20, export_bytes(parent) / 2**20),
        "memory_mb": Pair(memory_bytes(run) / 2**20, memory_bytes(parent) / 2**20),
        "examples_per_second": speeds.examples,
    }
    pairs |= {"tokens_per_second": speeds.tokens} if speeds.tokens else {}
    worth_it, conclusion = _conclusion(quality, pairs["export_mb"], speeds)
    measures = {name: pair.to_dict() for name, pair in pairs.items()}
    return {"n": len(examples), "metrics": quality, **measures, "worth_it": worth_it, "conclusion": conclusion}


def _conclusion(quality: dict[str, dict[str, Any]], size: Pair, speeds: Speeds) -> tuple[bool, str]:
    """Whether a run is worth it, and why: smaller or faster than its parent, and not worse in the main metric."""
    speed = speeds.tokens or speeds.examples
    gains = [f"{1 - size.ratio:.0%} smaller"] if size.ratio < 1 else []
    gains += [f"{speed.ratio:.2f} times as fast"] if speeds.faster else []
    ranking = ((name, entry) for name, entry in quality.items() if entry["sentence"])
    metric, main = next(ranking, ("quality", {"verdict": "none", "sentence": "no metric to compare"}))
    if not gains:
        return False, f"not worth it: neither smaller nor faster ({speed.ratio:.2f} times the speed)"
    gain, verdict = " and ".join(gains), f"{metric}: {main['sentence']}"
    if main["verdict"] == "worse":
        return False, f"not worth it: {verdict}, though {gain}"
    return True, f"worth it: {gain}; {verdict}"
