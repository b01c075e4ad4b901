"""The task question_generation: prompts, truncation, metrics, the round trip by a qa run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from gptask import DataError, Prediction, UserError, load_run, train
from gptask.config.schemas import Evaluate, Limit, Sample
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.metric import score_all
from gptask.training.evaluate import evaluate
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.question_generation import AnswerPlacement, QuestionGeneration, answer_span
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config

EXAMPLE = {
    "context": "Paris is old. It rains in Paris.",
    "answers": ["Paris", "in Paris"],
    "answer_start": [26],
    "question": ["Where does it rain?", "Where is the rain?"],
}


def test_prompts_show_the_answer_where_the_option_says() -> None:
    behind = "Context: Paris is old. It rains in Paris.\nAnswer: Paris\nQuestion:"
    assert QuestionGeneration().render(EXAMPLE) == (behind, " Where does it rain?")
    before = QuestionGeneration(answer=AnswerPlacement.before).render(EXAMPLE)[0]
    assert before == "Answer: Paris\nContext: Paris is old. It rains in Paris.\nQuestion:"
    marked = QuestionGeneration(answer=AnswerPlacement.marked).render(EXAMPLE)[0]
    assert marked == "Context: Paris is old. It rains in [Paris].\nAnswer: Paris\nQuestion:"
    chinese = {"context": "北京下雨。", "answers": ["北京"], "question": ["哪里下雨？"]}
    assert QuestionGeneration(language="zh").render(chinese) == ("文章：北京下雨。\n答案：北京\n问题：", "哪里下雨？")
    with_prompt = QuestionGeneration(answer=AnswerPlacement.before, prompt="{answers} < {context}?")
    assert with_prompt.render(EXAMPLE | {"question": None}) == ("Paris < Paris is old. It rains in Paris.?", None)


def test_the_answer_is_the_occurrence_nearest_to_its_offset() -> None:
    assert answer_span(EXAMPLE) == (26, 31)
    assert answer_span(EXAMPLE | {"answer_start": []}) == answer_span(EXAMPLE | {"answer_start": [5]}) == (0, 5)
    assert answer_span(EXAMPLE | {"answers": ["London"]}) is None


def test_an_answer_outside_the_context_can_not_be_marked() -> None:
    missing = EXAMPLE | {"answers": ["London"]}
    QuestionGeneration().check(missing)
    with pytest.raises(DataError, match="'London' is not in its context, so it can't be marked") as caught:
        QuestionGeneration(answer=AnswerPlacement.marked).check(missing)
    assert caught.value.field == "answers"
    with pytest.raises(DataError, match="the question is empty"):
        QuestionGeneration().check(EXAMPLE | {"question": [" "]})


@pytest.mark.parametrize("words", [0, 90, 180])
def test_of_a_long_context_the_part_around_the_answer_is_kept(words: int, tokenizer: Any) -> None:
    task = QuestionGeneration(answer=AnswerPlacement.marked, generation=GenerationOptions(max_new_tokens=8))
    filler = "the film is good " * 45
    context = f"{filler[: words * 4]}in Paris {filler[words * 4 :]}"
    example = {"context": context, "answers": ["Paris"], "answer_start": [context.index("Paris")], "question": ["bad?"]}
    encoded, untruncated = task.encode(example, tokenizer, 90), task.encode(example, tokenizer, 10_000)
    assert len(encoded.ids) <= 90 - 8
    text = tokenizer.decode(encoded.ids)
    assert "[Paris]" in text
    assert text.endswith("\nAnswer: Paris\nQuestion:")
    assert encoded.truncated == pytest.approx(len(untruncated.ids) - len(encoded.ids), abs=3)
    assert untruncated.truncated == 0
    if words == 90:
        left, right = text.split("[Paris]")
        assert len(left) == pytest.approx(len(right), rel=0.4), "the answer stands in the middle"


@pytest.mark.parametrize("room", [60, 75, 90])
def test_a_title_behind_the_answer_is_cut_before_the_context_is(room: int, tokenizer: Any) -> None:
    prompt = "{context}\nAnswer: {answers}\nTitle: {title}\nQuestion:"
    task = QuestionGeneration(prompt=prompt, generation=GenerationOptions(max_new_tokens=8))
    filler = "the film is good " * 8
    example = {"context": f"{filler}in Paris {filler}", "answers": ["Paris"], "answer_start": [], "title": "film " * 8}
    encoded, whole = (task.encode(example | {"question": ["bad?"]}, tokenizer, limit) for limit in (room, 10_000))
    text = tokenizer.decode(encoded.ids)
    assert len(encoded.ids) <= room - 8
    assert encoded.truncated == pytest.approx(len(whole.ids) - len(encoded.ids), abs=3)
    context, title = text.partition("\nAnswer: Paris\nTitle: ")[::2]
    assert (title == "\nQuestion:") or context == example["context"]
    assert "Paris" in context


def test_a_prompt_may_show_the_context_or_the_answer_alone(tokenizer: Any) -> None:
    from_answer = QuestionGeneration(prompt="{answers} ({topic}):")
    example = {"answers": ["Paris", "in Paris"], "topic": "rain", "question": ["Where?"]}
    assert from_answer.render(example) == ("Paris (rain):", " Where?")
    from_context = QuestionGeneration(prompt="{context}:")
    assert (
        tokenizer.decode(from_context.encode({"context": "in Paris", "question": None}, tokenizer, 99).ids)
        == "in Paris:"
    )


def test_all_questions_are_references() -> None:
    questions, task = ["Where is rain?", "Where?"], QuestionGeneration()
    scores, _ = score_all(task.metrics(), [Prediction(q) for q in questions], [EXAMPLE, EXAMPLE])
    values = {score.name: score.value for score in scores}
    streams = [[text, text] for text in EXAMPLE["question"]]
    assert values["bleu"] == pytest.approx(sacrebleu.corpus_bleu(questions, streams).score)
    assert values["rougeL"] == pytest.approx(100 * (6 / 7 + 2 / 5) / 2)  # both against "Where is the rain?"


@pytest.mark.parametrize(
    ("question", "reference", "tokenizer"),
    [
        ("北京今天下雨了吗？", "今天北京下大雨了吗？", "zh"),
        ("谁赢得2020年NBA总决赛？", "2020年谁赢得了NBA总决赛？", "zh"),
        ("東京へいつ行くの", "いつ東京へ行くの", "char"),
        ("Who won, in 1999?", "Who won it in 1999?", "13a"),
    ],
)
def test_bleu_takes_scripts_without_spaces_by_characters(question: str, reference: str, tokenizer: str) -> None:
    bleu, other = (QuestionGeneration(language=language).metrics()[0] for language in ("en", "zh"))
    assert bleu.signature == other.signature
    value = bleu.aggregate(np.array([bleu.statistics(Prediction(question), {"question": ["", reference]})]))
    assert value == pytest.approx(sacrebleu.BLEU(tokenize=tokenizer).corpus_score([question], [[reference]]).score)
    assert value > 20


@pytest.fixture(scope="module")
def qa_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a qa run of one step."""
    task = QuestionAnswering(generation=GenerationOptions(max_new_tokens=4, stop=["\n"]))
    config = small_config(tmp_path_factory.mktemp("qa"), task=task, trainer={"max_steps": 1, "accelerator": "cpu"})
    return train(replace(config, data=Sample(limit=Limit(4, 2, 2), max_tokens=400))).folder


