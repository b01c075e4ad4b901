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
from gptask_tasks.summarization import Summarization
from gptask_tasks.token_tagging import TokenTagging
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


# --- a split with columns of its own ------------------------------------------------------------------------------

DIALOGSUM_TRAIN = [
    {"fname": f"train_{n}", "dialogue": f"#Person1#: {n}", "summary": f"s {n}", "topic": "t"} for n in range(4)
]
DIALOGSUM_TEST = [
    {"fname": f"test_{n}", "dialogue": f"#Person1#: {n}?", "summary1": f"a {n}", "topic1": "t", "summary2": f"b {n}",
     "topic2": "u", "summary3": "" if n else "c 0", "topic3": "v"} for n in range(2)
]  # fmt: skip


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_dialogsum_as_published_has_one_summary_in_train_and_three_in_the_test(write_file: Callable) -> None:
    files = {"train": write_file("train.jsonl", json_lines(DIALOGSUM_TRAIN)),
             "test": write_file("test.jsonl", json_lines(DIALOGSUM_TEST))}  # fmt: skip
    columns = {"document": "dialogue", "id": "fname"}
    data = corpus(
        Summarization(), **files, columns=columns, test_columns={"summary": ["summary1", "summary2", "summary3"]}
    )
    assert texts(data.all_rows("train"), "summary") == [[f"s {n}"] for n in range(4)]
    assert texts(data.split("test"), "summary") == [["a 0", "b 0", "c 0"], ["a 1", "b 1"]]
    assert texts(data.split("test"), "id") == ["test_0", "test_1"]
    with pytest.raises(
        DataError,
        match=r"no column 'summary'.*columns\.summary=<column>, or \[<column>,<column>\] \(data\.test_columns\.",
    ):
        corpus(Summarization(), **files, columns=columns).split("test")


def test_samsum_has_other_names_in_the_test_than_in_train_and_validation(write_file: Callable) -> None:
    ours = json_lines([{"context": f"A: {n}", "response": f"s {n}"} for n in range(2)])
    files = {
        "train": write_file("train.jsonl", ours),
        "validation": write_file("val.csv", "talk,response\nA: 3,s 3\n"),
        "test": write_file("test.csv", "id,dialogue,summary\n7,A: 2,s 2\n"),
    }
    columns = {"document": "context", "summary": "response"}
    others = {
        "test_columns": {"document": "dialogue", "summary": "summary"},
        "validation_columns": {"document": "talk"},
    }
    data = corpus(Summarization(), **files, columns=columns, **others)
    splits = {name: [(e["document"], e["summary"]) for e in data.split(name)] for name in corpora.SPLITS}
    assert splits == {
        "train": [("A: 0", ["s 0"]), ("A: 1", ["s 1"])],
        "validation": [("A: 3", ["s 3"])],
        "test": [("A: 2", ["s 2"])],
    }


def test_positions_without_a_header_may_be_several_too(write_file: Callable) -> None:
    file = write_file("test.tsv", "a talk\tone\ttwo\n")
    data = corpus(Summarization(), test=file, test_columns={"document": 0, "summary": [1, 2]})
    assert texts(data.split("test"), "summary") == [["one", "two"]]


def test_columns_of_a_split_that_is_cut_from_train_are_refused(write_file: Callable) -> None:
    file = write_file("train.jsonl", jsonl(20))
    with pytest.raises(UserError, match=r"data\.test_columns is for a file of its own, and data\.test is not set"):
        corpus(train=file, test_columns={"text": "review"})
    assert corpus(train=file, test=file, test_columns={"text": "text"}).split("test")


# --- a word a row ---------------------------------------------------------------------------------------------------

