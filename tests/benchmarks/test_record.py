"""Figures are added to the record from run folders and bench files, and its tables are rendered from them."""

import importlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from gptask.cli import main

from tests.support import run_folders

ROOT = Path(__file__).parents[2]
COMMIT = "cda03f3a420dad87397161ba36d739e8c30266b1"
MACHINE = {"processor": "P", "cores": 2, "threads": 2, "bf16_peak_gflops": 900, "fp32_peak_gflops": 200}
BENCH = {
    "tier": "full",
    "machine": MACHINE,
    "commit": COMMIT,
    "date": "2026-11-28_17-00-00",
    "command": "python tests/benchmarks/bench.py --tier full inference",
}
ROW = {
    "id": "classification",
    "measure": "classification, SST-2",
    "unit": "examples/s",
    "ours": [60.0, 64.0],
    "reference": [40.0, 40.0],
    "against": "pipeline()",
    "lower": False,
    "quality": [90.04, 90.0],
    "shares": [0.517, None],
    "note": "",
    "extra": {},
    "ratio": 1.55,
    "counts": True,
}


@pytest.fixture
def record(monkeypatch):
    for folder in ("docs", "tests/benchmarks"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    module = importlib.import_module("record")
    monkeypatch.setattr(module, "machine", lambda: MACHINE)
    return module


@pytest.fixture
def add(record, tmp_path):
    """Call record.py on a record of the test's own; return it as plain values."""
    file = tmp_path / "results.json"
    file.write_text('{"results": [], "speed": [], "bounds": [], "compression": []}')

    def call(*arguments):
        assert record.main([*map(str, arguments), "--file", str(file)]) == 0
        return json.loads(file.read_text(encoding="utf-8"))

    call.file = file
    return call


@pytest.fixture
def refuse(record, add, capsys):
    """Call record.py with what it refuses; return the error, after which the record is as it was."""

    def call(*arguments):
        before = add.file.read_bytes()
        capsys.readouterr()
        assert record.main([*map(str, arguments), "--file", str(add.file)]) == 2
        assert add.file.read_bytes() == before
        return capsys.readouterr().err

    return call


def write_bench(tmp_path, *rows, **values):
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(BENCH | {"results": [ROW | row for row in rows]} | values))
    return file


# --- run folders --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(sentiment_run, monkeypatch):
    """A run folder that this command line started."""

    def make(name, command="gptask train experiment=sst2 folder=outputs/a", right=0.9):
        folder = sentiment_run(name, right)
        file = folder / "config.yaml"
        run_folders.rewrite(file, file.read_text().replace("command: null", f"command: {json.dumps(command)}"))
        return folder

    return make


def test_a_run_folder_becomes_an_entry_with_all_that_repeats_it(add, run):
    folder = run("a", "gptask train experiment=sst2 tuning=lora 'task.prompt=a b' folder=outputs/a data.root=/data")
    (entry,) = add(folder, "--data", "SST-2", "--note", "all layers")["results"]
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    low, high = metrics["accuracy"]["interval"]
    assert entry["id"] == "sst2_lora_a_b"
    assert entry["command"] == "gptask train experiment=sst2 tuning=lora 'task.prompt=a b'"
    assert entry["commit"] == COMMIT
    assert entry["machine"] == {name: value for name, value in MACHINE.items() if name != "threads"}
    assert (entry["task"], entry["data"], entry["note"]) == ("sentiment", "SST-2", "all layers")
    assert (entry["seed"], entry["n"], entry["wall_seconds"]) == (13, 500, 137.6)
    assert entry["main_metric"] == "accuracy"
    assert set(entry["metrics"]) == set(metrics)
    value = round(metrics["accuracy"]["value"], 2)
    assert entry["metrics"]["accuracy"] == {"value": value, "low": round(low, 2), "high": round(high, 2)}


def test_the_same_command_replaces_its_entry_and_keeps_what_people_named(add, run):
    add(run("a"), "--data", "SST-2", "--id", "best", "--note", "first", "--wall", "7:56")
    (entry,) = add(run("b", right=0.5), "--wall", "90")["results"]
    assert (entry["id"], entry["data"], entry["note"], entry["wall_seconds"]) == ("best", "SST-2", "first", 90)
    assert entry["metrics"]["accuracy"]["value"] < 60


def test_entries_are_sorted_by_id(add, run):
    add(run("a"), "--data", "SST-2", "--id", "b")
    content = add(run("b", "gptask train experiment=trec"), "--data", "TREC", "--id", "a")
    assert [entry["id"] for entry in content["results"]] == ["a", "b"]


