"""The task qa: SQuAD's scores against the official script, prompts, windows, spans, the sample."""

import collections
import itertools
import random
import re
import string
from types import SimpleNamespace
from typing import Any

import pytest
from gptask import DataError, Prediction, UserError
from gptask.model.generation.generate import GeneratedText
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.qa.metrics import AnswerExactMatch, AnswerF1

from tests.support.tokenizers import tokenizer_of

# --- the official evaluation, squad v2.0's evaluate-v2.0.py (normalize_answer as in v1.1), as published -------------


def normalize_answer(s: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def compute_f1(a_gold: str, a_pred: str) -> float:
    gold_toks, pred_toks = normalize_answer(a_gold).split(), normalize_answer(a_pred).split()
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def scores(answer: str, references: list[Any]) -> tuple[float, float]:
    """Exact match and F1."""
    return tuple(m().statistics(Prediction(answer), {"answers": references})[0] for m in (AnswerExactMatch, AnswerF1))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "references", "em", "f1"),
    [
        ("The Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("denver   broncos won", ["Denver Broncos"], 0, 0.8),  # P 2/3, R 1
        ("Carolina Panthers", ["Denver Broncos", "The Panthers of Carolina"], 0, 0.8),  # P 1, R 2/3 with the second
        ("gold gold", ["gold"], 0, 2 / 3),  # a bag, not a set: P 1/2, R 1
        ("well-known", ["wellknown"], 1, 1),  # punctuation goes without a space
        ("Santa Clara, California", ["Levi's Stadium"], 0, 0),
        ("the", ["a"], 1, 1),  # normalisation leaves nothing of either
        ("", [], 1, 1),  # no answer, and none given
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        ("", ["Oslo", ""], 0, 0),  # a blank member of a list is no answer
        ("", ["Oslo", None, "\u200b", " "], 0, 0),
        ("Oslo", ["", "Oslo"], 1, 1),
        ("", ["", " "], 1, 1),  # all blank: no answer
        ("Oslo", [""], 0, 0),
    ],
)
def test_squad_scores_by_hand(answer: str, references: list[str], em: float, f1: float) -> None:
    assert scores(answer, references) == (em, pytest.approx(f1))


def test_squad_scores_equal_the_official_script() -> None:
    generator = random.Random(0)
    words = ["the", "a", "An", "Denver", "denver's", "U.S.", "1,000", "—", "the,", "Broncos", "team", "é", "«x»",
             "β-carotene", "“Oslo”", "½", "İ", "snake_case", "x²"]  # fmt: skip
    for _ in range(500):
        answer, *references = (" ".join(generator.choices(words, k=generator.randint(1, 5))) for _ in range(3))
        em = max(int(normalize_answer(r) == normalize_answer(answer)) for r in references)
        assert scores(answer, references) == (em, pytest.approx(max(compute_f1(r, answer) for r in references)))


def test_chinese_is_scored_by_characters() -> None:
    assert scores("《北京》。", ["北京"]) == (1, 1)
    assert scores("北京大学", ["北京"]) == (0, pytest.approx(2 * 2 / 6))
    assert scores("2020年ＮＢＡ", ["nba 2020年"]) == (0, 1), "words and numbers end where Chinese begins"
    assert scores("1.5亿", ["15亿"]) == (1, 1), "as SQuAD's and MLQA's normalisation drop punctuation"


@pytest.mark.parametrize(
    ("answer", "reference", "em", "f1"),
    [
        ("東京タワー", "東京", 0, 2 * 2 / 7),
        ("สวัสดี", "สวัสดี ", 1, 1),
        ("в «Осло»", "Осло", 0, 2 / 3),  # words: в, осло
        ("दिल्ली।", "दिल्ली", 1, 1),
        ("دمشق،", "دمشق", 1, 1),
        ("서울에서", "서울", 0, 0),  # Korean has spaces, as in KorQuAD's exact match
        ("cafe\u0301", "café", 1, 1),
    ],
)
def test_answers_in_other_scripts_lose_their_punctuation(answer: str, reference: str, em: float, f1: float) -> None:
    assert scores(answer, [reference]) == (em, pytest.approx(f1))


def test_one_signature_serves_all_languages() -> None:
    english, chinese = ([m.signature for m in QuestionAnswering(language=name).metrics()] for name in ("en", "zh"))
    assert english == chinese
    assert english[0] == "SQuAD v1.1 normalisation, characters in scripts without spaces; best reference"


