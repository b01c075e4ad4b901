"""Markdown that nothing in a value can break."""

from gptask.runs.markdown import code_span, escaped, fenced, one_line, table


def test_a_value_becomes_one_line():
    assert one_line("a\n\tb\x00 c") == "a b c"


def test_backticks_in_a_value_do_not_end_a_code_span():
    assert code_span("plain") == "`plain`"
    assert code_span("a `b` ``c") == "``` a `b` ``c ```"
    assert code_span("") == "`  `"


def test_markup_in_prose_is_escaped():
    assert escaped("*a* [b](c) <d>") == r"\*a\* \[b\](c) \<d\>"


def test_a_bar_does_not_end_a_cell():
    assert table(["a", "b"], [["`x|y`", r"z\|"]]) == "| a | b |\n| --- | --- |\n| `x\\|y` | z\\| |"


def test_a_code_block_is_longer_fenced_than_its_text():
    assert fenced("text", "```\na\n```\n") == "````text\n```\na\n```\n````"
