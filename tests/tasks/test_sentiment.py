"""The task sentiment: label words, prompts, the sample."""

from collections import Counter
from typing import Any

from gptask_tasks.sentiment import Sentiment


def test_grades_have_preset_names_and_words() -> None:
    task = Sentiment(graded=True, label_words={"5": "superb"})
    task.validate()
    assert task.labels == ["1", "2", "3", "4", "5"]
    assert [task.label_word(label) for label in task.labels] == [" terrible", " bad", " okay", " good", " superb"]


def test_labels_that_the_user_names_are_kept() -> None:
    task = Sentiment(graded=True, labels=["1", "3", "5"])
    task.validate()
    assert task.labels == ["1", "3", "5"]


def test_label_words_are_in_the_language_of_the_prompt() -> None:
    assert Sentiment().label_word("negative") == " negative"
    assert Sentiment(language="zh").label_word("negative") == "负面"
    assert Sentiment(language="zh", label_words={"negative": "差评"}).label_word("negative") == "差评"
    assert Sentiment(language="zh", graded=True).label_word("1") == "很差"
    assert Sentiment(language="zh").label_word("mixed") == "mixed"


def test_prompts_show_a_review_and_end_where_the_label_follows() -> None:
    example = {"text": "Fine.", "label": "neutral"}
    assert Sentiment().render(example) == ("Review: Fine.\nSentiment:", " neutral")
    assert Sentiment(language="zh").render(example) == ("评论：Fine.\n情感：", "中性")


def test_the_sample_is_balanced(sample_rows: Any, assert_fit_for_use: Any) -> None:
    rows = sample_rows(Sentiment())
    assert_fit_for_use(rows)
    for split in rows.values():
        counts = Counter(example["label"] for example in split)
        assert counts.keys() == {"negative", "neutral", "positive"}
        assert max(counts.values()) <= 1.1 * min(counts.values())


def test_the_grades_of_the_sample_agree_with_its_polarities(sample_rows: Any) -> None:
    with_polarity, graded = sample_rows(Sentiment()), sample_rows(Sentiment(graded=True))
    polarity = {"1": "negative", "2": "negative", "3": "neutral", "4": "positive", "5": "positive"}
    for split in with_polarity:
        assert [e["label"] for e in with_polarity[split]] == [polarity[e["label"]] for e in graded[split]]
        assert len({e["label"] for e in graded[split]}) == 5
