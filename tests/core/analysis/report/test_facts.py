"""Facts, metrics and settings, side by side."""

import json

import pytest
from gptask.analysis.compare.records import read
from gptask.analysis.report import facts, measures, settings
from gptask.analysis.report.report_run import entries
from gptask.errors import UserError
from gptask.runs import reproduce as command

from tests.support.run_folders import write_review_run


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return entries([read(write_review_run(root / f"{k}", seed=k)) for k in (1, 2)])[0]


def test_facts_are_folded_where_equal(pair):
    found = {row.name: row for row in facts.facts(pair)}
    assert found["seed"].values == ["1", "2"]
    assert not found["seed"].same
    assert found["backbone"].same
    assert found["tuning"].values[0] == "lora: 16"


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.14, "3.1 s"), (125, "2 min 05 s"), (7260, "2 h 01 min"), (None, None), ("x", None)]
)
def test_seconds_are_told_in_minutes_and_hours(seconds, said):
    assert facts._seconds(seconds) == said


def test_settings_list_only_the_keys_that_differ(pair):
    assert [(row.name, row.values) for row in settings.differences(pair)] == [("seed", ["1", "2"])]
    assert settings.differences(pair[:1]) == []


def test_nested_settings_become_dotted_keys(pair):
    flat = settings._flat({"a": {"b": {"c": None, "d": []}}, "e": {}, "f": "x", "g": True})
    assert flat == {"a.b.c": "null", "a.b.d": "[]", "e": "{}", "f": "x", "g": "true"}


def test_the_command_is_that_of_compare(pair, monkeypatch):
    monkeypatch.setattr(command, "reproduce_command", lambda config: f"gptask train seed={config['seed']}")
    assert settings.reproduce(pair[1]) == "gptask train seed=2"

    def refuse(config):
        raise UserError("not from a command")

    monkeypatch.setattr(command, "reproduce_command", refuse)
    assert settings.reproduce(pair[1]) == "# not from a command"


def test_metrics_have_the_place_of_their_interval_on_a_bar(pair):
    found = {metric.name: metric for metric in measures.metrics(pair)}
    assert next(iter(found)) == "accuracy"
    value = found["mcc"].values[0]
    assert value.bar[1] == pytest.approx((value.value + 100) / 2)
    assert value.bar[0] <= value.bar[1] <= value.bar[2]
    written = json.loads((pair[0].record.folder / "metrics.json").read_text())["metrics"]["mcc"]
    assert [value.low, value.high] == written["interval"]


@pytest.mark.parametrize("ends", [(0, None), (None, 1), (1, 1)])
def test_a_metric_without_a_range_has_no_bar(ends):
    assert measures.bar(0.1, 0.2, 0.3, *ends) is None
    assert measures.bar(float("nan"), 0.2, 0.3, 0, 1) is None


def test_a_metric_that_one_run_lacks_is_empty_there(pair):
    (metric,) = [measures._metric("x", [None, pair[0].record.metrics["accuracy"]])]
    assert metric.values[0] is None
    assert metric.values[1].n == 40