# --- prompts, options and checks ------------------------------------------------------------------------------------

EXAMPLE = {"context": "Ada was born in London.", "question": "Where?", "answers": ["London"], "answer_start": [16]}


def test_prompts_show_context_and_question_in_the_order_that_the_answer_needs() -> None:
    assert QuestionAnswering().render(EXAMPLE) == (
        "Context: Ada was born in London.\nQuestion: Where?\nAnswer:",
        " London",
    )
    assert QuestionAnswering(language="zh").render(EXAMPLE)[0] == "文章：Ada was born in London.\n问题：Where?\n答案："
    assert QuestionAnswering(language="zh").render(EXAMPLE | {"answers": ["伦敦"]})[1] == "伦敦"
    span = QuestionAnswering(answer=AnswerForm.span)
    around = span.render(EXAMPLE)[0].split(EXAMPLE["context"])
    assert around == ["Question: Where?\nContext: ", "\nQuestion: Where?\nAnswer:"], "before its context, and again"


def test_a_prompt_may_show_a_title_beside_every_window_of_a_context(tokenizer: Any) -> None:
    task = QuestionAnswering(answer=AnswerForm.span, stride=4, prompt="{title}: {question}|{context}|{title}")
    task.validate()
    example = {
        "context": "w " * 60 + "Rome",
        "question": "q",
        "answers": ["Rome"],
        "answer_start": [],
        "title": "A {b}",
    }
    parts = task.encode(example, tokenizer, 40)
    assert len(parts) > 1
    for part in parts:
        text = tokenizer.decode(part.ids)
        assert (text.startswith("A {b}: q|"), text.endswith("|A {b}")) == (True, True)


def test_a_question_without_context_needs_free_answers() -> None:
    task = QuestionAnswering(prompt="Q: {question}\nA:", extractive=False)
    task.validate()
    example = {"question": "Where?", "answers": ["London"], "answer_start": []}
    task.check(example)
    assert task.render(example) == ("Q: Where?\nA:", " London")