KAGGLE = (  # the form of the "Annotated Corpus for Named Entity Recognition" on Kaggle
    "Sentence #,Word,POS,Tag\n"
    "Sentence: 1,Thousands,NNS,O\n,of,IN,O\n,London,NNP,B-geo\n,.,.,O\n"
    'Sentence: 2,"They",PRP,O\n,say,VBP,O\n,"""",``,O\n,New,NNP,B-geo\n,York,NNP,I-geo\n'
)
SENTENCES = [
    (["Thousands", "of", "London", "."], ["O", "O", "B-geo", "O"]),
    (["They", "say", '"', "New", "York"], ["O", "O", "O", "B-geo", "I-geo"]),
]
TAGGED_COLUMNS = {"tokens": "Word", "tags": "Tag"}


def tagged(file: str, **columns: object) -> list[tuple[list[str], list[str]]]:
    examples = corpus(TokenTagging(), test=file, columns=TAGGED_COLUMNS | columns).split("test")
    return [(example["tokens"], example["tags"]) for example in examples]


def test_a_table_with_a_word_a_row_is_read_by_sentences(write_file: Callable, logged: list) -> None:
    file = write_file("ner.csv", KAGGLE)
    for _ in range(2):  # the second time from the cache
        assert tagged(file) == SENTENCES
        assert "INFO test: a word a row; the column 'Sentence #' parts the sentences (data.columns.sentence)" in logged
        logged.clear()
    examples = corpus(TokenTagging(), test=file, columns=TAGGED_COLUMNS | {"id": "Sentence #"}).split("test")
    assert texts(examples, "id") == ["Sentence: 1", "Sentence: 2"]
    assert texts(corpus(TokenTagging(), test=file, columns=TAGGED_COLUMNS).split("test"), "id") == [
        "ner.csv:2",
        "ner.csv:6",
    ]


def test_the_sentence_may_stand_on_every_row_and_its_column_have_any_name_or_none(write_file: Callable) -> None:
    rows, current = [], ""
    for line in KAGGLE.splitlines():
        current = line.split(",")[0] or current
        rows.append(f"{current},{line.split(',', 1)[1]}\n")
    assert tagged(write_file("every.csv", "".join(rows))) == SENTENCES
    renamed = KAGGLE.replace("Sentence #", "group")
    assert tagged(write_file("named.csv", renamed), sentence="group") == SENTENCES
    headless = "".join(rows[1:])
    assert tagged(write_file("bare.csv", headless), sentence=0, tokens=1, tags=3) == SENTENCES


def test_a_bad_row_between_two_sentences_makes_both_bad(write_file: Callable) -> None:
    rows = ["sent_id,tokens,tags", "0,a,O", "0,b,B-X", 'broken"', "1,d,I-X", "2,e,O", "2,f,O", ""]
    options = Files(train=write_file("a.csv", "\n".join(rows)), on_bad=BadRowPolicy.skip)
    (sentence,) = CachedCorpus(TokenTagging(), options, 0).all_rows("train")
    assert sentence["tokens"] == ["e", "f"], "the broken row may be the first word of sentence 1"


def test_the_last_sentence_of_a_file_ends_with_it(write_file: Callable) -> None:
    header = "sentence_id,Word,Tag\n"
    files = [write_file("a.csv", f"{header}1,a,O\n1,b,O\n"), write_file("b.csv", f"{header}1,c,O\n1,d,O\n")]
    examples = corpus(TokenTagging(), test=files, columns=TAGGED_COLUMNS).split("test")
    assert texts(examples, "tokens") == [["a", "b"], ["c", "d"]]


