"""`gptask report`: where the page is written, and its refusals."""

from gptask.cli.commands import report as module

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
