"""A page in a run folder is linked by the report only where it explains these weights."""

from html.parser import HTMLParser
from pathlib import Path

from gptask.analysis.compare.records import find_runs
from gptask.analysis.explain.explain_page import explain_page
from gptask.analysis.explain.page_of_run import EXPLAIN_PAGE, page_of_run
from gptask.analysis.report.page import report_page
from gptask.runs.atomic_write import write_text
from gptask.runs.manifest import read_manifest
from gptask.runs.prediction_identity import run_digest

from tests.support.explanations import FAITHFUL, classified
from tests.support.run_folders import hotel_reviews, seal, write_review_run


def explain(folder):
    digest = run_digest(folder)
    options = {"method": "ig", "run": str(folder), "run_digest": digest}
    write_text(folder / EXPLAIN_PAGE, explain_page([classified("a b c d")], FAITHFUL, **options))


def links(html):
    targets = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag == "a":
                targets.append(dict(attributes)["href"])

    Reader().feed(html)
    return [target for target in targets if not target.startswith("#")]


def test_each_run_of_a_report_has_its_own_link_unless_its_page_is_of_other_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a #1", "b", "without", "changed"]
    folders = [write_review_run(Path("runs") / name, hotel_reviews(4), seed=n) for n, name in enumerate(names)]
    for folder in (folders[0], folders[1], folders[3]):
        explain(folder)
        assert page_of_run(folder) == (folder / EXPLAIN_PAGE, "")
        read_manifest(folder).verify()  # the run is as it was
    (folders[3] / "config.yaml").write_text((folders[3] / "config.yaml").read_text() + "\n")
    seal(folders[3])  # it is written again
    html = report_page(find_runs(["runs"]), tmp_path)
    assert links(html) == ["runs/a%20%231/explain.html", "runs/b/explain.html"]
    assert "runs/changed/explain.html is not linked: it explains another run, or other weights" in html


def test_a_report_beside_the_page_links_it_by_name(run_command, tmp_path):
    folder = write_review_run(tmp_path / "run", hotel_reviews(4))
    explain(folder)
    assert run_command("report", "run").code == 0
    assert links((folder / "report.html").read_text()) == ["explain.html"]


def test_what_gptask_explain_did_not_write_is_no_page_of_the_run(tmp_path):
    folder = write_review_run(tmp_path / "run", hotel_reviews(4))
    assert page_of_run(folder) == (None, "")
    (folder / EXPLAIN_PAGE).write_text("mine")
    assert page_of_run(folder) == (folder / EXPLAIN_PAGE, "it was not written by gptask explain")
    (folder / EXPLAIN_PAGE).unlink()
    (folder / EXPLAIN_PAGE).mkdir()
    assert page_of_run(folder) == (None, "")