def test_a_table_with_a_sentence_a_row_stays_one(write_file: Callable) -> None:
    assert tagged(write_file("a.csv", "Sentence #,Word,Tag\n1,a b,O O\n1,c d,O O\n")) == [
        (["a", "b"], ["O", "O"]),
        (["c", "d"], ["O", "O"]),
    ]
    one_word_each = "sentence,Word,Tag\nHello,Hello,O\nBye,Bye,O\n"
    assert tagged(write_file("b.csv", one_word_each)) == [(["Hello"], ["O"]), (["Bye"], ["O"])]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("Sentence #,Word,Tag\n1,a,O\n,b\n2,c,O\n2,d,O\n", {}, r"ner\.csv:3: 2 cells, but the header has 3"),
        ("Sentence #,Word,Tag\n1,a,O\n,,O\n", {}, r"ner\.csv:2: token 2 of 2 is empty"),
        ("n,Word,Tag\n1,a,O\n", {"sentence": "nr"}, r"no column 'nr' that parts sentences .*there are: n, Word, Tag"),
    ],
)
def test_a_bad_row_makes_its_sentence_a_bad_one(write_file: Callable, text: str, columns: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tagged(write_file("ner.csv", text), **columns)


def test_a_bad_word_leaves_the_other_sentences_of_the_file(write_file: Callable) -> None:
    file = write_file("ner.csv", "Sentence #,Word,Tag\n1,a,O\n,b\n1,b,O\n2,c,O\n2,d,O\n")
    data = corpus(TokenTagging(), test=file, columns=TAGGED_COLUMNS, on_bad=BadRowPolicy.skip)
    assert texts(data.split("test"), "tokens") == [["c", "d"]]


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


# --- halves of train ----------------------------------------------------------------------------------------------


def halves(file: str, task: Task | None = None, **options: object) -> list[Examples]:
    return [corpus(task, train=file, half=number, **options).split("train") for number in (1, 2)]


def test_the_halves_are_the_whole_training_split_and_share_no_input(write_file: Callable, logged: list) -> None:
    name = write_file("a.jsonl", jsonl(40, repeats=3))
    whole = corpus(train=name).split("train")
    first, second = halves(name)
    assert sorted([*first.rows, *second.rows]) == [*whole.rows]
    assert len(first) == len(second) == len(whole) / 2
    assert not {*first.digests} & {*second.digests}
    assert f"INFO train: {len(first)} of {len(whole)} examples (data.half=1)" in logged
    assert [*halves(name)[0].rows] == [*first.rows] != [*halves(name, seed=14)[0].rows]
    for split in ("validation", "test"):
        assert [*corpus(train=name, half=1).split(split).rows] == [*corpus(train=name).split(split).rows]


def test_each_half_has_its_share_of_every_label(write_file: Callable) -> None:
    rows = [{"text": f"text {k}", "label": "rare" if k < 4 else "ab"[k % 2]} for k in range(200)]
    name = write_file("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(3):
        for half in halves(name, validation=name, test=name, seed=seed):
            assert Counter(texts(half, "label")) == {"a": 49, "b": 49, "rare": 2}


def test_halves_are_taken_of_what_the_limit_leaves(write_file: Callable) -> None:
    name = write_file("a.jsonl", jsonl(100))
    limited = corpus(train=name, limit=Limit(train=11)).split("train")
    first, second = halves(name, limit=Limit(train=11))
    assert sorted([*first.rows, *second.rows]) == [*limited.rows]
    assert {len(first), len(second)} == {5, 6}


def test_groups_stay_in_one_half(write_file: Callable) -> None:
    rows = [{"text": f"text {k}", "label": "ab"[k % 2], "patient": k % 10} for k in range(60)]
    name = write_file("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    first, second = ({int(text.split()[1]) % 10 for text in texts(half)} for half in halves(name, group="patient"))
    assert first.isdisjoint(second)
    questions = [{"context": f"c {k % 9}", "question": f"q {k}", "answers": f"c {k % 9}"} for k in range(36)]
    file = write_file("a.json", json.dumps(questions))
    first, second = ({*texts(half, "context")} for half in halves(file, QuestionAnswering()))
    assert first
    assert second
    assert first.isdisjoint(second)


def test_another_half_than_1_or_2_is_an_error_and_so_is_half_an_example(write_file: Callable) -> None:
    name = write_file("a.jsonl", jsonl(1, repeats=4))
    with pytest.raises(UserError, match=r"data\.half=3 must be 1 or 2"):
        corpus(train=name, half=3)
    with pytest.raises(DataError, match=r"data\.half=1: train has 1 different examples, too few to halve"):
        corpus(train=name, validation=name, test=name, half=1).split("train")


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
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is not a complete gzip file"):
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
