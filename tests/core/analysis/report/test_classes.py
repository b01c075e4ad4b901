"""Per-class scores and confusion matrix from details of any shape."""

from types import SimpleNamespace

import pytest
from gptask.analysis.report.classes import SIZE, classes


def of(details):
    return classes(SimpleNamespace(record=SimpleNamespace(result={"details": details})))


def test_matrix_scores_and_confusions():
    found = of(
        {
            "confusion_matrix": {"labels": ["a", "b"], "rows_are_true": [[3, 1], [0, 0]]},
            "per_class": {"a": {"f1": 85.714, "support": 4.0}, "b": {"f1": 0.0}},
        }
    )
    assert [[cell.count for cell in row] for row in found.matrix] == [[3, 1], [0, 0]]
    assert found.matrix[0][1].share == 25
    assert found.confusions == [("a", "b", 1, 25.0)]
    assert found.columns == ["f1", "support"]
    assert found.scores == [("a", ["85.71", "4"]), ("b", ["0", ""])]


def test_too_many_classes_for_a_matrix():
    count = SIZE + 1
    rows = [[2 if i == j else int(j == i + 1) for j in range(count)] for i in range(count)]
    found = of({"confusion_matrix": {"labels": list(range(count)), "rows_are_true": rows}})
    assert found.matrix == []
    assert found.confusions[0] == ("0", "1", 1, pytest.approx(100 / 3))


@pytest.mark.parametrize(
    "details",
    [
        None,
        {},
        {"confusion_matrix": [1]},
        {"confusion_matrix": {"labels": ["a"], "rows_are_true": [[1, 2]]}},
        {"confusion_matrix": {"labels": ["a"], "rows_are_true": [["x"]]}},
        {"per_class": {"a": 3}},
        {"other": 1},
    ],
)
def test_anything_else_is_left_out(details):
    assert of(details) is None
