"""SQuAD JSON as published, v1.1 and v2.0 (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822)."""

from collections.abc import Iterable, Iterator
from typing import Any


def flatten(articles: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per question, with ``answers`` and ``answer_start`` as lists; both absent in a test set without answers.

    Other members of paragraphs and questions stay, so that `data.columns` can name them.
    """
    for article in articles:
        for paragraph in article["paragraphs"]:
            shared = {"title": article.get("title", "")} | {k: v for k, v in paragraph.items() if k != "qas"}
            for question in paragraph["qas"]:
                row = shared | question
                if "answers" in question or question.get("is_impossible"):
                    answers = [] if question.get("is_impossible") else question["answers"]
                    row["answers"] = [answer["text"] for answer in answers]
                    row["answer_start"] = [answer.get("answer_start", -1) for answer in answers]
                yield row
