"""SQuAD JSON as published, v1.1 and v2.0 (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822)."""

from collections.abc import Iterable, Iterator
from typing import Any

from gptask.data.rows import RepeatedNames
from gptask.errors import DataError


def flatten(articles: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any] | DataError]:
    """One row per question, with ``answers`` and ``answer_start`` as lists; both absent in a test set without answers.

    Other members of paragraphs and questions stay, so that ``data.columns`` can name them.
    """
    for article in articles:
        for paragraph in article["paragraphs"]:
            members = {name: value for name, value in paragraph.items() if name != "qas"}
            paragraph_row = {"title": article.get("title", "")} | members
            for question in paragraph["qas"]:
                row = paragraph_row | question
                answers = question.get("answers") or []
                if "answers" in question or question.get("is_impossible"):
                    answers = [] if question.get("is_impossible") else question["answers"]
                    row["answers"] = [answer["text"] for answer in answers]
                    row["answer_start"] = [answer.get("answer_start", -1) for answer in answers]
                yield _mark_repeated(row, article, paragraph, question, answers)


def _mark_repeated(
    row: dict[str, Any], article: Any, paragraph: Any, question: Any, answers: list[Any]
) -> dict[str, Any] | DataError:
    """The row with the names that occur twice in the objects it was made of."""
    around = _repeated(article) | _repeated(paragraph) - question.keys()
    for name in ("paragraphs", "qas"):
        if name in around:
            return DataError(f"the member '{name}' occurs twice in one object above the question")
    in_answers = {name for answer in answers for name in _repeated(answer) & {"text", "answer_start"}}
    in_answers = {"answers" if name == "text" else name for name in in_answers}
    repeated = around | _repeated(question) | in_answers
    if not repeated:
        return row
    marked = RepeatedNames(row)
    marked.repeated = repeated
    return marked


def _repeated(members: Any) -> set[str]:
    return members.repeated if isinstance(members, RepeatedNames) else set()
