"""Where two runs part, whatever the order of their rows."""

import json

import numpy as np
from gptask.analysis.compare.records import read
from gptask.analysis.report.disagreements import flips, matched
from gptask.analysis.report.report_run import entries

from tests.support.run_folders import hotel_reviews, write_chinese_run, write_review_run


def pair(*folders):
    good, bad = entries([read(folder) for folder in folders])
    assert not bad
    return good


def shuffled(folder):
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    (folder / "predictions.jsonl").write_text("".join(lines[k] + "\n" for k in order))
    return folder


def test_flips_are_counted_and_the_most_confident_come_first(tmp_path):
    reviews = hotel_reviews(100)
    first, other = pair(
        write_review_run(tmp_path / "a", reviews, seed=1), shuffled(write_review_run(tmp_path / "b", reviews, seed=2))
    )
    found = flips(first, other)
    right = {row["id"]: good for row, good in zip(other.rows, other.right, strict=True)}
    ours = {row["id"]: good for row, good in zip(first.rows, first.right, strict=True)}
    assert found.judged
    assert found.better == sum(right[key] and not ours[key] for key in ours) > 0
    assert found.worse == sum(ours[key] and not right[key] for key in ours) > 0
    assert found.better + found.worse + found.same == 100
    assert len(found.pairs) == found.better + found.worse
    for (a, b), gain in zip(found.pairs, found.gains, strict=True):
        assert first.rows[a]["id"] == other.rows[b]["id"]
        assert gain == int(other.right[b]) - int(first.right[a]) != 0
    pairs = zip(found.pairs, found.gains, strict=True)
    sure = [other.confidence[b] if gain < 0 else first.confidence[a] for (a, b), gain in pairs]
    assert sure == sorted(sure, reverse=True)


def test_the_largest_changes_of_a_score_come_first(tmp_path):
    first, other = pair(write_chinese_run(tmp_path / "a", seed=1), write_chinese_run(tmp_path / "b", seed=2))
    found = flips(first, other)
    assert (found.judged, found.metric) == (False, "bleu")
    sizes = [abs(gain) for gain in found.gains]
    assert sizes == sorted(sizes, reverse=True)
    a, b = found.pairs[0]
    assert found.gains[0] == other.alone["bleu"][b] - first.alone["bleu"][a]


def test_a_run_has_no_flips_against_itself(tmp_path):
    (entry,) = pair(write_review_run(tmp_path / "a"))
    found = flips(entry, entry)
    assert (found.better, found.worse, found.same, found.pairs) == (0, 0, 40, ())


def test_runs_that_have_no_flips_say_why(tmp_path):
    reviews = hotel_reviews(40)
    first = write_review_run(tmp_path / "a", reviews)
    fewer = write_review_run(tmp_path / "b", reviews[:30])
    doubled = write_review_run(tmp_path / "c", reviews)
    rows = [json.loads(line) for line in (doubled / "predictions.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | {"id": "1", "digest": "0"}) + "\n" for row in rows)
    (doubled / "predictions.jsonl").write_text(text)
    one, two, three, four = pair(first, fewer, doubled, write_chinese_run(tmp_path / "d"))
    assert "(30 of 40 are common)" in matched(one, two)
    assert "not told apart" in flips(one, three).reason
    assert "different tasks" in flips(one, four).reason
