"""Overrides as a user types them reach the config with the intended values."""

import pytest
from gptask import UserError
from gptask.config.overrides import normalize_overrides, parse_override, quote_if_needed, values_of

TEXTS = [
    "评论.csv",
    "c(1).csv",
    "a=b.csv",
    "my data/a  b.csv",
    "Review: {text}",
    "{text}",
    "{a}, {b}",
    "{a}: {b}",
    "Say, {text}, or not",
    "[INST] {text} [/INST]",
    "it's {text}",
    'she said "{text}"',
    "a\nb",
    "a\\nb {text}",
    "C:\\data (1)\\x.csv",
    "ends(with)\\",
    "quote'and\\",
    "\\' (",
    "~/x.csv",
    "a#b;c&d!e^f<g>`h`",
    "2024_01",
    "choice(a,b)",
    "range(1,3)",
    "file(1)",
    "1,2",
    "[评,]",
    "[(]",
    "{a",
]


def parsed_value(text):
    return parse_override(f"key={quote_if_needed(text)}").value()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_the_grammar_refuses_arrives_unchanged(text):
    assert parsed_value(text) == text


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("null", None),
        ("true", True),
        ("a.csv", "a.csv"),
        ("[a.csv,b.csv]", ["a.csv", "b.csv"]),
        ("[评论.csv, c(1).csv]", ["评论.csv", "c(1).csv"]),
        ("['a, b',评]", ["a, b", "评"]),
        ("[[a,评],b]", [["a", "评"], "b"]),
        ("{source:a.de,target:b.en}", {"source": "a.de", "target": "b.en"}),
        ("{source: 评论.de, target: b (1).en}", {"source": "评论.de", "target": "b (1).en"}),
        ("'a, b'", "a, b"),
        ("${outputs}/x", "${outputs}/x"),
        ("", ""),
    ],
)
def test_values_of_the_grammar_keep_their_meaning(typed, expected):
    assert parsed_value(typed) == expected


@pytest.mark.parametrize(
    ("typed", "jobs"),
    [
        ("1,2", ["1", "2"]),
        ("评.csv,b(1).csv", ["'评.csv'", "'b(1).csv'"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("range(1,3)", ["1", "2"]),
    ],
)
def test_commas_make_a_sweep_in_multirun(typed, jobs):
    override = parse_override(f"key={quote_if_needed(typed, multirun=True)}")
    assert list(override.sweep_string_iterator()) == jobs


def test_plus_signs_are_added_and_removed_as_hydra_wants_them():
    def normalized(override):
        known, open_keys = {"trainer", "task", "seed", "data"}, {"trainer", "data.columns"}
        return normalize_overrides([override], False, known, open_keys)[0]

    assert normalized("trainer.devices=2") == "++trainer.devices=2"
    assert normalized("+trainer.devices=2") == "++trainer.devices=2"
    assert normalized("data.columns.text=sentence") == "++data.columns.text=sentence"
    assert normalized("data.columns={text:a}") == "++data.columns={text:a}"
    assert normalized("data.columns=null") == "data.columns=null"
    assert normalized("+task.lables=x") == "task.lables=x"
    assert normalized("++seed=3") == "seed=3"
    assert normalized("+ablation=small") == "+ablation=small"
    assert normalized("~trainer.max_epochs") == "~trainer.max_epochs"


@pytest.mark.parametrize("override", ["foo bar", "seed", "=3", "", "a b=c"])
def test_a_text_that_is_not_an_override_is_refused(override):
    with pytest.raises(UserError, match="is not an override"):
        normalize_overrides([override], False, (), ())


def test_an_option_name_outside_ascii_is_refused():
    with pytest.raises(UserError, match="YAML preset"):
        normalize_overrides(["task.label_words.正面=好"], False, (), ("task.label_words",))


def test_the_last_override_of_a_key_wins_as_in_hydra():
    assert values_of(["run=a", "task=qa", "run='b c'"], "run") == ["b c"]
    assert values_of(["run=null"], "run") == [None]
    assert values_of(["task=qa,sentiment"], "task") == ["qa", "sentiment"]
    assert values_of(["task.labels=[a]"], "task") == []


HOSTILE = [
    "[[[[]]]]", "{", "}", "]", "'", '"', "'a", '"a', "\\", "{a:", "{:}", "[,]", "a(", "choice(", "${", "[{]", "~x",
    "9" * 5000, "[" * 5000, "[" * 5000 + "]" * 5000, "{a:" * 300 + "1" + "}" * 300, "'" * 999, "(" * 999,
]  # fmt: skip


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_any_value_becomes_one_that_the_grammar_reads(value: str, multirun: bool) -> None:
    (override,) = normalize_overrides([f"data.train={value}"], multirun, (), ())
    (read,) = values_of([override], "data.train")
    assert read == ([[[[]]]] if value == "[[[[]]]]" else value)


@pytest.mark.parametrize("value", ["[" * 60 + "]" * 60, "a,]", "glob(*)", "interval(1,2)"])
def test_values_of_a_multirun_are_read_or_refused(value: str) -> None:
    (override,) = normalize_overrides([f"task={value}"], True, (), ())
    parse_override(override)
