"""Overrides as typed reach the config as meant."""

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


def value(text):
    return parse_override(f"key={quote_if_needed(text)}").value()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_the_grammar_refuses_arrives_unchanged(text):
    assert value(text) == text


@pytest.mark.parametrize(
    ("typed", "meant"),
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
def test_values_of_the_grammar_keep_their_meaning(typed, meant):
    assert value(typed) == meant


@pytest.mark.parametrize(
    ("typed", "jobs"),
    [
        ("1,2", ["1", "2"]),
        ("评.csv,b(1).csv", ["'评.csv'", "'b(1).csv'"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("range(1,3)", ["1", "2"]),
    ],
)
def test_commas_sweep_in_multirun(typed, jobs):
    swept = parse_override(f"key={quote_if_needed(typed, multirun=True)}")
    assert list(swept.sweep_string_iterator()) == jobs


def test_signs():
    def normal(override):
        return normalize_overrides([override], False, {"trainer", "task", "seed", "data"}, {"trainer", "data.columns"})[
            0
        ]

    assert normal("trainer.devices=2") == "++trainer.devices=2"
    assert normal("+trainer.devices=2") == "++trainer.devices=2"
    assert normal("data.columns.text=sentence") == "++data.columns.text=sentence"
    assert normal("data.columns={text:a}") == "++data.columns={text:a}"
    assert normal("data.columns=null") == "data.columns=null"
    assert normal("+task.lables=x") == "task.lables=x"
    assert normal("++seed=3") == "seed=3"
    assert normal("+ablation=small") == "+ablation=small"
    assert normal("~trainer.max_epochs") == "~trainer.max_epochs"


@pytest.mark.parametrize("override", ["foo bar", "seed", "=3", "", "a b=c"])
def test_what_is_no_override_is_refused(override):
    with pytest.raises(UserError, match="is no override"):
        normalize_overrides([override], False, (), ())


def test_a_name_the_grammar_cant_hold_is_refused():
    with pytest.raises(UserError, match="YAML preset"):
        normalize_overrides(["task.label_words.正面=好"], False, (), ("task.label_words",))


def test_chosen_reads_the_last_value_as_hydra_does():
    assert values_of(["run=a", "task=qa", "run='b c'"], "run") == ["b c"]
    assert values_of(["run=null"], "run") == [None]
    assert values_of(["task=qa,sentiment"], "task") == ["qa", "sentiment"]
    assert values_of(["task.labels=[a]"], "task") == []
