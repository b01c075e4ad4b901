"""`gptask report`: where the page is written, and its refusals."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
from gptask.cli.commands import report as module
from gptask.runs.manifest import write_manifest

from tests.support.run_folders import hotel_reviews, rewrite, write_chinese_run, write_review_run


def test_the_page_of_one_run_lies_in_its_folder(run_command, tmp_path):
    folder = write_review_run(tmp_path / "outputs" / "sentiment" / "a")
    ended = run_command("report", str(folder))
    assert (ended.code, ended.out) == (0, "outputs/sentiment/a/report.html\n")
    assert "<!doctype html>" in (folder / "report.html").read_text()
    assert not list(folder.glob("*.part"))


def test_the_page_of_several_runs_lies_above_them(run_command, tmp_path):
    write_review_run(tmp_path / "outputs" / "sentiment" / "a")
    write_chinese_run(tmp_path / "outputs" / "translation" / "b")
    assert run_command("report", "outputs").out == "outputs/report.html\n"
    assert run_command("report", "outputs", "--task", "sentiment").out == "outputs/sentiment/a/report.html\n"
    assert run_command("report", "outputs/*/*", "--latest", "1", "--output", "page.html").out == "page.html\n"


def test_half_a_surrogate_pair_becomes_a_question_mark(run_command, tmp_path):
    folder = write_review_run(tmp_path / "a")
    text = (folder / "predictions.jsonl").read_text()
    rewrite(folder / "predictions.jsonl", text.replace('"text": "', '"text": "half \\ud800 pair '))
    assert run_command("report", "a").code == 0
    assert "half ? pair" in (folder / "report.html").read_text()


def test_mistakes_are_refused_with_a_reason(refused, tmp_path):
    assert "RUN" in refused("report")
    assert "no run folder at or below nowhere" in refused("report", "nowhere")
    assert "--colour" in refused("report", "a", "--colour")
    write_review_run(tmp_path / "a")
    assert "choose another place" in refused("report", "a", "--output", "missing/page.html")
    assert "Did you mean 'sentiment'?" in refused("report", "a", "--task", "sentimet")
    (tmp_path / "a" / "manifest.json").unlink()
    assert "a: unfinished: no manifest.json" in refused("report", "a")


def test_a_named_run_that_is_not_shown_is_an_error_beside_the_page(run_command, tmp_path):
    for name in "ab":
        write_review_run(tmp_path / "runs" / name, hotel_reviews(5))
    (tmp_path / "runs/b/metrics.json").write_text("{")
    ended = run_command("report", "runs/a", "runs/b")
    assert (ended.code, ended.out) == (2, "runs/report.html\n")
    assert "gptask: not shown: runs/b: damaged: metrics.json has" in ended.err
    assert "restore them from a copy, run them again, or leave them out" in (tmp_path / "runs/report.html").read_text()


def test_too_many_runs_are_refused(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_RUNS", 1)
    for name in "ab":
        write_review_run(tmp_path / name, hotel_reviews(5))
    assert "2 runs are too many" in refused("report", ".")


def test_help_names_the_options(run_command, capsys):
    ended = run_command("report", "--help")
    assert ended.code == 0
    assert "--output FILE" in ended.out


def test_runs_that_share_only_the_root_have_their_page_in_the_current_folder(tmp_path):
    from pathlib import Path

    assert module._page_path(None, [Path("/a/x"), Path("/b/y")]) == Path("report.html")
    assert module._page_path(str(tmp_path), []) == tmp_path / "report.html"


# --- labels that are likely wrong -----------------------------------------------------------------------------------


def write_labelled_run(folder, learned=()):
    """A run whose predictions are sure, and right but for three wrong labels."""
    folder = write_review_run(folder, hotel_reviews(60), skill=20.0)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for row in rows[:3]:
        row["references"]["label"] = next(name for name in row["probabilities"] if name != row["prediction"])
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder, "0" * 16, "train", {"train": np.array(learned, np.int64)})
    return folder, rows


def test_labels_are_written_beside_the_page_and_counted(run_command, tmp_path):
    _, rows = write_labelled_run(tmp_path / "a")
    (tmp_path / "found").mkdir()
    ended = run_command("report", "a", "--labels", "found")
    assert (ended.code, ended.out) == (0, "a/report.html\nfound/label_issues.jsonl\n")
    assert ended.err.startswith("gptask: 3 of 60 labels (5.0%) are likely wrong: ")
    lines = [json.loads(line) for line in (tmp_path / "found/label_issues.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {row["id"] for row in rows[:3]}
    assert "3 of 60 labels (5.0%)" in (tmp_path / "a" / "report.html").read_text()


def test_texts_that_are_no_unicode_or_would_rewrite_the_terminal(run_command, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "report_page", lambda runs, folder, issues: issues.summary)
    folder, rows = write_labelled_run(tmp_path / "a")
    rows[0]["text"] = "half \ud800 pair"
    for row in rows:
        row["references"]["label"] = row["references"]["label"].replace("neutral", "\u001b[2Jneutral")
        row["probabilities"]["\u001b[2Jneutral"] = row["probabilities"].pop("neutral")
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder, "0" * 16, "train", {"train": np.zeros(0, np.int64)})
    ended = run_command("report", "a", "--labels", "issues.jsonl")
    assert ended.code == 0
    assert "\u001b" not in ended.err
    texts = [json.loads(line)["text"] for line in (tmp_path / "issues.jsonl").read_text().splitlines()]
    assert "half \ud800 pair" in texts


def test_files_of_a_run_and_one_file_for_both_are_refused(refused, tmp_path):
    folder, _ = write_labelled_run(tmp_path / "a")
    before = (folder / "predictions.jsonl").read_bytes()
    for option in ("--labels", "--output"):
        for name in ("predictions.jsonl", "metrics.json", "train.log"):
            assert f"a/{name} is a file of the run" in refused("report", "a", option, f"a/{name}")
    assert (folder / "predictions.jsonl").read_bytes() == before
    assert "the same file, same" in refused("report", "a", "--labels", "same", "--output", "same")
    assert "choose another place: --labels FILE" in refused("report", "a", "--labels", "missing/x.jsonl")


def test_files_of_a_run_that_are_links_to_themselves_are_named(run_command, refused, tmp_path):
    folder, _ = write_labelled_run(tmp_path / "a")
    (folder / "train.log").symlink_to("train.log")
    assert run_command("report", "a").code == 0
    (folder / "metrics.json").unlink()
    (folder / "metrics.json").symlink_to("metrics.json")
    assert "metrics.json is missing" in refused("report", "a")


def test_rows_that_were_learned_are_refused_and_nothing_is_written(refused, tmp_path):
    _, rows = write_labelled_run(tmp_path / "a")
    write_labelled_run(tmp_path / "b", learned=[int(row["digest"], 16) - 2**63 for row in rows])
    assert "b: all 60 rows are among those that b has learned" in refused("report", "b", "--labels", "issues.jsonl")
    assert not (tmp_path / "issues.jsonl").exists()
    assert not (tmp_path / "b" / "report.html").exists()


def test_a_damaged_run_beside_has_no_say_in_labels(run_command, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "report_page", lambda runs, folder, issues: issues.summary)
    write_labelled_run(tmp_path / "runs" / "a")
    (write_review_run(tmp_path / "runs" / "b") / "metrics.json").write_text("{")
    ended = run_command("report", "runs", "--labels", "issues.jsonl")
    assert (ended.code, ended.out) == (0, "runs/report.html\nissues.jsonl\n")
    assert "3 of 60 labels" in ended.err
    assert "not shown: runs/b" in ended.err


def noisy_reviews(path, count=600, wrong=30):
    """Write reviews of made-up sentences; return the ids of the rows whose label is wrong."""
    draw = random.Random(0)
    words = {"positive": "good great lovely fine superb happy warm", "negative": "bad awful poor sad cold dull broken"}
    fill = ["the", "film", "was", "and", "with", "some", "actors", "in", "a", "room", "that", "we", "saw", "today"]
    lines, labels = ["text,label"], sorted(words)
    flipped = set(draw.sample(range(count), wrong))
    for number in range(count):
        true = number % 2
        text = draw.choices(fill, k=6) + draw.choices(words[labels[true]].split(), k=3)
        draw.shuffle(text)
        lines.append(f"{' '.join(text)},{labels[1 - true if number in flipped else true]}")
    path.write_text("\n".join(lines) + "\n")
    return {f"{path.name}:{number + 2}" for number in flipped}


@pytest.mark.long
def test_two_halves_find_the_wrong_labels_of_the_training_data(tmp_path):
    wrong = noisy_reviews(tmp_path / "reviews.csv")

    def gptask(*arguments):
        command = [sys.executable, "-m", "gptask", *arguments]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert process.returncode == 0, process.stderr[-2000:]

    options = ("task=sentiment", "backbone=nano", "data=files", "data.train=reviews.csv", "trainer.max_epochs=4")
    for half in (1, 2):
        gptask("train", *options, f"data.half={half}", f"folder=half{half}", "baseline=false")
        gptask("evaluate", f"run=half{half}", "split=train", f"data.half={3 - half}", f"folder=half{half}_on_the_other")
    gptask("evaluate", "run=half1", "split=validation", "folder=half1_on_validation")
    runs = ("half1_on_the_other", "half2_on_the_other", "half1_on_validation", "half1")
    gptask("report", *runs, "--labels", "issues.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "issues.jsonl").read_text().splitlines()]
    found = {line["id"] for line in lines}
    assert len(found & wrong) >= 0.9 * max(len(found), len(wrong))
    assert {f"{line['file']}:{line['row']}" for line in lines} == found
