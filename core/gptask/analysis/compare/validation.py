"""Whether the contents of config.yaml and metrics.json are those of a finished gptask run."""

from __future__ import annotations

from typing import Any

from gptask.runs.manifest import RUN_FORMAT

Kinds = dict[str, type | tuple[type, ...]]
NUMBER, OPTIONAL_MAPPING, NOTHING = (int, float), (dict, type(None)), type(None)
CONFIG: Kinds = {"plugin": dict, "task": dict}
OPTIONAL: Kinds = {
    "data": OPTIONAL_MAPPING,
    "backbone": OPTIONAL_MAPPING,
    "tuning": OPTIONAL_MAPPING,
    "tuned_options": OPTIONAL_MAPPING,
    "parent": (str, NOTHING),
}
RESULT: Kinds = {"task": str, "split": str, "test_data_hash": str, "n": int, "seed": (int, NOTHING), "metrics": dict}
METRIC: Kinds = {
    "value": (*NUMBER, NOTHING),  # None: not a finite number
    "interval": (list, NOTHING),
    "n": int,
    "direction": str,
    "range": list,
    "signature": str,
}
BASELINE: Kinds = {"metric": str, "score": dict, "verdict": dict}
COSTS = ("wall_seconds", "train_tokens_per_second", "peak_memory_mb", "trainable_parameters")
DIRECTIONS = ("higher", "lower", "none")


def problem_of_config(config: Any) -> str:
    """Why a run with this content of config.yaml can't be compared; empty where it can."""
    if isinstance(config, dict) and config.get("tasks"):
        return f"a run of several tasks: name one of its folders, such as {next(iter(config['tasks']))}"
    if wrong := _wrong(config, CONFIG) or _wrong(config["plugin"], {"name": str}) or _wrong(config, OPTIONAL, True):
        return f"damaged: config.yaml is not the config of a gptask run ({wrong})"
    if config.get("format") != RUN_FORMAT:
        return f"written in run format {config.get('format')}, not {RUN_FORMAT}"
    return ""


def problem_of_result(result: Any) -> str:
    """Why a run with this content of metrics.json can't be compared; empty where it can."""
    costs: Kinds = dict.fromkeys(COSTS, (*NUMBER, NOTHING))
    optional: Kinds = costs | {"versions": dict, "baselines": dict, "overlap": OPTIONAL_MAPPING}
    if wrong := _wrong(result, RESULT) or _wrong(result, optional, True):
        return f"damaged: metrics.json is not that of a gptask run ({wrong})"
    if not result["metrics"]:
        return "no example was scored"
    for name, entry in result["metrics"].items():
        if wrong := _wrong(entry, METRIC) or _wrong_bounds(entry):
            return f"damaged: the entry of '{name}' in metrics.json is not that of a gptask run ({wrong})"
    for name, entry in result.get("baselines", {}).items():
        if (
            wrong := _wrong(entry, BASELINE)
            or _wrong(entry["score"], METRIC)
            or _wrong(entry["verdict"], {"sentence": str})
        ):
            return f"damaged: the baseline '{name}' in metrics.json is not that of a gptask run ({wrong})"
    return ""


def _wrong(values: Any, kinds: Kinds, optional: bool = False) -> str:
    """The first value that is missing or has another type; empty if all fit."""
    if not isinstance(values, dict):
        return "not a mapping"
    for name, kind in kinds.items():
        if name not in values and not optional:
            return f"no {name}"
        if name in values and not isinstance(values[name], kind):
            return f"{name} is {str(values[name])[:40]!r}"
    return ""


def _wrong_bounds(entry: dict[str, Any]) -> str:
    """What is wrong with a metric's interval, range or direction; empty if nothing is."""
    interval = entry["interval"]
    if interval is not None and (len(interval) != 2 or not all(isinstance(end, int | float) for end in interval)):
        return f"interval is {interval}"
    if len(entry["range"]) != 2 or not all(isinstance(end, int | float | None) for end in entry["range"]):
        return f"range is {entry['range']}"
    return "" if entry["direction"] in DIRECTIONS else f"direction is {entry['direction']!r}"
