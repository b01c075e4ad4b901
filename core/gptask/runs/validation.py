"""Whether what a run folder's YAML and JSON files hold has the names and types of a gptask run.

Files of a stranger's run agree with its manifest, so that their content is checked before it is used. Options of the
config groups are checked against their schema where they are loaded.
"""

from __future__ import annotations

import math
import re
from typing import Any

from gptask.runs.manifest import RUN_FORMAT

Kinds = dict[str, type | tuple[type, ...]]
NUMBER, OPTIONAL_MAPPING, NOTHING = (int, float), (dict, type(None)), type(None)
NAME = re.compile(r"\w[\w.-]*")  # of a task and of a plugin; it may stand in a path
CONFIG: Kinds = {"plugin": dict, "task": dict, "data": dict, "backbone": OPTIONAL_MAPPING, "seed": object}
PLUGIN: Kinds = {"name": str, "distribution": (str, NOTHING), "version": (str, NOTHING)}
GROUPS = ("tuning", "optimizer", "logger", "engine", "schedule", "early_stopping", "mixing", "tuned_options", "trainer")
OPTIONAL: Kinds = {
    **dict.fromkeys(GROUPS, OPTIONAL_MAPPING),
    **dict.fromkeys(("parent", "task_name", "command", "folder", "outputs"), (str, NOTHING)),
}
OF_TASK: Kinds = {"plugin": dict, "task": dict, "data": dict, "weight": object}
SEVERAL: Kinds = {"tasks": dict, "backbone": OPTIONAL_MAPPING}
SAVED_BACKBONE: Kinds = {"source": str, "location": str, "weights_hash": str, "layers": (list, int)}
MAX_LAYERS = 100_000
RESULT: Kinds = {"task": str, "split": str, "test_data_hash": str, "n": int, "seed": (int, NOTHING), "metrics": dict}
VALUE: Kinds = {
    "value": (*NUMBER, NOTHING),  # None: not a finite number
    "interval": (list, NOTHING),
    "n": int,
    "direction": str,
}
BASELINE: Kinds = {"metric": str, "score": dict, "verdict": dict}
SPLITS = ("train", "validation", "test")
COSTS = (
    "wall_seconds", "fit_seconds", "train_tokens_per_second", "peak_memory_mb", "trainable_parameters", "parameters",
)  # fmt: skip
DIRECTIONS = ("higher", "lower", "none")


def wrong_config(config: Any) -> str:
    """What is wrong with the content of config.yaml, of one task or of several; empty if nothing is."""
    if not isinstance(config, dict):
        return "not a mapping"
    if (tasks := config.get("tasks")) is None:
        return wrong_entry(config, CONFIG) or wrong_entry(config, OPTIONAL, True) or _wrong_names(config)
    if wrong := wrong_entry(config, SEVERAL) or wrong_entry(config, OPTIONAL, True):
        return wrong
    for name, values in tasks.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return f"tasks has the name {str(name)[:40]!r}"
        if wrong := wrong_entry(values, OF_TASK, True) or _wrong_names(values):
            return f"tasks.{name}: {wrong}"
    return "" if tasks else "tasks is empty"


def _wrong_names(config: dict[str, Any]) -> str:
    plugin = config.get("plugin")
    if plugin is not None and (wrong := wrong_entry(plugin, PLUGIN)):
        return f"plugin: {wrong}"
    for key, name in (("plugin.name", plugin and plugin["name"]), ("task_name", config.get("task_name"))):
        if name is not None and not NAME.fullmatch(name):
            return f"{key} is {name[:40]!r}"
    return ""


def problem_of_config(config: Any) -> str:
    """Why a run with this content of config.yaml can't be compared; empty where it can."""
    if isinstance(config, dict) and isinstance(tasks := config.get("tasks"), dict) and tasks:
        return f"a run of several tasks: name one of its folders, such as {next(iter(tasks))}"
    if wrong := wrong_config(config):
        return f"damaged: config.yaml is not the config of a gptask run ({wrong})"
    if config.get("format") != RUN_FORMAT:
        return f"written in run format {config.get('format')}, not {RUN_FORMAT}"
    return ""


