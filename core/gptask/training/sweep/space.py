"""A search space: what each option may become, read from Hydra's sweep grammar on the line or in YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptask.config.overrides import parse_override, quoted
from gptask.errors import UserError

GRAMMAR = "choice(a,b), range(1,9,2), interval(0.1,1), int(interval(1,8)) or tag(log,interval(1e-5,1e-2))"
CALL = re.compile(r"\s*(tag|choice|range|interval|int|float|str|bool|sort|shuffle|glob)\s*\(.*\)\s*")


@dataclass(frozen=True)
class Dimension:
    """What one option may become: ``choices`` in Hydra's spelling, or numbers from ``low`` to ``high``."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole ones."""
        return isinstance(self.low, int)

    def __str__(self) -> str:
        if self.choices:
            return f"choice({','.join(self.choices)})"
        how = "".join([f" by {self.step:g}" if self.step else "", " on a log scale" if self.log else ""])
        return f"{'whole numbers' if self.whole else 'numbers'} from {self.low:g} to {self.high:g}{how}"

    def distribution(self) -> Any:
        """The same for Optuna."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return distributions.FloatDistribution(self.low, self.high, self.log, self.step)

    def values(self) -> list[Any]:
        """Every value, in order; without choices or a step only the two ends."""
        if self.choices:
            return list(self.choices)
        if not self.step:
            return [self.low, self.high]
        return [self.low + n * self.step for n in range(round((self.high - self.low) / self.step) + 1)]

    def override(self, value: Any) -> str:
        """The override that sets the option to a value of Optuna's."""
        return f"{self.key}={value:.6g}" if isinstance(value, float) else f"{self.key}={value}"


def dimension(override: str) -> Dimension | None:
    """The dimension that a normalized override spans, None if it sets one value."""
    from hydra.core.override_parser.types import ValueType
    from hydra.errors import HydraException

    key, _, value = override.partition("=")
    key = key.lstrip("+")
    try:
        found = parse_override(f"key={value}")
    except HydraException as error:
        raise UserError(f"{override}: {str(error).splitlines()[0]}; expected {GRAMMAR}") from error
    if found.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise UserError(f"{key}: glob() is not for a search space; name the values: choice(a,b)")
    if not found.is_sweep_override():
        return None
    log = "log" in found.value().tags
    if found.value().tags - {"log"}:
        raise UserError(f"{key}: the only tag is log, got {', '.join(sorted(found.value().tags))}")
    if found.is_choice_sweep():
        return _choices(key, list(found.sweep_string_iterator()), log)
    return _numbers(key, found.value(), log, found.is_range_sweep())


def _choices(key: str, values: list[str], log: bool) -> Dimension:
    if log:
        raise UserError(f"{key}: a log scale is for interval() and range(), not for choices")
    if not values:
        raise UserError(f"{key}: there is nothing to choose from; expected choice(a,b)")
    return Dimension(key, tuple(dict.fromkeys(values)))


def _numbers(key: str, sweep: Any, log: bool, stepwise: bool) -> Dimension:
    """An interval, or a range, whose end is not part of it (as everywhere in Python and Hydra)."""
    if stepwise:
        values = sorted(sweep.range())
        low, high, step = (values[0], values[-1], abs(sweep.step)) if values else (0, -1, 1)
    else:
        low, high, step = sweep.start, sweep.end, None
    if low > high or (low == high and not stepwise):
        what = "range" if stepwise else "interval"
        raise UserError(f"{key}: the {what} is empty; its first number must be below its second")
    if log and low <= 0:
        raise UserError(f"{key}: a log scale starts above 0, got {low:g}")
    if log and step not in (None, 1):
        raise UserError(f"{key}: a log scale has no steps; write tag(log,interval(a,b)) or tag(log,int(interval(a,b)))")
    if isinstance(low, int) and step is None:
        step = 1
    return Dimension(key, (), low, high, None if log else step, log)


def on_line(overrides: Sequence[str], normalized: Sequence[str]) -> tuple[list[Dimension], list[str]]:
    """The dimensions that a line's overrides span, and the overrides, as they were typed, that set one value."""
    space, fixed = [], []
    for typed, override in zip(overrides, normalized, strict=True):
        if CALL.fullmatch(typed.partition("=")[2]):
            override = typed  # what the grammar refuses has been quoted: let it say what is wrong
        found = dimension(override) if "=" in override else None
        space += [found] if found else []
        fixed += [] if found else [typed]
    return space, fixed


def in_file(name: str) -> list[Dimension]:
    """The dimensions of a YAML file: option -> an expression as on the line, or a list of choices."""
    import yaml

    try:
        text = Path(name).read_text(encoding="utf-8")
        tree, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{name}:{line}: this is no YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: this is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict) or not isinstance(tree, yaml.MappingNode):
        raise UserError(f"{name}: expected a line for each option, such as tuning.rank: [4, 8, 16]")
    lines: dict[str, int] = {}
    for key, _ in tree.value:
        if key.value in lines:
            raise UserError(f"{name}:{key.start_mark.line + 1}: {key.value} is there twice")
        lines[key.value] = key.start_mark.line + 1
    return [_entry(f"{name}:{lines.get(str(option), 1)}", str(option), value) for option, value in values.items()]


def _entry(place: str, option: str, value: Any) -> Dimension:
    found = None
    try:
        if isinstance(value, list):
            found = _choices(option, [quoted(v) if isinstance(v, str) else json.dumps(v) for v in value], False)
        if isinstance(value, str):
            found = dimension(f"{option}={value}")
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    if found is None:
        raise UserError(f"{place}: {option}: {value!r} is no search space; expected a list of choices, or {GRAMMAR}")
    return found


def together(in_yaml: Iterable[Dimension], space: Iterable[Dimension], fixed: Sequence[str]) -> list[Dimension]:
    """The file's dimensions but for those that the line sets or spans itself, then the line's."""
    lined = {d.key: d for d in space}
    named = {override.partition("=")[0].lstrip("+~") for override in fixed}
    return [*(d for d in in_yaml if d.key not in named | lined.keys()), *lined.values()]
