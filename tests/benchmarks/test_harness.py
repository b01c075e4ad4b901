"""Ratios of a benchmark's report follow their direction, and none counts with a worse result."""

import json

import pytest
from gptask.runs.provenance import git_commit

from tests.benchmarks import harness
from tests.benchmarks.harness import Result, alternate, report


def test_a_ratio_above_one_is_better_in_either_direction():
    assert Result("s", "speed", "tokens/s", [8.0, 6.0, 4.0], [2.0, 2.0, 2.0], "Trainer").ratio == 3.0
    assert Result("t", "time", "s", [2.0], [5.0], "Trainer", lower=True).ratio == 2.5


@pytest.mark.parametrize(("quality", "counts"), [(None, True), ((90.0, 90.0), True), ((89.9, 90.0), False)])
def test_a_ratio_counts_only_with_as_good_a_result(quality, counts):
    result = Result("s", "speed", "tokens/s", [8.0], [2.0], "Trainer", quality=quality)
    assert result.counts is counts
    assert ("**4.00×**" in result.row()) is counts


def test_sides_take_turns_and_the_first_round_is_not_counted():
    order = []
    sides = {name: (lambda name=name: order.append(name) or 1.0) for name in ("a", "b")}
    rates = alternate(sides, 2, lambda: order.append("check"))
    assert order == ["a", "b", "check", "a", "b", "a", "b"]
    assert [len(rates[name]) for name in "ab"] == [2, 2]


def test_the_report_has_values_machine_and_shares(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "machine", lambda: {"processor": "P", "bf16_peak_gflops": 400})
    page = report(
        [Result("s", "speed", "tokens/s", [8.0, 9.0], [2.0, 3.0], "Trainer", shares=(0.5, 0.25))], "quick", tmp_path
    )
    assert "processor P, bf16_peak_gflops 400" in page.read_text()
    assert "| speed | Trainer | 8.5 (8 to 9) | 2.5 (2 to 3) | tokens/s | **3.50×** |  | 50% / 25% |" in page.read_text()
    content = json.loads(page.with_suffix(".json").read_text())
    assert content["commit"] == git_commit()
    (row,) = content["results"]
    assert row["ratio"] == 3.5
    assert row["counts"] is True
