"""Per-class scores and a confusion matrix, from details of any shape."""

from types import SimpleNamespace

import pytest
from gptask.analysis.report.classes import MAX_MATRIX_CLASSES, class_report


def report_of(details):
    return class_report(SimpleNamespace(record=SimpleNamespace(result={"details": details})))


def test_details_give_a_matrix_scores_and_confusions():
    report = report_of(
        {
            "confusion_matrix": {"labels": ["a", "b"], "rows_are_true": [[3, 1], [0, 0]]},
            "per_class": {"a": {"f1": 85.714, "support": 4.0}, "b": {"f1": 0.0}},
        }
    )
    assert [[cell.count for cell in row] for row in report.matrix] == [[3, 1], [0, 0]]
    assert report.matrix[0][1].share == 25
    assert report.confusions == [("a", "b", 1, 25.0)]
    assert report.columns == ["f1", "support"]
    assert report.scores == [("a", ["85.71", "4"]), ("b", ["0", ""])]


def test_too_many_classes_have_confusions_but_no_matrix():
    count = MAX_MATRIX_CLASSES + 1
    rows = [[2 if i == j else int(j == i + 1) for j in range(count)] for i in range(count)]
    report = report_of({"confusion_matrix": {"labels": list(range(count)), "rows_are_true": rows}})
    assert report.matrix == []
    assert report.confusions[0] == ("0", "1", 1, pytest.approx(100 / 3))


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
def test_details_of_another_shape_are_left_out(details):
    assert report_of(details) is None
