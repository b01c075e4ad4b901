"""The parts that messages are made of."""

from gptask.errors import aligned


def test_a_table_is_aligned_at_the_left_and_at_the_right() -> None:
    assert aligned([["label", "train"], ["a", "1,000"], ["bcdefg", "2"]]) == [
        "label   train",
        "a       1,000",
        "bcdefg      2",
    ]
    assert aligned([["a", "b"], ["cc", ""]], left=2) == ["a   b", "cc"]
