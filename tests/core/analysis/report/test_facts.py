"""Facts, metrics and settings, side by side."""

import json

import pytest
from gptask.analysis.compare.records import read_run
from gptask.analysis.report import facts, measures, settings
from gptask.analysis.report.report_run import report_runs
from gptask.errors import UserError

from tests.support.run_folders import write_review_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return report_runs([read_run(write_review_run(root / f"{k}", seed=k)) for k in (1, 2)])[0]


def test_a_fact_says_whether_all_runs_share_it(runs):
    rows = {row.name: row for row in facts.run_facts(runs)}
    assert rows["seed"].values == ["1", "2"]
    assert not rows["seed"].same
    assert rows["backbone"].same
    assert rows["tuning"].values[0] == "lora: 16"


def test_a_fact_says_how_many_test_examples_the_run_was_trained_or_selected_on(runs):
    assert "examples seen before" not in {row.name for row in facts.run_facts(runs)}
    known = {"overlap": {"train": 34, "validation": 2}}
    assert facts.FACTS["examples seen before"]({}, known) == "train 34, validation 2"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(3.14, "3.1 s"), (125, "2 min 05 s"), (7260, "2 h 01 min"), (None, None), ("x", None)]
)
def test_a_duration_is_shown_in_seconds_minutes_or_hours(seconds, shown):
    assert facts._duration(seconds) == shown


def test_only_the_config_keys_that_differ_are_listed(runs):
    assert [(row.name, row.values) for row in settings.config_differences(runs)] == [("seed", ["1", "2"])]
    assert settings.config_differences(runs[:1]) == []


def test_nested_config_keys_are_dotted(runs):
    flat = settings._flatten({"a": {"b": {"c": None, "d": []}}, "e": {}, "f": "x", "g": True})
    assert flat == {"a.b.c": "null", "a.b.d": "[]", "e": "{}", "f": "x", "g": "true"}


def test_the_command_is_shown_or_why_there_is_none(runs, monkeypatch):
    monkeypatch.setattr(settings, "reproduce_command", lambda config: f"gptask train seed={config['seed']}")
    assert settings.reproduce(runs[1]) == "gptask train seed=2"

    def refuse(config):
        raise UserError("not from a command")

    monkeypatch.setattr(settings, "reproduce_command", refuse)
    assert settings.reproduce(runs[1]) == "# not from a command"


def test_a_metric_has_the_position_of_its_interval_on_a_bar(runs):
    metrics = {metric.name: metric for metric in measures.metric_rows(runs)}
    assert next(iter(metrics)) == "accuracy"
    value = metrics["mcc"].values[0]
    assert value.bar[1] == pytest.approx((value.value + 100) / 2)
    assert value.bar[0] <= value.bar[1] <= value.bar[2]
    written = json.loads((runs[0].record.folder / "metrics.json").read_text())["metrics"]["mcc"]
    assert value.interval == "{:.2f} to {:.2f}".format(*written["interval"])


def test_a_metric_without_an_interval_or_a_value_has_no_bar(runs):
    entry = runs[0].record.metrics["mcc"] | {"interval": None, "interval_note": "all examples alike, n = 40"}
    (value,) = measures._metric_row("mcc", [entry]).values
    assert (value.interval, value.bar) == ("all examples alike, n = 40", None)
    (value,) = measures._metric_row("mcc", [entry | {"value": None, "interval": [0, 1]}]).values
    assert value.bar is None


@pytest.mark.parametrize("ends", [(0, None), (None, 1), (1, 1)])
def test_a_metric_without_a_range_has_no_bar(ends):
    assert measures.bar((0.1, 0.3), 0.2, *ends) is None
    assert measures.bar((float("nan"), 0.3), 0.2, 0, 1) is None


def test_a_metric_that_one_run_lacks_is_empty_there(runs):
    (metric,) = [measures._metric_row("x", [None, runs[0].record.metrics["accuracy"]])]
    assert metric.values[0] is None
    assert metric.values[1].n == 40
