"""The task summarization: ROUGE against rouge-score, prompts, truncation, the sample."""

import random
import string
import unicodedata
from typing import Any

import pytest
from gptask import DataError, Prediction, UserError
from gptask.plugins.metric import score_all
from gptask_tasks.summarization import Summarization
from gptask_tasks.text import sentences
from rouge_score.rouge_scorer import RougeScorer

ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
WORDS = ["Running", "runs", "the", "cats", "cat's", "sat", "mat.", "end!", "U.S.", "why?", "7,000", "e-mail"]


def texts(count: int, words: list[str]) -> list[str]:
    generator = random.Random(count)
    return [" ".join(generator.choices(words, k=generator.randint(1, 25))) for _ in range(count)]


def values(task: Summarization, summaries: list[str], references: list[list[str]]) -> dict[str, float]:
    scores, _ = score_all(task.metrics(), [Prediction(s) for s in summaries], [{"summary": r} for r in references])
    return {score.name: score.value for score in scores}


def test_rouge_equals_rouge_score() -> None:
    summaries, first, second = texts(40, WORDS), texts(41, WORDS)[:40], texts(42, WORDS)[:40]
    references = [[a, b] if number % 3 else [a] for number, (a, b) in enumerate(zip(first, second, strict=True))]
    scores = values(Summarization(), [*summaries, ""], [*references, ["the cat"]])
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    for name in ROUGE:
        split = sentences if name == "rougeLsum" else str
        expected = [
            max(scorer.score(split(r), split(s))[name].fmeasure for r in rs)
            for s, rs in zip(summaries, references, strict=True)
        ]
        assert scores[name] == pytest.approx(100 * sum(expected) / 41)
    assert scores["rouge1"] > scores["rouge2"] > 0


def test_rouge_lsum_matches_sentence_by_sentence() -> None:
    reference, summary = "The cat sat. A dog ran home.", "A dog ran home. The cat sat."
    scores = values(Summarization(), [summary], [[reference]])
    assert scores["rougeLsum"] == pytest.approx(100)
    assert scores["rougeL"] < 60


def test_rouge_equals_rouge_score_on_any_ascii_text() -> None:
    generator, scorer = random.Random(1), RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    alphabet = string.printable + 12 * "aeinrst " + "ing ed ies -_'"
    for _ in range(60):
        text, reference = ("".join(generator.choices(alphabet, k=80)) for _ in range(2))
        reference += text[20:60]
        for metric in Summarization().metrics()[:3]:
            (value,) = metric.statistics(Prediction(text), {"summary": [reference]})
            assert value == scorer.score(reference, text)[metric.name].fmeasure


@pytest.mark.parametrize(
    "text",
    [
        "Москва – столица России.",
        "Das mögen wir.",
        "東京タワーへ行く。",
        "北京今天下雨。",
        "สวัสดีครับ",
        "यह हिन्दी है।",
        "هذا كتاب جديد؟",
        "서울에서 왔다.",
        "cafe\u0301 noir",
        "ខ្មែរ",
    ],
)
def test_identical_texts_score_100_in_every_script(text: str) -> None:
    scores = values(Summarization(), [text, text], [[text], ["", text]])
    assert [scores[name] for name in ROUGE] == [100] * 4
    assert scores["length_ratio"] == 1
    composed = unicodedata.normalize("NFC", text)
    assert values(Summarization(), [text], [[composed]])["rouge1"] == 100


def test_rouge_by_hand_beyond_ascii() -> None:
    assert values(Summarization(), ["Mögen"], [["Mägen"]])["rouge1"] == 0
    russian = values(Summarization(), ["Он живёт в Москве"], [["Она живёт в Осло"]])
    assert (russian["rouge1"], russian["rouge2"]) == (50, pytest.approx(100 / 3))
    japanese = values(Summarization(), ["東京へ行く"], [["京都へ行く"]])  # 京へ行く of 5; へ行, 行く of 4
    assert (japanese["rouge1"], japanese["rouge2"]) == (pytest.approx(80), 50)


