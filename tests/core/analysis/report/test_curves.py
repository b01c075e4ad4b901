"""Learning curves from metrics.csv and from the files before it."""

import numpy as np
import pytest
from gptask.analysis.report.curves import MAX_POINTS, learning_curves
from gptask.errors import UserError


def test_columns_become_curves(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train/loss,val/acc,other\n0,1,0.5,,1\n0,2,0.4,,1\n0,2,,80,\n0,3,nan,,\n"
    )
    logged = learning_curves(tmp_path)
    assert logged.keys() == {"train/loss", "val/acc"}
    np.testing.assert_array_equal(logged["train/loss"], [[1, 2], [0.5, 0.4]])
    np.testing.assert_array_equal(logged["val/acc"], [[2], [80]])


def test_a_resumed_run_continues_the_curve_from_its_checkpoint(tmp_path):
    head = "step,train/loss\n"
    (tmp_path / "metrics.before-resume-1.csv").write_text(head + "1,9\n2,8\n3,7\n")
    (tmp_path / "metrics.before-resume-2.csv").write_text(head + "3,6\n4,5\n")
    (tmp_path / "metrics.before-resume-10.csv").write_text(head + "4,4\n")
    (tmp_path / "metrics.csv").write_text(head + "5,3\n")
    np.testing.assert_array_equal(learning_curves(tmp_path)["train/loss"], [[1, 2, 3, 4, 5], [9, 8, 6, 4, 3]])


def test_a_long_curve_is_averaged_piece_by_piece(tmp_path):
    rows = "".join(f"{step},{step % 2}\n" for step in range(1, 4 * MAX_POINTS + 1))
    (tmp_path / "metrics.csv").write_text("step,train/loss\n" + rows)
    steps, values = learning_curves(tmp_path)["train/loss"]
    assert len(steps) == MAX_POINTS
    np.testing.assert_allclose(values, 0.5)
    assert steps[0] == 2.5


def test_a_folder_without_metrics_csv_has_no_curves(tmp_path):
    assert learning_curves(tmp_path) == {}


@pytest.mark.parametrize("text", ["step,val/a\n1,x\n", "val/a\n1\n", "step,val/a\n,1\n", "step,val/a\n1,\xff\n"])
def test_a_damaged_file_is_an_error(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
        learning_curves(tmp_path)
