"""Words in any script: as corpora divide them, and as scores compare them."""

import random
import string

import pytest
from gptask.data.words import is_blank, normalized_words, space_characters, words
from rouge_score.tokenizers import DefaultTokenizer


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("It's Angela's, isn't it?", ["It", "'s", "Angela", "'s", ",", "is", "n't", "it", "?"]),
        ("can’t won't", ["ca", "n’t", "wo", "n't"]),
        ("The U.S. paid 3.5 or 10,000 at 12:30.", ["The", "U.S.", "paid", "3.5", "or", "10,000", "at", "12:30", "."]),
        ("a well-known AT&T café…", ["a", "well-known", "AT&T", "café", "…"]),
        ("@paul #tag https://a.b/c?d wait...", ["@paul", "#tag", "https://a.b/c?d", "wait", "..."]),
        ("北京GPT-4很好。The end", ["北", "京", "GPT-4", "很", "好", "。", "The", "end"]),
        ("東京タワー 서울에서 왔다.", ["東", "京", "タ", "ワ", "ー", "서울에서", "왔다", "."]),
        ("สวัสดี ครับ", ["ส", "วั", "ส", "ดี", "ค", "รั", "บ"]),
        ("हिन्दी भाषा है।", ["हिन्दी", "भाषा", "है", "।"]),
        ("cafe\u0301 ici", ["cafe\u0301", "ici"]),
        (" \n", []),
    ],
)
def test_a_text_is_split_at_spaces_and_around_punctuation(text: str, parts: list[str]) -> None:
    assert words(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Москва – столица России.", ["москва", "столица", "россии"]),
        ("Mögen MÄGEN Straße", ["mögen", "mägen", "strasse"]),
        ("cafe\u0301 café CAFÉ", ["café"] * 3),
        ("東京タワーへ。", ["東", "京", "タ", "ワ", "ー", "へ"]),
        ("北京GPT-4很好", ["北", "京", "gpt", "4", "很", "好"]),
        ("2020年ＮＢＡ决赛 ﾀﾜｰ", ["2020", "年", "nba", "决", "赛", "タ", "ワ", "ー"]),
        ("สวัสดีครับ", ["ส", "วั", "ส", "ดี", "ค", "รั", "บ"]),
        ("ຂອບໃຈ ខ្មែរ မြန်မာ", ["ຂ", "ອ", "ບ", "ໃ", "ຈ", "ខ្", "មែ", "រ", "မြ", "န်", "မာ"]),
        ("서울에서 김철수가", ["서울에서", "김철수가"]),
        ("हिन्दी भाषा है।", ["हिन्दी", "भाषा", "है"]),
        ("كِتَاب، جديد؟", ["كِتَاب", "جديد"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("snake_case l'été", ["snake", "case", "l", "été"]),
        ("\U00020000好", ["\U00020000", "好"]),
        ("…… 👍 «»", []),
    ],
)
def test_scores_compare_the_words_of_any_script(text: str, parts: list[str]) -> None:
    assert normalized_words(text) == parts


def test_ascii_words_are_those_of_rouge_score() -> None:
    generator = random.Random(0)
    for _ in range(500):
        text = "".join(generator.choices(string.printable + "aeiot _-'.,019", k=40))
        assert normalized_words(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


def test_spaces_surround_the_characters_of_scripts_without_spaces() -> None:
    assert space_characters("GPT，北京 ok").split() == ["GPT", "，", "北", "京", "ok"]
    assert space_characters("Привет, мир! 서울") == "Привет, мир! 서울"


@pytest.mark.parametrize("text", ["", " \t\n", "\xa0\u3000", "\u200b\ufeff\u2060", "\u00ad", "\x00", "\u3164"])
def test_a_text_with_nothing_to_see_is_blank(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(f"{text}。{text}")
