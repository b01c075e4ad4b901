"""What keeps a folder's files, each readable, from being the result of a run."""

from __future__ import annotations

from typing import Any

from gptask.runs.config_file import FORMAT

Kinds = dict[str, type | tuple[type, ...]]
NUMBER, GROUP, NOTHING = (int, float), (dict, type(None)), type(None)
CONFIG: Kinds = {"plugin": dict, "task": dict}
OPTIONAL: Kinds = {"data": GROUP, "backbone": GROUP, "tuning": GROUP, "adjusted": GROUP, "parent": (str, NOTHING)}
RESULT: Kinds = {"task": str, "split": str, "test_data_hash": str, "n": int, "seed": (int, NOTHING), "metrics": dict}
METRIC: Kinds = {"value": NUMBER, "interval": list, "n": int, "direction": str, "range": list, "signature": str}
COSTS = ("wall_seconds", "train_tokens_per_second", "peak_memory_mb", "trainable_parameters")
DIRECTIONS = ("higher", "lower", "none")


def problem(config: Any, result: Any) -> str:
    """Why the contents of config.yaml and metrics.json can't be compared; empty where they can."""
    if isinstance(config, dict) and config.get("tasks"):
        return f"of several tasks: take one of its folders, {next(iter(config['tasks']))}, say"
    if wrong := _wrong(config, CONFIG) or _wrong(config["plugin"], {"name": str}) or _wrong(config, OPTIONAL, True):
        return f"damaged: config.yaml is not the config of a gptask run ({wrong})"
    if config.get("format") != FORMAT:
        return f"written in run format {config.get('format')}, not {FORMAT}"
    costs: Kinds = dict.fromkeys(COSTS, (*NUMBER, NOTHING))
    if wrong := _wrong(result, RESULT) or _wrong(result, costs | {"versions": dict}, True):
        return f"damaged: metrics.json is not that of a gptask run ({wrong})"
    if not result["metrics"]:
        return "no example was scored"
    for name, found in result["metrics"].items():
        if wrong := _wrong(found, METRIC) or _uneven(found):
            return f"damaged: metrics.json says of '{name}' what no gptask run writes ({wrong})"
    return ""


def _wrong(values: Any, kinds: Kinds, optional: bool = False) -> str:
    """The first of some values that is not there or of another kind."""
    if not isinstance(values, dict):
        return "not a mapping"
    for name, kind in kinds.items():
        if name not in values and not optional:
            return f"no {name}"
        if name in values and not isinstance(values[name], kind):
            return f"{name} is {str(values[name])[:40]!r}"
    return ""


def _uneven(found: dict[str, Any]) -> str:
    """What is wrong with a metric's pairs and its direction."""
    if len(found["interval"]) != 2 or not all(isinstance(end, int | float) for end in found["interval"]):
        return f"interval is {found['interval']}"
    if len(found["range"]) != 2 or not all(isinstance(end, int | float | None) for end in found["range"]):
        return f"range is {found['range']}"
    return "" if found["direction"] in DIRECTIONS else f"direction is {found['direction']!r}"
