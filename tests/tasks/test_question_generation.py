import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from gptask import DataError, Prediction, UserError, load_run, train
from gptask.config.schemas import Evaluate, Limit, Sample
from gptask.plugins.generation_options import GenerationOptions
from gptask.plugins.metric import score_all
from gptask.training.evaluate import evaluate
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.question_generation import Place, QuestionGeneration, place
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config

EXAMPLE = {
    "context": "Paris is old. It rains in Paris.",
    "answers": ["Paris", "in Paris"],
    "answer_start": [26],
    "question": ["Where does it rain?", "Where is the rain?"],
}


def test_prompts() -> None:
    behind = "Context: Paris is old. It rains in Paris.\nAnswer: Paris\nQuestion:"
    assert QuestionGeneration().render(EXAMPLE) == (behind, " Where does it rain?")
    before = QuestionGeneration(answer=Place.before).render(EXAMPLE)[0]
    assert before == "Answer: Paris\nContext: Paris is old. It rains in Paris.\nQuestion:"
    marked = QuestionGeneration(answer=Place.marked).render(EXAMPLE)[0]
    assert marked == "Context: Paris is old. It rains in [Paris].\nAnswer: Paris\nQuestion:"
    chinese = {"context": "北京下雨。", "answers": ["北京"], "question": ["哪里下雨？"]}
    assert QuestionGeneration(language="zh").render(chinese) == ("文章：北京下雨。\n答案：北京\n问题：", "哪里下雨？")
    own = QuestionGeneration(answer=Place.before, prompt="{answers} < {context}?")
    assert own.render(EXAMPLE | {"question": None}) == ("Paris < Paris is old. It rains in Paris.?", None)


def test_the_answer_is_the_occurrence_nearest_to_its_offset() -> None:
    assert place(EXAMPLE) == (26, 31)
    assert place(EXAMPLE | {"answer_start": []}) == place(EXAMPLE | {"answer_start": [5]}) == (0, 5)
    assert place(EXAMPLE | {"answers": ["London"]}) is None


def test_an_answer_that_is_not_there_can_not_be_marked() -> None:
    missing = EXAMPLE | {"answers": ["London"]}
    QuestionGeneration().check(missing)
    with pytest.raises(DataError, match="'London' is not in its context, so it can't be marked"):
        QuestionGeneration(answer=Place.marked).check(missing)
    with pytest.raises(DataError, match="the question is empty"):
        QuestionGeneration().check(EXAMPLE | {"question": [" "]})


@pytest.mark.parametrize("words", [0, 90, 180])
def test_of_a_long_context_the_part_around_the_answer_is_kept(words: int, tokenizer: Any) -> None:
    task = QuestionGeneration(answer=Place.marked, generation=GenerationOptions(max_new_tokens=8))
    filler = "the film is good " * 45
    context = f"{filler[: words * 4]}in Paris {filler[words * 4 :]}"
    example = {"context": context, "answers": ["Paris"], "answer_start": [context.index("Paris")], "question": ["bad?"]}
    encoded, whole = task.encode(example, tokenizer, 90), task.encode(example, tokenizer, 10_000)
    assert len(encoded.ids) <= 90 - 8
    text = tokenizer.decode(encoded.ids)
    assert "[Paris]" in text
    assert text.endswith("\nAnswer: Paris\nQuestion:")
    assert encoded.truncated == pytest.approx(len(whole.ids) - len(encoded.ids), abs=3)
    assert whole.truncated == 0
    if words == 90:
        left, right = text.split("[Paris]")
        assert len(left) == pytest.approx(len(right), rel=0.4), "it stands in the middle"


