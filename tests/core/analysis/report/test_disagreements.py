"""Where two runs disagree, whatever the order of their rows."""

import json

import numpy as np
from gptask.analysis.compare.records import read_run
from gptask.analysis.report.disagreements import find_flips, matching_rows
from gptask.analysis.report.report_run import report_runs

from tests.support.run_folders import hotel_reviews, rewrite, write_chinese_run, write_review_run


def runs_of(*folders):
    runs, damaged = report_runs([read_run(folder) for folder in folders])
    assert not damaged
    return runs


def shuffled(folder):
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    rewrite(folder / "predictions.jsonl", "".join(lines[k] + "\n" for k in order))
    return folder


def test_flips_are_counted_and_the_most_confident_come_first(tmp_path):
    reviews = hotel_reviews(100)
    first, other = runs_of(
        write_review_run(tmp_path / "a", reviews, seed=1), shuffled(write_review_run(tmp_path / "b", reviews, seed=2))
    )
    flips = find_flips(first, other)
    after = {row["id"]: right for row, right in zip(other.rows, other.right, strict=True)}
    before = {row["id"]: right for row, right in zip(first.rows, first.right, strict=True)}
    assert flips.by_correctness
    assert flips.better == sum(after[key] and not before[key] for key in before) > 0
    assert flips.worse == sum(before[key] and not after[key] for key in before) > 0
    assert flips.better + flips.worse + flips.same == 100
    assert len(flips.row_pairs) == flips.better + flips.worse
    for (a, b), gain in zip(flips.row_pairs, flips.gains, strict=True):
        assert first.rows[a]["id"] == other.rows[b]["id"]
        assert gain == int(other.right[b]) - int(first.right[a]) != 0
    pairs = zip(flips.row_pairs, flips.gains, strict=True)
    confidences = [other.confidence[b] if gain < 0 else first.confidence[a] for (a, b), gain in pairs]
    assert confidences == sorted(confidences, reverse=True)


def test_the_largest_changes_of_a_metric_come_first(tmp_path):
    first, other = runs_of(write_chinese_run(tmp_path / "a", seed=1), write_chinese_run(tmp_path / "b", seed=2))
    flips = find_flips(first, other)
    assert (flips.by_correctness, flips.metric) == (False, "bleu")
    sizes = [abs(gain) for gain in flips.gains]
    assert sizes == sorted(sizes, reverse=True)
    a, b = flips.row_pairs[0]
    assert flips.gains[0] == other.example_scores["bleu"][b] - first.example_scores["bleu"][a]


def test_a_run_has_no_flips_against_itself(tmp_path):
    (run,) = runs_of(write_review_run(tmp_path / "a"))
    flips = find_flips(run, run)
    assert (flips.better, flips.worse, flips.same, flips.row_pairs) == (0, 0, 40, ())


def test_runs_that_have_no_flips_say_why(tmp_path):
    reviews = hotel_reviews(40)
    first = write_review_run(tmp_path / "a", reviews)
    fewer = write_review_run(tmp_path / "b", reviews[:30])
    doubled = write_review_run(tmp_path / "c", reviews)
    rows = [json.loads(line) for line in (doubled / "predictions.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | {"id": "1", "digest": "0"}) + "\n" for row in rows)
    rewrite(doubled / "predictions.jsonl", text)
    one, two, three, four = runs_of(first, fewer, doubled, write_chinese_run(tmp_path / "d"))
    assert "(30 of 40 are in both)" in matching_rows(one, two)
    assert "have the same id and input" in find_flips(one, three).reason
    assert "different tasks" in find_flips(one, four).reason