def question_config(outputs: Path, **options: Any) -> Any:
    task = QuestionGeneration(generation=GenerationOptions(max_new_tokens=4), **options)
    config = small_config(outputs, task=task, trainer={"max_epochs": 1, "accelerator": "cpu"})
    config.backbone.context = 512
    return replace(config, data=Sample(limit=Limit(4, 2, 3), max_tokens=400))


def test_the_qa_run_answers_the_generated_questions(qa_run: Path, tmp_path: Path) -> None:
    run = train(question_config(tmp_path, qa_run=str(qa_run)))
    metric = run.metrics["metrics"]["round_trip_f1"]
    assert "SQuAD v1.1 normalisation" in metric["signature"]
    assert "; best reference; answers by model " in metric["signature"]
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    answering = load_run(qa_run)
    f1 = answering.task.metrics()[0]
    answers = answering.predict({"context": line["context"], "question": line["prediction"]} for line in lines)
    for line, answer in zip(lines, answers, strict=True):
        (expected,) = f1.statistics(answer, {"answers": line["answers"]})
        assert line["extra"] == {"answer": answer.value, "round_trip_f1": expected}
        assert line["statistics"]["round_trip_f1"] == [expected]
    assert "val/round_trip_f1" not in (run.folder / "metrics.csv").read_text()
    again = evaluate(Evaluate(task=run.task, data=Sample(limit=Limit(4, 2, 3), max_tokens=400), run=str(run.folder),
                              outputs=str(tmp_path)))  # fmt: skip
    assert json.loads((again / "metrics.json").read_text())["metrics"]["round_trip_f1"] == metric


def test_right_answers_score_and_an_empty_question_gets_no_answer(
    qa_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KnowsOneAnswer:
        def predict(self, rows: Any) -> Any:
            return (
                Prediction("in the Paris") for row in rows if row == {"context": EXAMPLE["context"], "question": "?"}
            )

    monkeypatch.setattr("gptask_tasks.question_generation.load_run", lambda folder: KnowsOneAnswer())
    task = QuestionGeneration(qa_run=str(qa_run))
    annotated = task.annotate_predictions([Prediction("?"), Prediction("")], [EXAMPLE, EXAMPLE])
    assert annotated[0].extra == {"answer": "in the Paris", "round_trip_f1": 1.0}  # as "in Paris", the second answer
    assert annotated[1].extra == {"answer": "", "round_trip_f1": 0.0}
    assert task.metrics()[-1].statistics(annotated[0], EXAMPLE) == [1.0]
    assert QuestionGeneration().annotate_predictions(annotated, [EXAMPLE, EXAMPLE]) is annotated


def test_a_wrong_qa_run_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder at nowhere"):
        train(question_config(tmp_path, qa_run="nowhere"))
    other = train(small_config(tmp_path, task=Sentiment(), trainer={"max_steps": 1, "accelerator": "cpu"}))
    with pytest.raises(UserError, match=r"is a run of Sentiment, which takes text; expected one that answers"):
        train(question_config(tmp_path, qa_run=str(other.folder)))
    assert not list(tmp_path.glob("question_generation/*"))


def test_the_sample_is_that_of_qa(sample_rows: Any, assert_fit_for_use: Any) -> None:
    rows = sample_rows(QuestionGeneration(answer=AnswerPlacement.marked))
    assert_fit_for_use(rows)
    assert all(e["question"][0].endswith("?") for split in rows.values() for e in split)