def test_all_questions_count_when_scoring() -> None:
    said, task = ["Where is rain?", "Where?"], QuestionGeneration()
    scores, _ = score_all(task.metrics(), [Prediction(s) for s in said], [EXAMPLE, EXAMPLE])
    found = {score.name: score.value for score in scores}
    streams = [[text, text] for text in EXAMPLE["question"]]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, streams).score)
    assert found["rougeL"] == pytest.approx(100 * (6 / 7 + 2 / 5) / 2)  # both against "Where is the rain?"


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a qa task that has learned nothing."""
    task = QuestionAnswering(generation=GenerationOptions(max_new_tokens=4, stop=["\n"]))
    given = small_config(tmp_path_factory.mktemp("qa"), task=task, trainer={"max_steps": 1, "accelerator": "cpu"})
    return train(replace(given, data=Sample(limit=Limit(4, 2, 2), max_tokens=400))).folder


def asking(outputs: Path, **options: Any) -> Any:
    task = QuestionGeneration(generation=GenerationOptions(max_new_tokens=4), **options)
    given = small_config(outputs, task=task, trainer={"max_epochs": 1, "accelerator": "cpu"})
    given.backbone.context = 512
    return replace(given, data=Sample(limit=Limit(4, 2, 3), max_tokens=400))


def test_the_qa_run_answers_what_was_asked(answering: Path, tmp_path: Path) -> None:
    run = train(asking(tmp_path, qa_run=str(answering)))
    metric = run.metrics["metrics"]["round_trip_f1"]
    assert "SQuAD v1.1 normalisation; best reference; answers by model " in metric["signature"]
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text("utf-8").splitlines()]
    qa = load_run(answering)
    f1 = qa.task.metrics()[0]
    answers = qa.predict({"context": line["context"], "question": line["prediction"]} for line in lines)
    for line, answer in zip(lines, answers, strict=True):
        (expected,) = f1.statistics(answer, {"answers": line["answers"]})
        assert line["extra"] == {"answer": answer.value, "round_trip_f1": expected}
        assert line["statistics"]["round_trip_f1"] == [expected]
    assert "val/round_trip_f1" not in (run.folder / "metrics.csv").read_text()
    again = evaluate(Evaluate(task=run.task, data=Sample(limit=Limit(4, 2, 3), max_tokens=400), run=str(run.folder),
                              outputs=str(tmp_path)))  # fmt: skip
    assert json.loads((again / "metrics.json").read_text())["metrics"]["round_trip_f1"] == metric


def test_right_answers_score_and_no_question_gets_none(answering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Knows:
        def predict(self, rows: Any) -> Any:
            return (
                Prediction("in the Paris") for row in rows if row == {"context": EXAMPLE["context"], "question": "?"}
            )

    monkeypatch.setattr("gptask_tasks.question_generation.load_run", lambda folder: Knows())
    task = QuestionGeneration(qa_run=str(answering))
    said = task.annotate_predictions([Prediction("?"), Prediction("")], [EXAMPLE, EXAMPLE])
    assert said[0].extra == {"answer": "in the Paris", "round_trip_f1": 1.0}  # as "in Paris", the second answer
    assert said[1].extra == {"answer": "", "round_trip_f1": 0.0}
    assert task.metrics()[-1].statistics(said[0], EXAMPLE) == [1.0]
    assert QuestionGeneration().annotate_predictions(said, [EXAMPLE, EXAMPLE]) is said


def test_a_wrong_qa_run_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder at nowhere"):
        train(asking(tmp_path, qa_run="nowhere"))
    other = train(small_config(tmp_path, task=Sentiment(), trainer={"max_steps": 1, "accelerator": "cpu"}))
    with pytest.raises(UserError, match=r"is a run of Sentiment, which takes text; expected one that answers"):
        train(asking(tmp_path, qa_run=str(other.folder)))
    assert not list(tmp_path.glob("question_generation/*"))


def test_qas_sample_is_read(sample_rows: Any, assert_fit_for_use: Any) -> None:
    rows = sample_rows(QuestionGeneration(answer=Place.marked))
    assert_fit_for_use(rows)
    assert all(e["question"][0].endswith("?") for split in rows.values() for e in split)
