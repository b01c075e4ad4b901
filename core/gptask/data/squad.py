"""SQuAD JSON as published, v1.1 and v2.0 (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822)."""

from collections.abc import Iterable, Iterator
from typing import Any


def flatten(articles: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per question, with ``answers`` and ``answer_start`` as lists; both absent in a test set without answers.

    Other members of paragraphs and questions stay, so that ``data.columns`` can name them.
    """
    for article in articles:
        for paragraph in article["paragraphs"]:
            members = {name: value for name, value in paragraph.items() if name != "qas"}
            paragraph_row = {"title": article.get("title", "")} | members
            for question in paragraph["qas"]:
                row = paragraph_row | question
                if "answers" in question or question.get("is_impossible"):
                    answers = [] if question.get("is_impossible") else question["answers"]
                    row["answers"] = [answer["text"] for answer in answers]
                    row["answer_start"] = [answer.get("answer_start", -1) for answer in answers]
                yield row
