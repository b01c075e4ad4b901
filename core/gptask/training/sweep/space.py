"""A search space: the values of each option, in Hydra's sweep grammar on the command line or in YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptask.config.overrides import parse_override, quoted
from gptask.config.yaml_text import load_yaml
from gptask.errors import UserError

GRAMMAR = "choice(a,b), range(1,9,2), interval(0.1,1), int(interval(1,8)) or tag(log,interval(1e-5,1e-2))"
SWEEP_CALL = re.compile(r"\s*(tag|choice|range|interval|int|float|str|bool|sort|shuffle|glob)\s*\(.*\)\s*")


@dataclass(frozen=True)
class Dimension:
    """The values of one option: ``choices`` in Hydra's spelling, or numbers from ``low`` to ``high``, both included."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether the numbers are integers."""
        return isinstance(self.low, int)

    def __str__(self) -> str:
        if self.choices:
            return f"choice({','.join(self.choices)})"
        kind = "whole numbers" if self.is_integer else "numbers"
        step = f" by {self.step:g}" if self.step else ""
        return f"{kind} from {self.low:g} to {self.high:g}{step}{' on a log scale' if self.log else ''}"

    def distribution(self) -> Any:
        """The Optuna distribution of these values."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.is_integer:
            return distributions.IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return distributions.FloatDistribution(self.low, self.high, self.log, self.step)

    def values(self) -> list[Any]:
        """Every value, in order; only the two ends of an interval without a step."""
        if self.choices:
            return list(self.choices)
        if not self.step:
            return [self.low, self.high]
        steps = round((self.high - self.low) / self.step)
        return [self.low + number * self.step for number in range(steps + 1)]

    def override(self, value: Any) -> str:
        """The override that sets the option to a value that Optuna chose."""
        return f"{self.key}={value:.6g}" if isinstance(value, float) else f"{self.key}={value}"


def parse_dimension(override: str) -> Dimension | None:
    """The dimension of a normalized override, None if the override sets one value.

    Raises `UserError` for what Hydra's grammar or Optuna does not allow.
    """
    from hydra.core.override_parser.types import ValueType
    from hydra.errors import HydraException

    key, _, value = override.partition("=")
    key = key.lstrip("+")
    try:
        parsed = parse_override(f"key={value}")
    except HydraException as error:
        raise UserError(f"{override}: {str(error).splitlines()[0]}; expected {GRAMMAR}") from error
    if parsed.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise UserError(f"{key}: glob() is not for a search space; name the values: choice(a,b)")
    if not parsed.is_sweep_override():
        return None
    tags = parsed.value().tags
    if tags - {"log"}:
        raise UserError(f"{key}: the only tag is log, got {', '.join(sorted(tags))}")
    if parsed.is_choice_sweep():
        return _choice_dimension(key, list(parsed.sweep_string_iterator()), "log" in tags)
    return _number_dimension(key, parsed.value(), "log" in tags, parsed.is_range_sweep())


def _choice_dimension(key: str, values: list[str], log: bool) -> Dimension:
    if log:
        raise UserError(f"{key}: a log scale is for interval() and range(), not for choices")
    if not values:
        raise UserError(f"{key}: there is nothing to choose from; expected choice(a,b)")
    return Dimension(key, tuple(dict.fromkeys(values)))


def _number_dimension(key: str, sweep: Any, log: bool, is_range: bool) -> Dimension:
    """The dimension of an interval, or of a range, whose end is not part of it (as in Python and Hydra)."""
    if is_range:
        values = sorted(sweep.range())
        low, high, step = (values[0], values[-1], abs(sweep.step)) if values else (0, -1, 1)
    else:
        low, high, step = sweep.start, sweep.end, None
    if low > high or (low == high and not is_range):
        kind = "range" if is_range else "interval"
        raise UserError(f"{key}: the {kind} is empty; its first number must be below its second")
    if log and low <= 0:
        raise UserError(f"{key}: a log scale starts above 0, got {low:g}")
    if log and step not in (None, 1):
        raise UserError(f"{key}: a log scale has no steps; write tag(log,interval(a,b)) or tag(log,int(interval(a,b)))")
    if isinstance(low, int) and step is None:
        step = 1
    return Dimension(key, (), low, high, None if log else step, log)


def split_overrides(overrides: Sequence[str], normalized: Sequence[str]) -> tuple[list[Dimension], list[str]]:
    """The dimensions among a command line's overrides, and the overrides, as typed, that set one value."""
    space, fixed = [], []
    for typed, override in zip(overrides, normalized, strict=True):
        if SWEEP_CALL.fullmatch(typed.partition("=")[2]):
            override = typed  # normalizing quotes what the grammar refuses; unquoted, the error says what is wrong
        dimension = parse_dimension(override) if "=" in override else None
        if dimension:
            space.append(dimension)
        else:
            fixed.append(typed)
    return space, fixed


def read_space_file(name: str) -> list[Dimension]:
    """The dimensions of a YAML file: option -> an expression as on the command line, or a list of choices.

    Raises `UserError` with the file's line for what is no search space.
    """
    import yaml

    try:
        text = Path(name).read_text(encoding="utf-8")
        values = load_yaml(text, name)
        tree = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{name}:{line}: this is not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: this is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict) or not isinstance(tree, yaml.MappingNode):
        raise UserError(f"{name}: expected a line for each option, such as tuning.rank: [4, 8, 16]")
    lines: dict[str, int] = {}
    for key, _ in tree.value:
        if key.value in lines:
            raise UserError(f"{name}:{key.start_mark.line + 1}: {key.value} is there twice")
        lines[key.value] = key.start_mark.line + 1
    return [_file_entry(f"{name}:{lines.get(str(key), 1)}", str(key), value) for key, value in values.items()]


def _file_entry(location: str, key: str, value: Any) -> Dimension:
    dimension = None
    try:
        if isinstance(value, list):
            choices = [quoted(choice) if isinstance(choice, str) else json.dumps(choice) for choice in value]
            dimension = _choice_dimension(key, choices, False)
        if isinstance(value, str):
            dimension = parse_dimension(f"{key}={value}")
    except UserError as error:
        raise UserError(f"{location}: {error}") from error
    if dimension is None:
        raise UserError(f"{location}: {key}: {value!r} is no search space; expected a list of choices, or {GRAMMAR}")
    return dimension


def merge_spaces(
    file_space: Iterable[Dimension], line_space: Iterable[Dimension], fixed: Sequence[str]
) -> list[Dimension]:
    """The file's dimensions without the options that the command line names, then the command line's dimensions."""
    line_dimensions = {dimension.key: dimension for dimension in line_space}
    line_keys = line_dimensions.keys() | {override.partition("=")[0].lstrip("+~") for override in fixed}
    return [*(dimension for dimension in file_space if dimension.key not in line_keys), *line_dimensions.values()]