def test_chinese_is_scored_by_characters() -> None:
    summary, reference = "北京今天下雨。", "今天北京下大雨"
    scores = values(Summarization(language="zh"), [summary], [[reference]])
    hits, pairs = 6, 2  # all of 北京今天下雨; 北京 and 今天
    assert scores["rouge1"] == pytest.approx(100 * 2 * hits / (6 + 7))
    assert scores["rouge2"] == pytest.approx(100 * 2 * pairs / (5 + 6))
    assert values(Summarization(), [summary], [[reference]]) == scores, "the text decides, not task.language"


def test_the_length_ratio_divides_sums_of_lengths() -> None:
    assert values(Summarization(), ["one two", ""], [["one two three"], ["one"]])["length_ratio"] == 0.5
    assert values(Summarization(), ["北京，雨"], [["", "北京下雨了"]])["length_ratio"] == pytest.approx(0.6)


def test_signatures_name_the_rule_and_do_not_depend_on_options() -> None:
    english, chinese = ([m.signature for m in Summarization(language=name).metrics()] for name in ("en", "zh"))
    assert english == chinese
    rule = "words; characters in scripts without spaces"
    assert english[0] == f"rouge-score 0.1.2; rouge1; F1; {rule}; ASCII words stemmed; best reference"
    assert english[-1] == rule


def test_prompts_show_the_document_and_end_where_the_summary_follows() -> None:
    example = {"document": "A: hi", "summary": [" A greets. ", "A says hi."]}
    assert Summarization().render(example) == ("A: hi\n\nSummary:", " A greets.")
    assert Summarization(language="zh").render(example) == ("A: hi\n\n摘要：", "A greets.")
    assert Summarization(prompt="{document}\\nTL;DR ").render(example) == ("A: hi\nTL;DR ", "A greets.")
    assert Summarization().render({"document": "A: hi", "summary": None})[1] is None


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"names \{summary\}, which is what .* to predict.* inputs are document"):
        Summarization(prompt="{document} {summary}").validate()


def test_a_document_is_cut_and_a_summary_is_not(tokenizer: Any) -> None:
    task = Summarization()
    task.generation.max_new_tokens = 8
    summary = "a great story about refunds and delivery and the weather"
    example = {"document": "the film is good " * 60, "summary": [summary]}
    encoded = task.encode(example, tokenizer, 60)
    assert tokenizer.decode(encoded.target) == f" {summary}"
    assert len(encoded.ids) + len(encoded.target or []) + 1 <= 60
    assert tokenizer.decode(encoded.ids).endswith("\n\nSummary:")
    untruncated = task.encode(example, tokenizer, 10_000)
    assert untruncated.truncated == 0
    assert encoded.truncated == len(untruncated.ids) - (60 - len(encoded.target or []) - 1)


def test_the_prompt_leaves_room_for_the_generated_tokens(tokenizer: Any) -> None:
    task = Summarization()
    task.generation.max_new_tokens = 40
    for summary in (["bad"], None):  # so training and prediction see the same prompt
        encoded = task.encode({"document": "the film is good " * 60, "summary": summary}, tokenizer, 60)
        assert len(encoded.ids) == 20


def test_a_summary_that_leaves_no_room_is_refused_not_cut(tokenizer: Any) -> None:
    example = {"document": "the film", "summary": ["the film is good " * 60]}
    with pytest.raises(DataError, match=r"the prompt alone needs \d+ tokens and -\d+ are left.*max_new_tokens$"):
        Summarization().encode(example, tokenizer, 64)


def test_the_sample_is_fit_for_use(sample_rows: Any, assert_fit_for_use: Any) -> None:
    rows = sample_rows(Summarization())
    assert_fit_for_use(rows)
    for split in rows.values():
        assert all(len(e["summary"][0]) < len(e["document"]) for e in split)
