"""What a finished run shows of its first predictions."""

import pytest
from gptask.cli.run_summary import _joined


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["a short\ntext"], "a short text"),
        (["p" * 200], "p" * 19 + "…"),
        (["p" * 200, "why so?"], "p" * 12 + "… | why so?"),
        (["p" * 200, "q" * 200], "p" * 9 + "… | " + "q" * 9 + "…"),
    ],
)
def test_the_longest_inputs_are_cut_and_all_of_them_are_seen(texts, line):
    assert _joined(texts, 20) == line