def test_spans_are_learned_in_smaller_steps() -> None:
    assert QuestionAnswering(answer=AnswerForm.span).examples_per_step < QuestionAnswering().examples_per_step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "de"}, "language='de' has no preset prompt"),
        ({"answer": AnswerForm.span, "extractive": False}, "extractive=false needs task.answer=generate"),
        ({"answer": AnswerForm.span, "prompt": "{question}"}, r"must hold \{context\} once"),
        ({"stride": 0}, "must be at least 1"),
        ({"max_answer_tokens": 0}, "must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuestionAnswering(**options).validate()


def test_a_question_needs_an_answer_from_its_context_unless_the_options_allow_others() -> None:
    task = QuestionAnswering()
    task.check(EXAMPLE)
    with pytest.raises(DataError, match="the question has no answer"):
        task.check(EXAMPLE | {"answers": []})
    with pytest.raises(DataError, match="the answer 'Paris' is not in its context"):
        task.check(EXAMPLE | {"answers": ["Paris"]})
    QuestionAnswering(extractive=False).check(EXAMPLE | {"answers": ["Paris"]})
    QuestionAnswering(unanswerable=True).check(EXAMPLE | {"answers": []})
    QuestionAnswering(unanswerable=True).check(EXAMPLE | {"answers": [""]})


@pytest.mark.parametrize(("language", "word"), [("en", "unanswerable"), ("zh", "无法回答")])
def test_no_answer_is_learned_as_a_word_and_predicted_as_an_empty_text(language: str, word: str) -> None:
    task = QuestionAnswering(unanswerable=True, language=language)
    assert str(task.render(EXAMPLE | {"answers": []})[1]).strip() == word
    assert task.target(EXAMPLE | {"answers": ["", "London"]}) == "London"
    assert task.prediction(EXAMPLE, [GeneratedText(f" {word.capitalize()}\n", 0.7)]).value == ""
    assert QuestionAnswering(language=language).prediction(EXAMPLE, [GeneratedText(word, 0.7)]).value == word


# --- spans --------------------------------------------------------------------------------------------------------


def spans(context: str, answers: Any, tokenizer: Any, start: Any = None, max_tokens: int = 60, stride: int = 8) -> Any:
    task = QuestionAnswering(answer=AnswerForm.span, stride=stride, prompt="{question}|{context}|")
    example = {"context": context, "question": "q", "answers": answers, "answer_start": start or []}
    return task.encode(example, tokenizer, max_tokens)


def labelled(part: Any, context: str) -> str | None:
    """The text a window's label points at, None for its last token ("not here")."""
    first, last = part.label
    if first == len(part.ids) - 1:
        assert last == first
        return None
    begin = part.extra["first"]
    return context[part.extra["left"][first - begin] : part.extra["right"][last - begin]].strip()


def test_windows_cover_a_context_and_overlap(tokenizer: Any) -> None:
    context = " ".join(f"w{n}" for n in range(60))
    parts = spans(context, ["w33"], tokenizer)
    assert len(parts) > 2
    assert all(len(part.ids) <= 60 for part in parts)
    covered = {
        k
        for part in parts
        for k, right in zip(part.extra["left"], part.extra["right"], strict=True)
        for k in range(k, right)
    }
    assert covered == set(range(len(context)))
    for one, two in itertools.pairwise(parts):
        assert len(set(one.extra["left"]) & set(two.extra["left"])) == 8
    assert {tuple(part.ids[:2]) for part in parts} == {tuple(tokenizer("q|")["input_ids"])}


def test_an_answer_is_labelled_in_windows_that_hold_all_of_it(tokenizer: Any) -> None:
    context = " ".join(f"w{n}" for n in range(60))
    for n in range(60):  # at every place, the windows' edges among them
        start = context.index(f"w{n}")
        labels = [labelled(part, context) for part in spans(context, [f"w{n}"], tokenizer, [start])]
        assert set(labels) <= {f"w{n}", None}
        assert f"w{n}" in labels


def test_an_answer_longer_than_the_overlap_may_be_in_no_window(tokenizer: Any) -> None:
    context = " ".join(f"w{n}" for n in range(60))
    (first, second, *_) = spans(context, ["x"], tokenizer)
    edge = context[second.extra["left"][0] - 4 : first.extra["right"][-1] + 4]
    assert {labelled(part, context) for part in spans(context, [edge], tokenizer)} == {None}


@pytest.mark.parametrize(("published", "expected"), [(0, 0), (14, 16), (99, 34)])
def test_wrong_offsets_take_the_nearest_occurrence(tokenizer: Any, published: int, expected: int) -> None:
    context = "Ada met Bob in. Ada Byron and then Ada left"
    starts = [m.start() for m in re.finditer("Ada", context)]
    assert starts == [0, 16, 35]
    (part,) = spans(context, ["Ada"], tokenizer, [published])
    first = part.label[0] - part.extra["first"]
    assert abs(part.extra["left"][first] - expected) <= 1  # a token may begin with its space


def test_an_answer_outside_the_context_is_passed_over_for_the_next(tokenizer: Any) -> None:
    context = "Ada met Bob in Paris"
    (part,) = spans(context, ["Charles", "Bob"], tokenizer, [0, 8])
    assert labelled(part, context) == "Bob"


def test_no_answer_is_labelled_and_an_unknown_one_is_not(tokenizer: Any) -> None:
    (none,) = spans("Ada met Bob", [], tokenizer)
    (unknown,) = spans("Ada met Bob", None, tokenizer)
    assert labelled(none, "Ada met Bob") is None
    assert unknown.label is None


def test_a_question_that_leaves_no_room_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"leave \d+ of 10 tokens for the context"):
        spans("Ada met Bob", ["Bob"], tokenizer, max_tokens=10)


def best_of(logits: Any, max_answer_tokens: int = 30) -> Any:
    """The best span of a window of six tokens after two of a question; the ninth position is the last one."""
    import torch
    from gptask_tasks.qa.span import SpanHead

    scores = torch.full((9, 2), -20.0)
    for position, (start, end) in logits.items():
        scores[position] = torch.tensor([start, end])
    left, right = list(range(0, 60, 10)), list(range(10, 70, 10))
    head = SpanHead(SimpleNamespace(channels=8), max_answer_tokens)  # type: ignore[arg-type]
    return head._best_span(scores.log_softmax(0), 2, left, right, 8)


