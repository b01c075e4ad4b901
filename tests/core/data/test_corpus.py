"""The splits of a run: how they are read, cut, limited, cached and counted, and which errors there are."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gptask.config.schemas import BadRowPolicy, Data, Files, Hub, Limit, Sample
from gptask.data import corpus as corpora
from gptask.data.corpus import CachedCorpus
from gptask.data.examples import ExampleReader, Examples
from gptask.errors import DataError, UserError
from gptask.plugins.task import Task
from gptask_tasks.classification import Classification
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation


def corpus(task: Task | None = None, seed: int = 13, **options: object) -> CachedCorpus:
    return CachedCorpus(task or Classification(), Files(**options), seed)


def texts(examples: Examples, name: str = "text") -> list[str]:
    return [example[name] for example in examples]


def jsonl(n: int, repeats: int = 1) -> str:
    rows = [{"text": f"text {k}", "label": "ab"[k % 2]} for k in range(n)] * repeats
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- files ------------------------------------------------------------------------------------------------------


def test_several_files_are_read_one_after_another(write_file: Callable, logged: list) -> None:
    names = [write_file("a.jsonl", jsonl(2)), write_file("b.csv", "text,label\nlast,a\n")]
    train = corpus(train=names, test=names[1], validation=names[1]).split("train")
    assert texts(train) == ["text 0", "text 1", "last"]
    assert [example["id"] for example in train] == ["a.jsonl:1", "a.jsonl:2", "b.csv:2"]
    assert any(line.startswith(f"INFO train: 2 rows of {names[0]} (sha256 ") for line in logged)
    assert any(line.startswith(f"INFO train: 1 rows of {names[1]} (sha256 ") for line in logged)


def test_rows_of_a_file_cached_under_another_path_are_counted(tmp_path: Path, logged: list) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        name = tmp_path / folder / "same.jsonl"
        name.write_text(jsonl(3))
        corpus(train=str(name)).split("train")
        assert any(line.startswith(f"INFO train: 3 rows of {name} ") for line in logged)


def test_parts_of_one_json_file_have_their_own_ids_and_counts(write_file: Callable, logged: list) -> None:
    name = write_file("all.json", json.dumps({"train": [["a b", "x"], ["c", "y"]], "more": [["d", "oos"]]}))
    parts = [f"{name}#train", f"{name}#more"]
    train = corpus(train=parts, test=parts[1], validation=parts[1], columns={"text": 0, "label": 1}).split("train")
    assert [e["label"] for e in train] == ["x", "y", "oos"]
    assert [e["id"] for e in train] == ["all.json#train record 1", "all.json#train record 2", "all.json#more record 1"]
    assert any(f"1 rows of {parts[1]} " in line for line in logged)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_parallel_files_are_joined_by_line(write_file: Callable, suffix: str) -> None:
    source = write_file(f"a.de{suffix}", "eins\nzwei\tTeile\n\ufeffdrei\n")
    target = write_file(f"a.en{suffix}", 'one\n"two" parts\nthree')
    pair = {"source": source, "target": target}
    train = corpus(Translation(), train=pair, test=pair, validation=pair).split("train")
    assert [(e["source"], e["target"]) for e in train] == [
        ("eins", ["one"]),
        ("zwei\tTeile", ['"two" parts']),
        ("\ufeffdrei", ["three"]),
    ]


@pytest.mark.parametrize(("short", "ends"), [("source", 1), ("target", 2)])
def test_parallel_files_of_different_length_are_an_error(write_file: Callable, short: str, ends: int) -> None:
    pair = {"source": write_file("a.de", "1\n2\n3\n4\n"), "target": write_file("a.en", "1\n2\n3\n4\n")}
    pair[short] = write_file(f"short.{short}", "1\n" * ends)
    with pytest.raises(DataError, match=rf"short\.{short} ends after line {ends}, .*: .*short\.{short} {ends}"):
        corpus(Translation(), test=pair).split("test")


def test_an_empty_line_in_a_parallel_file_is_an_error(write_file: Callable) -> None:
    pair = {"source": write_file("a.de", "1\n2\n"), "target": write_file("a.en", "1\n\n")}
    with pytest.raises(DataError, match=r"a\.de\+.*a\.en:2: the target is empty"):
        corpus(Translation(), test=pair).split("test")


def test_a_first_row_with_a_label_like_a_position_is_not_a_header(write_file: Callable) -> None:
    name = write_file("a.tsv", "good\t1\nbad\t0\n")
    test = corpus(test=name, columns={"text": 0, "label": 1}, labels=["neg", "pos"]).split("test")
    assert [(e["text"], e["label"]) for e in test] == [("good", "pos"), ("bad", "neg")]


def test_a_pattern_and_a_label_map_read_trec(write_file: Callable) -> None:
    name = write_file("TREC.train", "DESC:manner How ?\nNUM:date When ?\n")
    test = corpus(
        test=name, pattern=r"(?P<label>\w+):\S+ (?P<text>.+)", labels={"DESC": "description", "NUM": "number"}
    )
    assert [(e["label"], e["text"]) for e in test.split("test")] == [("description", "How ?"), ("number", "When ?")]


def test_squad_with_and_without_unanswerable_questions(write_file: Callable) -> None:
    questions = [
        {"id": "1", "question": "How many?", "answers": [{"text": "32", "answer_start": 9}]},
        {"id": "2", "question": "Who?", "answers": [], "is_impossible": True},
    ]
    name = write_file(
        "squad.json", json.dumps({"data": [{"paragraphs": [{"context": "It seats 32.", "qas": questions}]}]})
    )
    first, second = corpus(QuestionAnswering(unanswerable=True), test=name).split("test")
    assert (first["id"], first["answers"], first["answer_start"]) == ("1", ["32"], [9])
    assert (second["id"], second["answers"]) == ("2", [])
    with pytest.raises(DataError, match=r"squad\.json record 2: the question has no answer; task.unanswerable=true"):
        corpus(QuestionAnswering(), test=name).split("test")


@pytest.mark.parametrize("files", [3, [], {}, [1], [{"text": "a"}]])
def test_files_that_are_not_names_are_an_error(files: object) -> None:
    with pytest.raises(UserError, match="must be a name, a list of names or field: name pairs"):
        corpus(train=files)


def test_missing_files_and_bad_options_are_errors_before_anything_is_read(write_file: Callable, cache: Path) -> None:
    name = write_file("a.jsonl", jsonl(3))
    for options, message in [
        ({"test": "nowhere.csv"}, "no such file"),
        ({"limit": Limit(test=0)}, "data.limit.test=0 must be at least 1"),
        ({"cut": 0.5}, "data.cut=0.5 must lie between"),
    ]:
        with pytest.raises(UserError, match=message):
            corpus(train=name, **options)
    assert not cache.exists()


def test_a_split_without_data_or_of_another_name_is_an_error(write_file: Callable) -> None:
    only_test = corpus(test=write_file("a.jsonl", jsonl(3)))
    assert len(only_test.split("test")) == 3
    for name in ("train", "validation"):
        with pytest.raises(UserError, match=f"no {name} data: set data.{name}=<file>"):
            only_test.split(name)
    with pytest.raises(UserError, match="no split 'dev'; there are train, validation, test"):
        only_test.split("dev")


# --- errors with file and line, or counted ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "name", "text", "message"),
    [
        (Classification(), "a.csv", "txt,label\na,b\n", r"a\.csv:2: no column 'text' for text; .* Did you mean 'txt'"),
        (Classification(), "a.csv", "text,label\na,b\n,b\n", r"a\.csv:3: the text is empty"),
        (
            Classification(labels=["pos", "neg"]),
            "a.csv",
            "text,label\na,po\n",
            r"a\.csv:2: label 'po' is not in task.la",
        ),
        (Classification(), "a.jsonl", '{"text": "a", "label": "b"}\n{\n', r"a\.jsonl:2: broken JSON"),
        (
            QuestionAnswering(),
            "a.jsonl",
            '{"context": "c", "question": "q", "answers": "nothing"}\n',
            r"a\.jsonl:1: the answer 'nothing' is not in its context",
        ),
    ],
)
def test_bad_rows_stop_with_file_and_line(write_file: Callable, task: Task, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        corpus(task, test=write_file(name, text)).split("test")
    first = re.search(r"a\.csv:2|a\.jsonl:1", str(caught.value))  # then the options are more likely wrong than the row
    assert ("(data.on_bad=skip leaves such rows out)" in str(caught.value)) != bool(first)


def test_bad_rows_are_skipped_and_counted(write_file: Callable, logged: list) -> None:
    bad = "".join(f'{{"text": "a {k}"}}\n' for k in range(5))
    name = write_file("a.jsonl", jsonl(4) + bad + '{"text": "last", "label": "a"}\n')
    for _ in range(2):  # the second time from the cache
        logged.clear()
        assert len(corpus(test=name, on_bad=BadRowPolicy.skip).split("test")) == 5
        (warning,) = [line for line in logged if line.startswith("WARNING")]
        assert "test: 5 of 10 rows are bad and skipped" in warning
        assert f"{name}:5: no column 'label'" in warning
        assert f"{name}:7: " in warning
        assert warning.endswith(", ...")


def test_a_split_without_a_usable_row_is_an_error(write_file: Callable) -> None:
    with pytest.raises(
        DataError, match=r"test: there is no example in .*a.jsonl; all 1 rows are bad: .*a.jsonl:1: no col"
    ):
        corpus(test=write_file("a.jsonl", '{"text": "a"}\n'), on_bad=BadRowPolicy.skip).split("test")
    with pytest.raises(DataError, match=r"there is no example in .*b.csv$"):
        corpus(test=write_file("b.csv", "text,label\n")).split("test")


def test_duplicates_and_overlap_are_counted(write_file: Callable, logged: list) -> None:
    train, test = write_file("a.jsonl", jsonl(6) + jsonl(2)), write_file("b.jsonl", jsonl(3))
    corpus(train=train, validation=write_file("c.csv", "text,label\nnew,a\n"), test=test).warn_overlap()
    warnings = [line for line in logged if line.startswith("WARNING")]
    assert warnings == [
        "WARNING train: 2 of 8 inputs are duplicates",
        "WARNING 3 of 3 test inputs also occur in train",
    ]


# --- cutting and limiting ---------------------------------------------------------------------------------------


def test_missing_splits_are_cut_from_train_and_logged(write_file: Callable, logged: list) -> None:
    train_only = corpus(train=write_file("a.jsonl", jsonl(100)), cut=0.2)
    train, validation, test = (texts(train_only.split(name)) for name in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (60, 20, 20)
    assert sorted(train + validation + test) == sorted(f"text {k}" for k in range(100))
    assert (
        "INFO validation: no file given, so 20 examples are cut from train (seed 13, stratified by label); "
        "duplicates stay in one split" in logged
    )


def test_a_split_with_a_file_is_not_cut_from_train(write_file: Callable) -> None:
    with_test = corpus(train=write_file("a.jsonl", jsonl(100)), test=write_file("b.jsonl", jsonl(7)))
    assert [len(with_test.split(name)) for name in ("train", "validation", "test")] == [90, 10, 7]


def test_the_seed_decides_the_cut(write_file: Callable) -> None:
    name = write_file("a.jsonl", jsonl(50))
    first, again, other = (texts(corpus(train=name, seed=seed).split("test")) for seed in (1, 1, 2))
    assert first == again != other


def test_duplicates_stay_in_one_split(write_file: Callable) -> None:
    train_only = corpus(train=write_file("a.jsonl", jsonl(30, repeats=3)), cut=0.3)
    splits = [texts(train_only.split(name)) for name in ("train", "validation", "test")]
    assert sum(map(len, splits)) == 90
    train, validation, test = map(set, splits)
    assert not train & validation | train & test | validation & test


def test_questions_on_one_context_stay_in_one_split(write_file: Callable) -> None:
    rows = [{"context": f"context {k % 20}", "question": f"q{k}", "answers": "context"} for k in range(100)]
    train_only = corpus(QuestionAnswering(), train=write_file("a.json", json.dumps(rows)), cut=0.25)
    contexts_of = [set(texts(train_only.split(name), "context")) for name in ("train", "validation", "test")]
    assert [len(contexts) for contexts in contexts_of] == [10, 5, 5]
    assert len(set.union(*contexts_of)) == 20


def test_too_few_examples_to_cut_from_are_an_error(write_file: Callable) -> None:
    small = corpus(train=write_file("a.jsonl", jsonl(2, repeats=5)))
    with pytest.raises(DataError, match="train has 2 different examples, too few to cut validation, test from"):
        small.split("train")
    assert [len(corpus(train=write_file("b.jsonl", jsonl(3))).split(name)) for name in corpora.SPLITS] == [1, 1, 1]


def labels_of(name: str, source: CachedCorpus) -> dict[str, int]:
    return dict(sorted(Counter(example["label"] for example in source.split(name)).items()))


def test_each_label_has_its_share_in_a_cut_unless_that_is_switched_off(write_file: Callable) -> None:
    rows = [{"text": f"text {k}", "label": "rare" if k % 20 == 0 else "often"} for k in range(200)]
    name = write_file("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(3):
        for split in ("validation", "test"):
            assert labels_of(split, corpus(train=name, seed=seed)) == {"often": 19, "rare": 1}
    assert {labels_of("test", corpus(train=name, seed=s, stratify=False))["often"] for s in range(9)} > {19}
    graded = CachedCorpus(Sentiment(), Files(train=name, labels={"rare": "1", "often": "2"}, stratify=True), 13)
    assert labels_of("test", graded) == {"1": 1, "2": 19}


def test_a_cut_without_strata_is_the_one_of_earlier_versions(write_file: Callable) -> None:
    """Published results were measured on it: groups in the order of their digests, shuffled by the seed."""
    for task, stratify in ((Classification(), False), (Translation(), None)):
        columns = {} if stratify is False else {"source": "text", "target": "label"}
        plain = corpus(task, train=write_file("a.jsonl", jsonl(50)), columns=columns, stratify=stratify)
        by_digest = plain.all_rows("train").digests.argsort()
        expected = sorted(by_digest[np.random.default_rng(13).permutation(50) // 5 == 1].tolist())
        assert [int(example["id"].rpartition(":")[2]) - 1 for example in plain.split("test")] == expected


def test_stratify_is_for_tasks_with_labels(write_file: Callable) -> None:
    with pytest.raises(UserError, match=r"data\.stratify=true needs a task whose examples have labels"):
        corpus(Translation(), train=write_file("a.jsonl", jsonl(9)), stratify=True)


def test_a_group_column_keeps_its_rows_in_one_split_and_is_the_examples_group(write_file: Callable) -> None:
    rows = [{"text": f"text {k}", "label": "ab"[k % 2], "patient": k % 10} for k in range(60)]
    name = write_file("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    grouped = corpus(train=name, group="patient", cut=0.2)
    splits = [{int(text.split()[1]) % 10 for text in texts(grouped.split(split))} for split in corpora.SPLITS]
    assert sorted(map(len, splits)) == [2, 2, 6]
    assert len(set.union(*splits)) == 10
    train = list(grouped.split("train"))
    assert len({example["group"] for example in train}) == 6
    assert len({example["digest"] for example in train}) == 36
    assert "patient" not in train[0]


def test_a_duplicate_in_two_groups_joins_them(write_file: Callable) -> None:
    pairs = [(f"only {group} {k}", group) for group in range(12) for k in range(3)]
    pairs += [("same", 0), ("same", 1), ("other", 1), ("other", 2)]  # so 0, 1 and 2 belong together
    lines = "".join(f"{text},{'ab'[k % 2]},{group}\n" for k, (text, group) in enumerate(pairs))
    name = write_file("a.csv", f"text,label,user\n{lines}")
    for seed in range(5):
        grouped = corpus(train=name, group="user", cut=0.2, seed=seed)
        split_of = {split: texts(grouped.split(split)) for split in corpora.SPLITS}
        (home,) = [split for split, found in split_of.items() if "same" in found]
        assert [split for split, found in split_of.items() if "other" in found] == [home]
        assert {f"only {group} 0" for group in (0, 1, 2)} <= set(split_of[home])


def test_a_context_in_two_groups_joins_them(write_file: Callable) -> None:
    rows = [{"context": f"context {k}", "question": "q", "answers": "context", "user": k} for k in range(20)]
    rows += [{"context": "context 0", "question": "r", "answers": "context", "user": 1}]
    name = write_file("a.json", json.dumps(rows))
    for seed in range(5):
        grouped = corpus(QuestionAnswering(), train=name, group="user", cut=0.2, seed=seed)
        homes = {n: s for s in corpora.SPLITS for n in texts(grouped.split(s), "context")}
        assert homes["context 0"] == homes["context 1"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            '"users": "u"',
            r"a\.jsonl:1: no column 'user' for data\.group; there are: text, label, users\. Did",
        ),
        ('"user": null', r"a\.jsonl:1: the user \(data\.group\) is empty"),
        ('"user": " "', r"a\.jsonl:1: the user \(data\.group\) is empty"),
        ('"user": NaN', r"a\.jsonl:1: the user \(data\.group\) is empty"),
        ('"user": [1]', r"a\.jsonl:1: the user \(data\.group\) must be one value, got '\[1\]'"),
    ],
)
def test_a_row_without_its_group_is_an_error(write_file: Callable, cells: str, message: str) -> None:
    name = write_file("a.jsonl", f'{{"text": "a", "label": "b", {cells}}}\n')
    with pytest.raises(DataError, match=message):
        corpus(test=name, group="user").split("test")


def test_a_limit_draws_examples_after_the_cut(write_file: Callable, logged: list) -> None:
    limited = corpus(train=write_file("a.jsonl", jsonl(100)), limit=Limit(train=7, test=1000))
    assert len(limited.split("train")) == len(set(texts(limited.split("train")))) == 7
    assert len(limited.split("test")) == 10
    assert "INFO train: 7 examples of 80 (data.limit)" in logged
    assert not set(texts(limited.split("train"))) & set(texts(limited.split("test")))


# --- the cache --------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list:
    """One entry for every time that files are read instead of the cache."""
    readers: list = []
    records = ExampleReader.records

    def counting(self: ExampleReader, reader: object) -> object:
        readers.append(reader)
        return records(self, reader)

    monkeypatch.setattr(ExampleReader, "records", counting)
    return readers


def test_a_file_is_read_once_and_then_from_the_cache(write_file: Callable, reads: list) -> None:
    name = write_file("a.jsonl", jsonl(4))
    first, again = (corpus(test=name).split("test") for _ in range(2))
    assert len(reads) == 1
    assert list(first) == list(again)
    assert first.key == again.key


def test_a_change_of_whatever_shapes_examples_reads_the_file_again(write_file: Callable, reads: list) -> None:
    name = write_file("a.jsonl", jsonl(4))
    labels = write_file("labels.txt", "a\tone\nb\ttwo\n")
    changes: list[Callable[[], CachedCorpus]] = [
        lambda: corpus(test=name),
        lambda: corpus(test=name, columns={"id": "text"}),
        lambda: corpus(test=name, labels={"a": "x", "b": "y"}),
        lambda: corpus(test=name, labels=labels),
        lambda: corpus(test=name, labels=write_file("labels.txt", "a\tone\nb\tthree\n")),
        lambda: corpus(test=name, on_bad=BadRowPolicy.skip),
        lambda: corpus(Classification(prompt="{text}!"), test=name),
        lambda: corpus(test=write_file("a.jsonl", jsonl(5))),
        lambda: corpus(test=[name, write_file("b.jsonl", jsonl(2))]),
    ]
    keys = {change().split("test").key for change in changes}
    assert len(keys) == len(reads) == len(changes)


def test_swapped_fields_of_parallel_files_read_them_again(write_file: Callable, reads: list) -> None:
    files = [write_file("a.de", "eins\n"), write_file("a.en", "one\n")]
    forward, backward = (
        corpus(Translation(), test=dict(zip(fields, files, strict=True))).split("test")[0]
        for fields in (("source", "target"), ("target", "source"))
    )
    assert (forward["source"], backward["source"]) == ("eins", "one")


# --- other kinds of data ----------------------------------------------------------------------------------------


def test_equal_test_sets_have_equal_hashes_whatever_their_files(write_file: Callable) -> None:
    table = "".join(f"text {k}\t{'ab'[k % 2]}\n" for k in range(4))
    first = corpus(test=write_file("a.jsonl", jsonl(4))).split("test")
    second = corpus(test=write_file("b.tsv", table), columns={"text": 0, "label": 1}).split("test")
    third = corpus(test=write_file("c.jsonl", jsonl(5))).split("test")
    assert first.hash == second.hash != third.hash
    assert first.digests.tolist() == second.digests.tolist()


def test_data_sample_reads_the_sample_of_the_task() -> None:
    sample = CachedCorpus(Classification(), Sample(limit=Limit(train=5), on_bad=BadRowPolicy.skip), 13)
    assert len(sample.split("train")) == 5
    assert sample.options.on_bad is BadRowPolicy.skip
    assert len(sample.split("validation")) >= 60


def test_a_local_file_replaces_hub_data(write_file: Callable, monkeypatch: pytest.MonkeyPatch, logged: list) -> None:
    hub_splits: list = []
    monkeypatch.setattr(corpora, "HubReader", lambda options, split: hub_splits.append(split))
    name = write_file("a.csv.gz", "sentence,label\nfine,1\npoor,0\n")
    hub = Hub(path="some/set", train=name, test="test", columns={"text": "sentence"}, labels=["neg", "pos"])
    mixed = CachedCorpus(Classification(), hub, 13)
    assert [
        e["label"] for e in CachedCorpus(Classification(), Hub(**(vars(hub) | {"test": name})), 13).split("test")
    ] == [
        "pos",
        "neg",
    ]
    assert any(f"2 rows of {name}" in line for line in logged)
    assert hub_splits == []
    with pytest.raises(AttributeError):  # the stand-in for the hub returns None
        mixed.split("test")
    assert hub_splits == ["test"]
    with pytest.raises(UserError, match="no such file"):
        CachedCorpus(Classification(), Hub(path="some/set", train="nowhere.csv"), 13)


def test_hub_splits_are_read_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeReader:
        def __init__(self, options: Data, split: str) -> None:
            self.name = f"{options.path}[{split}]"

        def fingerprint(self) -> dict[str, str]:
            return {self.name: "f00d"}

        def rows(self, wanted: list[str]) -> object:
            from gptask.data.rows import Row

            for number in range(1, 11):
                yield self.name, Row(number, {"text": f"{self.name} {number}", "label": number % 2}, "row")

    monkeypatch.setattr(corpora, "HubReader", FakeReader)
    hub = CachedCorpus(Classification(), Hub(path="a/b", train="train[:10]", test="validation"), 13)
    assert [len(hub.split(name)) for name in corpora.SPLITS] == [9, 1, 10]
    assert hub.split("test")[0]["text"] == "a/b[validation] 1"
    assert hub.split("test")[0]["id"] == "b[validation] row 1"


def test_gzip_cut_off_in_the_middle_of_reading_leaves_no_cache(write_file: Callable, cache: Path) -> None:
    name = write_file("a.jsonl.gz", jsonl(20_000))
    raw = Path(name).read_bytes()
    Path(name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz ends early, after line \d+: .*gzip"):
        corpus(test=name).split("test")
    assert not [path for path in cache.rglob("*") if path.is_file()]
    Path(name).write_bytes(gzip.compress(jsonl(5).encode()))
    assert len(corpus(test=name).split("test")) == 5


def test_a_task_that_cleans_to_nothing_is_an_error_that_names_the_hook(write_file: Callable) -> None:
    class Forgetful(Classification):
        def clean(self, examples: object, train: bool, counts: object) -> None:
            """Yield nothing."""

    with pytest.raises(TypeError, match=r"Task\.clean\(\) must yield the examples, got None"):
        corpus(Forgetful(), train=write_file("a.jsonl", jsonl(2))).split("train")
