"""Bins of confidence, and the interval of a share."""

import numpy as np
import pytest
from gptask.analysis.compare.records import read
from gptask.analysis.report.calibration import bins, wilson
from gptask.analysis.report.report_run import entries
from scipy.stats import binomtest

from tests.support.run_folders import hotel_reviews, write_chinese_run, write_review_run


def test_bins_hold_every_prediction(tmp_path):
    (entry,), _ = entries([read(write_review_run(tmp_path / "run", hotel_reviews(200)))])
    found = bins(entry)
    assert sum(b.n for b in found) == 200
    assert sum(b.n * b.share for b in found) == pytest.approx(entry.right.sum())
    for b in found:
        inside = (entry.confidence >= b.start) & (entry.confidence < b.end)
        assert b.n == inside.sum()
        assert b.confidence == pytest.approx(entry.confidence[inside].mean())
        assert b.low <= b.share <= b.high


def test_full_confidence_is_in_the_last_bin(tmp_path):
    (entry,), _ = entries([read(write_review_run(tmp_path / "run"))])
    entry.confidence = np.ones(40)
    assert [(b.start, b.end, b.n) for b in bins(entry)] == [(0.9, 1.0, 40)]


def test_runs_that_have_no_bins_say_why(tmp_path):
    good, _ = entries([read(write_review_run(tmp_path / "a")), read(write_chinese_run(tmp_path / "b"))])
    good[0].confidence = None
    assert "no scores" in bins(good[0])
    assert "right from wrong" in bins(good[1])


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (3, 10), (900, 1000)])
def test_wilson_agrees_with_scipy(hits, n):
    expected = binomtest(hits, n).proportion_ci(0.95, "wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