def test_the_best_allowed_span_is_taken() -> None:
    assert (best_of({3: (9.0, 0.0), 5: (0.0, 9.0)}).start, best_of({3: (9.0, 0.0), 5: (0.0, 9.0)}).end) == (10, 40)
    backwards = best_of({5: (9.0, 0.0), 3: (0.0, 9.0), 6: (0.0, 5.0)})
    assert (backwards.start, backwards.end) == (30, 50), "an end before its start is not allowed"
    short = best_of({2: (9.0, 0.0), 7: (0.0, 9.0), 3: (0.0, 4.0)}, max_answer_tokens=2)
    assert (short.start, short.end) == (0, 20), "nor is one longer than task.max_answer_tokens"
    no_answer = best_of({8: (9.0, 9.0), 4: (1.0, 1.0)})
    assert no_answer.null_score > no_answer.score
    assert (no_answer.start, no_answer.end) == (20, 30), "the null position is no span"


def test_the_likeliest_span_of_all_windows_wins() -> None:
    from gptask_tasks.qa.span import AnswerSpan, best_span

    windows = [AnswerSpan(3, 9, 0.1, null_score=-0.2, score=-2.3), AnswerSpan(40, 44, 0.5, null_score=-3.0, score=-0.7)]
    assert best_span(windows, unanswerable=False, threshold=0.0) is windows[1]
    assert best_span(windows, unanswerable=True, threshold=0.0) is windows[1], "one window has the answer"
    assert best_span(windows, unanswerable=True, threshold=-3.0).end == 0
    unsure = [AnswerSpan(3, 9, 0.1, null_score=-0.2, score=-2.3), AnswerSpan(40, 44, 0.1, null_score=-0.1, score=-2.0)]
    assert best_span(unsure, unanswerable=True, threshold=0.0).end == 0
    assert best_span(unsure, unanswerable=True, threshold=5.0) is unsure[1]
    assert best_span(unsure, unanswerable=False, threshold=0.0) is unsure[1]


def test_a_span_is_cut_from_the_context_without_its_space() -> None:
    from gptask_tasks.qa.span import AnswerSpan

    task = QuestionAnswering(answer=AnswerForm.span, unanswerable=True)
    prediction = task.prediction(EXAMPLE, [AnswerSpan(15, 22, 0.8, null_score=-5.0, score=-0.2)])
    assert (prediction.value, prediction.score) == ("London", 0.8)
    assert task.prediction(EXAMPLE, [AnswerSpan(15, 22, 0.1, null_score=-0.1, score=-2.3)]).value == ""


def test_pads_and_the_question_are_never_part_of_a_span(backbone: Any) -> None:
    import torch
    from gptask.data.datamodule import collate, encode

    task = QuestionAnswering(answer=AnswerForm.span, stride=8)
    texts = ["the film is good", "the weather in Paris is bad and the film is a great story about refunds"]
    examples = [{"context": text, "question": "is it?", "answers": ["film"], "answer_start": []} for text in texts]
    items = [item for example in examples for item in encode(task, example, backbone.tokenizer, 128)]
    batch = collate(items)
    scores = task.head(backbone).scores(backbone.hidden(batch.input_ids), batch)
    for row, item in zip(scores, items, strict=True):
        first = item["extra"]["first"]
        allowed = {*range(first, first + len(item["extra"]["left"])), item["length"] - 1}
        assert set(torch.isfinite(row[:, 0]).nonzero().flatten().tolist()) == allowed
        torch.testing.assert_close(row.exp().sum(0), torch.ones(2))


def test_the_sample_holds_its_answers_at_their_offsets(sample_rows: Any, assert_fit_for_use: Any) -> None:
    rows = sample_rows(QuestionAnswering())
    assert_fit_for_use(rows)
    for example in (example for split in rows.values() for example in split):
        assert example["answers"]
        for answer, start in zip(example["answers"], example["answer_start"], strict=True):
            assert example["context"][start : start + len(answer)] == answer


@pytest.mark.parametrize("kind", ["byte-level", "characters", "sentencepiece-first"])
def test_a_window_that_ends_within_a_character_marks_the_whole_answer(kind):
    tokenizer, answer = tokenizer_of(kind), "龘😀"
    task = QuestionAnswering(answer=AnswerForm.span, stride=12, prompt="{question}{context}")
    for shift in range(8):
        context = f"{'x' * shift}{'好看' * 12}{answer}{'𠮷退' * 12}"
        example = {"context": context, "question": "?", "answers": [answer], "answer_start": [context.index(answer)]}
        windows = task.encode(example, tokenizer, 40)
        marked = [w for w in windows if w.label[0] != len(w.ids) - 1]
        assert marked
        for window in marked:
            start, end = (place - window.extra["first"] for place in window.label)
            assert context[window.extra["left"][start] : window.extra["right"][end]] == answer