def wrong_backbone(saved: Any) -> str:
    """What is wrong with the content of backbone.json; empty if nothing is."""
    if wrong := wrong_entry(saved, SAVED_BACKBONE):
        return wrong
    layers = saved["layers"]  # earlier versions saved their number
    count = len(layers) if isinstance(layers, list) else layers
    if isinstance(layers, list) and not all(isinstance(n, int) and 0 <= n <= MAX_LAYERS for n in layers):
        count = 0
    return "" if 0 < count <= MAX_LAYERS else f"layers is {str(layers)[:40]}"


def problem_of_result(result: Any) -> str:
    """Why a run with this content of metrics.json, of one task, can't be compared; empty where it can."""
    if wrong := wrong_result(result):
        return f"damaged: metrics.json is not that of a gptask run ({wrong})"
    return "" if result["metrics"] else "no example was scored"


def wrong_result(result: Any) -> str:
    """What is wrong with the content of metrics.json of one task; empty if nothing is."""
    costs: Kinds = dict.fromkeys(COSTS, (*NUMBER, NOTHING))
    optional: Kinds = costs | {"versions": dict, "baselines": dict, "overlap": OPTIONAL_MAPPING}
    if wrong := wrong_entry(result, RESULT) or wrong_entry(result, optional, True):
        return wrong
    if wrong := next((name for name in COSTS if not (result.get(name) is None or is_number(result[name]))), ""):
        return f"{wrong} is {_start(result[wrong])}"
    if wrong := wrong_entry(result.get("overlap") or {}, dict.fromkeys(SPLITS, int), True):
        return f"overlap: {wrong}"
    for name, entry in result["metrics"].items():
        if wrong := _wrong_metric(entry):
            return f"the entry of '{name}': {wrong}"
    for name, entry in result.get("baselines", {}).items():
        wrong = wrong_entry(entry, BASELINE) or wrong_entry(entry["verdict"], {"sentence": str})
        if wrong := wrong or _wrong_metric(entry["score"]):
            return f"the baseline '{name}': {wrong}"
    return ""


def wrong_entry(values: Any, kinds: Kinds, optional: bool = False) -> str:
    """The first value that is missing (unless ``optional``) or has another type; empty if all fit."""
    if not isinstance(values, dict):
        return "not a mapping"
    for name, kind in kinds.items():
        if name not in values and not optional:
            return f"no {name}"
        if name in values and not (isinstance(values[name], kind) and _is_moderate(values[name])):
            return f"{name} is {_start(values[name])}"
    return ""


def _is_moderate(value: Any) -> bool:
    """Whether an integer fits into 64 bits, as all that a run writes do; anything else is."""
    return not isinstance(value, int) or value.bit_length() < 64


def _is_moderate_number(value: Any) -> bool:
    return isinstance(value, int | float) and _is_moderate(value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of at most 64 bits."""
    return _is_moderate_number(value) and math.isfinite(value)


def _start(value: Any) -> str:
    """The start of a value for a message; Python refuses to write integers of thousands of digits."""
    return repr(str(value)[:40]) if _is_moderate(value) else "a number of more than 64 bits"


def wrong_value(entry: Any) -> str:
    """What is wrong with a metric's value, interval, n or direction; empty if nothing is."""
    if wrong := wrong_entry(entry, VALUE):
        return wrong
    interval = entry["interval"]
    if interval is not None and (len(interval) != 2 or not all(map(_is_moderate_number, interval))):
        return f"interval is {_start(interval)}"
    return "" if entry["direction"] in DIRECTIONS else f"direction is {entry['direction']!r}"


def _wrong_metric(entry: Any) -> str:
    """What is wrong with a metric's entry, its range and signature included; empty if nothing is."""
    if wrong := wrong_value(entry) or wrong_entry(entry, {"range": list, "signature": str}):
        return wrong
    if len(entry["range"]) != 2 or not all(end is None or _is_moderate_number(end) for end in entry["range"]):
        return f"range is {_start(entry['range'])}"
    return ""