def test_a_run_from_python_gets_the_command_of_its_config(add, sentiment_run):
    (entry,) = add(sentiment_run("a", 0.9), "--data", "made up")["results"]
    assert entry["command"].startswith("gptask train task=sentiment")


def test_a_run_that_cannot_be_recorded_is_refused_with_the_reason(refuse, run, tmp_path):
    assert '--data "SST-2"' in refuse(run("a"))
    assert "no run folder at" in refuse(tmp_path / "missing", "--data", "SST-2")
    unfinished = run("b")
    (unfinished / "manifest.json").unlink()
    assert "is unfinished" in refuse(unfinished, "--data", "SST-2")
    changed = run("c")
    (changed / "metrics.json").write_text("{}")
    assert "metrics.json has" in refuse(changed, "--data", "SST-2")


def test_a_resumed_run_needs_its_time(add, refuse, run):
    folder = run("a")
    file = folder / "config.yaml"
    run_folders.rewrite(file, file.read_text().replace("resume: null", "resume: outputs/a"))
    assert "--wall 7:56" in refuse(folder, "--data", "SST-2")
    (entry,) = add(folder, "--data", "SST-2", "--wall", "1:00")["results"]
    assert entry["wall_seconds"] == 60


def test_a_task_of_several_needs_an_id_and_the_run_of_all_is_refused(add, refuse, run, tmp_path):
    folder = run("a")
    file = folder / "config.yaml"
    run_folders.rewrite(file, file.read_text() + "task_name: mood\n")
    assert "give --id" in refuse(folder, "--data", "SST-2")
    assert [entry["id"] for entry in add(folder, "--data", "SST-2", "--id", "mood")["results"]] == ["mood"]
    run_folders.rewrite(file, file.read_text() + "tasks: {mood: {}}\n")
    assert "run of several tasks: mood" in refuse(folder, "--data", "SST-2")


def test_a_run_outside_a_checkout_is_refused(refuse, sentiment_run):
    assert "no commit" in refuse(sentiment_run("a", 0.9, result={"git_commit": None}), "--data", "SST-2")


# --- bench files --------------------------------------------------------------------------------------------------


def test_a_bench_file_becomes_an_entry_a_comparison(add, tmp_path):
    content = add(write_bench(tmp_path, {}, {"id": "memory", "lower": True, "quality": None, "shares": [None, None]}))
    classification, memory = content["speed"]
    assert classification["sides"][0] == {
        "name": "gptask",
        "values": [60.0, 64.0],
        "quality": 90.04,
        "matrix_peak_share": 0.517,
        "note": "",
    }
    assert classification["sides"][1]["name"] == "pipeline()"
    assert "ratio" not in classification
    assert (classification["commit"], classification["date"]) == (COMMIT, "2026-11-28")
    assert memory["lower_is_better"] is True


def test_a_file_of_the_quick_tier_or_of_another_program_is_refused(refuse, tmp_path):
    assert "quick tier" in refuse(write_bench(tmp_path, {}, tier="quick"))
    assert "not a file that bench.py writes: KeyError('id')" in refuse(
        write_bench(tmp_path, results=[{name: value for name, value in ROW.items() if name != "id"}])
    )
    assert "with a value in every round" in refuse(write_bench(tmp_path, {"ours": [1.0]}))
    (tmp_path / "broken.json").write_text("{")
    assert "not a file that bench.py writes" in refuse(tmp_path / "broken.json")
    assert "No such file" in refuse(tmp_path / "none.json")


