"""What a finished run shows of its first predictions."""

import io

import pytest
from gptask.cli.run_summary import _joined, _metrics_table, _short
from rich.console import Console


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["a short\ntext"], "a short text"),
        (["p" * 200], "p" * 19 + "…"),
        (["p" * 200, "why so?"], "p" * 12 + "… | why so?"),
        (["p" * 200, "q" * 200], "p" * 9 + "… | " + "q" * 9 + "…"),
    ],
)
def test_the_longest_inputs_are_cut_and_all_of_them_are_seen(texts, line):
    assert _joined(texts, 20) == line


def test_a_list_is_shown_by_its_members_or_that_there_are_none():
    assert [_short(["toxic", "threat"]), _short([]), _short(""), _short(None)] == ["toxic, threat", "none", "", "None"]


def test_a_metric_without_an_interval_or_a_value_says_why():
    alike = {"value": 100.0, "interval": None, "interval_note": "all examples alike, n = 20", "direction": "higher"}
    metrics = {"mcc": alike, "perplexity": alike | {"value": None, "interval_note": "the value is not a number"}}
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(_metrics_table({"task": "x", "split": "test", "n": 20, "metrics": metrics}))
    text = console.export_text()
    assert "100.00 │ all examples alike, n = 20" in " ".join(text.split())
    assert "not a number" in text
