"""`gptask explain input=worst` writes a page on the run's own test examples into the run folder."""

import json
import re
import shutil

import pytest
from gptask.analysis.explain.explain_file import explain_file
from gptask.analysis.explain.explanation import Explanation
from gptask.analysis.explain.page_of_run import EXPLAIN_PAGE, page_of_run
from gptask.config.schemas import Lora
from gptask.runs.manifest import read_manifest
from gptask_tasks.sentiment import Sentiment

from tests.support.run_folders import TWO_LABELS, seal, write_run

TEXTS = ["a good film", "a bad film", "the quick fox is not so bad", "the lazy dog", "is it good?", "good </script>"]


@pytest.fixture(scope="module")
def finished(random_run, tmp_path_factory):
    """A run with its model and with its predictions, half of which are wrong."""
    run = random_run(Sentiment(labels=TWO_LABELS), "llama", Lora(rank=2, top=1.0))
    predictions = [*run.predict([{"text": text} for text in TEXTS])]
    labels = [TWO_LABELS[(TWO_LABELS.index(p.value) + n) % 2] for n, p in enumerate(predictions)]
    examples = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    folder = write_run(tmp_path_factory.mktemp("finished") / "run", run.task, examples, predictions)
    shutil.copy(run.folder / "config.yaml", folder)
    shutil.copytree(run.folder / "model", folder / "model")
    return seal(folder)


@pytest.fixture
def explain(run_command):
    """``explain("input=worst")``: a command line that is carried out."""

    def call(*overrides):
        ended = run_command("explain", *overrides, action=explain_file)
        assert ended.code == 0, ended.err

    return call


def explanations(page):
    lines = re.search(r'id="explanations">\n(.*?)\n</script>', page.read_text(encoding="utf-8"), re.DOTALL)[1]
    return [Explanation.from_json(line) for line in lines.split("\n")]


def test_the_worst_are_explained_in_the_run_folder(finished, explain, run_command):
    explain(f"run={finished}", "input=worst", "steps=16", "examples=2")
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").open(encoding="utf-8")]
    wrong = sorted((r for r in rows if r["prediction"] != r["references"]["label"]), key=lambda r: -r["score"])
    shown = explanations(finished / EXPLAIN_PAGE)
    assert [explanation.id for explanation in shown] == [row["id"] for row in wrong[:2]]
    for explanation, row in zip(shown, wrong, strict=False):
        assert explanation.prediction == row["prediction"]
        assert explanation.reference == row["references"]["label"]
        assert explanation.probabilities == pytest.approx(row["probabilities"], abs=1e-4)
        assert {entry.target for entry in explanation.maps} == {*TWO_LABELS}
    page = (finished / EXPLAIN_PAGE).read_text(encoding="utf-8")
    assert "2 texts: wrong predictions, the most confident first; the first 2 of 3" in page
    assert page_of_run(finished) == (finished / EXPLAIN_PAGE, "")
    read_manifest(finished).verify()
    assert not [*finished.glob("*.part*"), *finished.glob("*.page")]
    run_command("report", str(finished))
    assert f'href="{EXPLAIN_PAGE}"' in (finished / "report.html").read_text(encoding="utf-8")


def test_a_page_of_attention_has_its_heads(finished, explain, tmp_path):
    output = tmp_path / "why.html"
    explain(f"run={finished}", "input=surprising", "method=attention", f"output={output}")
    page = output.read_text(encoding="utf-8")
    assert page.count('id="attention-') == len(TEXTS)
    assert "the lowest probability of the reference first" in page
    assert "Attention is not a reason" in page


def test_a_file_becomes_a_page_or_lines(finished, explain, tmp_path):
    (tmp_path / "in.txt").write_text("a good film\nthe lazy dog\n", encoding="utf-8")
    for name in ("why.html", "why.jsonl"):
        explain(f"run={finished}", f"input={tmp_path}/in.txt", f"output={tmp_path}/{name}", "method=occlusion")
    shown = explanations(tmp_path / "why.html")
    assert [explanation.fields["text"] for explanation in shown] == ["a good film", "the lazy dog"]
    lines = (tmp_path / "why.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Explanation.from_json(line).maps for line in lines[:2]] == [explanation.maps for explanation in shown]


def test_mistakes_are_refused(finished, run_command):
    for override, message in [("examples=0", "examples=0 must be at least 1"), ("output=why.txt", ".html and .jsonl")]:
        ended = run_command("explain", f"run={finished}", "input=worst", override, action=explain_file)
        assert ended.code == 2
        assert message in ended.err
