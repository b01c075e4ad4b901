"""`gptask report`: where the page is written, and its refusals."""

from gptask.cli.commands import report as module

from tests.core.analysis.report import made


def test_the_page_of_one_run_is_written_into_its_folder(run, tmp_path):
    folder = made.sentiment(tmp_path / "outputs" / "sentiment" / "a")
    ended = run("report", str(folder))
    assert (ended.code, ended.out) == (0, "outputs/sentiment/a/report.html\n")
    assert "<!doctype html>" in (folder / "report.html").read_text()
    assert not list(folder.glob("*.part"))


def test_the_page_of_several_runs_is_written_above_them(run, tmp_path):
    made.sentiment(tmp_path / "outputs" / "sentiment" / "a")
    made.translation(tmp_path / "outputs" / "translation" / "b")
    assert run("report", "outputs").out == "outputs/report.html\n"
    assert run("report", "outputs", "--task", "sentiment").out == "outputs/sentiment/a/report.html\n"
    assert run("report", "outputs/*/*", "--latest", "1", "--output", "page.html").out == "page.html\n"


def test_half_a_surrogate_pair_becomes_a_question_mark(run, tmp_path):
    folder = made.sentiment(tmp_path / "a")
    text = (folder / "predictions.jsonl").read_text()
    (folder / "predictions.jsonl").write_text(text.replace('"text": "', '"text": "half \\ud800 pair '))
    assert run("report", "a").code == 0
    assert "half ? pair" in (folder / "report.html").read_text()


def test_invalid_arguments_are_refused(refused, tmp_path):
    assert "RUN" in refused("report")
    assert "no run folder at or below nowhere" in refused("report", "nowhere")
    assert "--colour" in refused("report", "a", "--colour")
    made.sentiment(tmp_path / "a")
    assert "choose another place" in refused("report", "a", "--output", "missing/page.html")
    assert "Did you mean 'sentiment'?" in refused("report", "a", "--task", "sentimet")
    (tmp_path / "a" / "metrics.json").unlink()
    assert "a: unfinished: no metrics.json" in refused("report", "a")


def test_too_many_runs_are_refused(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_RUNS", 1)
    for name in "ab":
        made.sentiment(tmp_path / name, made.reviews(5))
    assert "2 runs are too many" in refused("report", ".")


def test_help_lists_the_options(run, capsys):
    ended = run("report", "--help")
    assert ended.code == 0
    assert "--output FILE" in ended.out


def test_the_page_is_never_written_into_the_root(tmp_path):
    from pathlib import Path

    assert module._page_path(None, [Path("/a/x"), Path("/b/y")]) == Path("report.html")
    assert module._page_path(str(tmp_path), []) == tmp_path / "report.html"