def test_a_record_that_is_not_there_is_an_error_without_a_stack_trace(record, tmp_path, capsys):
    assert record.main([str(write_bench(tmp_path, {})), "--file", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_the_report_of_the_harness_can_be_recorded(add, tmp_path, monkeypatch):
    harness = importlib.import_module("harness")
    monkeypatch.setattr(harness, "machine", lambda: MACHINE)
    result = harness.Result(
        id="start", measure="start", unit="s", ours=[2.0], reference=[5.0], against="Trainer", lower=True
    )
    page = harness.report([result], harness.FULL, tmp_path / "bench")
    (entry,) = add(page.with_suffix(".json"))["speed"]
    assert entry["id"] == "start"


# --- the tables ---------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(record):
    return importlib.import_module("figures")


@pytest.fixture
def result(record):
    values = {"id": "a", "command": "gptask train experiment=a", "commit": COMMIT, "date": "2026-11-28", "seed": 13}
    values |= {"task": "token_tagging", "data": "A", "main_metric": "f1", "n": 1200, "wall_seconds": 59.7, "note": ""}
    values |= {"metrics": {"f1": {"value": 75.04, "low": 70.0, "high": 80.0}}}
    values["machine"] = {"processor": "P", "cores": 2, "bf16_peak_gflops": 900, "fp32_peak_gflops": None}
    return record.results_file.result_from(values)


def test_a_table_of_results_names_what_all_entries_share_once(figures, record, result):
    other = replace(result, id="b", task="qa", data="B", note="no training", wall_seconds=None, command="a | b")
    table = figures.results_table(record.Record({"a": result, "b": other}), ["a", "b"])
    assert table.splitlines()[2:] == [
        "| token tagging | A | f1 75.0 (70.0 to 80.0), n = 1,200 | 1:00 | `gptask train experiment=a` |",
        "| qa | B (no training) | f1 75.0 (70.0 to 80.0), n = 1,200 |  | `a \\| b` |",
        "",
        "Measured on 2026-11-28, commit cda03f3, on 2 cores of P (matrix peak in GFLOP/s: 900 in bfloat16).",
    ]


def test_a_table_of_all_results_is_grouped_by_task_and_leaves_differences_to_the_file(figures, record, result):
    machine = replace(result.machine, bf16_peak_gflops=400)
    other = replace(result, id="b", task="qa", commit="0" * 40, date="2026-11-27", machine=machine)
    table = figures.results_table(record.Record({"a": result, "b": other}))
    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == ["| qa", "| token tagging"]
    assert "from 2026-11-27 to 2026-11-28, on 2 cores of P (matrix peak in GFLOP/s: 400 to 900 in bfloat16)" in table
    assert "cda03f3" not in table


@pytest.mark.parametrize(
    ("score", "text"),
    [((2.35, 2.26, 2.43), "2.35 (2.26 to 2.43)"), ((0.8, 0.4, 1.2), "0.8 (0.4 to 1.2)"), ((54.3,), "54.3")],
)
def test_an_interval_has_the_digits_of_its_value(figures, record, score, text):
    assert figures._score(record.Score(*score)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.25, "1.2"), (1.96, "2.0"), (9.96, "10"), (0.604, "0.60"), (182.3, "180"), (5.0, "5.0")]
)
def test_a_ratio_has_two_significant_digits(figures, value, text):
    assert figures._two_digits(value) == text


def test_a_ratio_with_worse_quality_is_marked(figures, record, tmp_path):
    worse = {"id": "worse", "quality": [80.0, 90.0]}
    faster = {"id": "time", "ours": [2.0, 4.0], "reference": [5.0, 5.0], "lower": True, "quality": None}
    comparisons = record.comparisons(write_bench(tmp_path, {}, worse, faster))
    table = figures.speed_table(record.Record({}, {one.id: one for one in comparisons}))
    good, seconds, bad = table.splitlines()[2:5]
    start = "| classification, SST-2, examples/s | pipeline() | 62.0 (60.0 to 64.0) | 40.0 (40.0 to 40.0) "
    assert good == start + "| **1.6×** | 52% / – | 90.0 / 90.0 |"
    assert bad == start + "| (1.6×, with worse quality) | 52% / – | 80.0 / 90.0 |"
    assert "| **1.9×** | 52% / – |  |" in seconds


def test_an_unknown_id_is_an_error_with_similar_ones(figures, record, result):
    with pytest.raises(ValueError, match="no 'aa'; similar: a"):
        figures.results_table(record.Record({"a": result}), ["aa"])


# --- the committed record -----------------------------------------------------------------------------------------


def test_the_committed_record_is_as_record_py_would_write_it(record, tmp_path):
    content = record.results_file.load()
    assert content.results
    record.results_file.save(content, tmp_path / "results.json")
    committed = record.results_file.FILE.read_text(encoding="utf-8")
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == committed


def test_every_recorded_command_composes_or_is_a_program_of_the_benchmarks(record, capsys):
    content = record.results_file.load()
    for command in {
        entry.command for entry in [*content.results.values(), *content.speed.values(), *content.bounds.values()]
    }:
        program, *words = shlex.split(command)
        if program != "gptask":
            assert (program, (ROOT / words[0]).is_file()) == ("python", True), command
            continue
        with pytest.raises(SystemExit) as stop:
            main([*words, "--cfg", "job"])
        assert stop.value.code == 0, command
    assert "task:" in capsys.readouterr().out


def test_an_entry_that_does_not_fit_is_named(record, add):
    add.file.write_text('{"results": [{"id": "a", "metric": {}}], "speed": [], "bounds": [], "compression": []}')
    with pytest.raises(ValueError, match="entry 'a'"):
        record.results_file.load(add.file)
