"""Confidence bins, and the interval of a share."""

import numpy as np
import pytest
from gptask.analysis.compare.records import read_run
from gptask.analysis.report.calibration import confidence_bins
from gptask.analysis.report.report_run import report_runs

from tests.support.run_folders import hotel_reviews, write_chinese_run, write_review_run


def test_bins_hold_every_prediction(tmp_path):
    (run,), _ = report_runs([read_run(write_review_run(tmp_path / "run", hotel_reviews(200)))])
    bins = confidence_bins(run)
    assert sum(b.n for b in bins) == 200
    assert sum(b.n * b.share for b in bins) == pytest.approx(run.right.sum())
    for b in bins:
        inside = (run.confidence >= b.start) & (run.confidence < b.end)
        assert b.n == inside.sum()
        assert b.confidence == pytest.approx(run.confidence[inside].mean())
        assert b.low <= b.share <= b.high


def test_a_confidence_of_1_is_in_the_last_bin(tmp_path):
    (run,), _ = report_runs([read_run(write_review_run(tmp_path / "run"))])
    run.confidence = np.ones(40)
    assert [(b.start, b.end, b.n) for b in confidence_bins(run)] == [(0.9, 1.0, 40)]


def test_runs_that_have_no_bins_say_why(tmp_path):
    runs, _ = report_runs([read_run(write_review_run(tmp_path / "a")), read_run(write_chinese_run(tmp_path / "b"))])
    runs[0].confidence = None
    assert "not every prediction has a score" in confidence_bins(runs[0])
    assert "right from wrong" in confidence_bins(runs[1])
