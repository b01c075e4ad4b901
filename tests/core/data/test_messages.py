"""Conversations in the forms that files have become one form, or an error that names the message."""

import pytest
from gptask import Field, Kind
from gptask.config.schemas import Files
from gptask.data.columns import Columns
from gptask.data.messages import format_message, parse_messages
from gptask.data.rows import Row
from gptask.errors import DataError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


class Dialogue:
    """As much of a task as columns need; it converts rows with a question into messages."""

    def fields(self):
        return [Field("messages", Kind.MESSAGES), Field("mood", required=False)]

    def convert_row(self, row):
        if isinstance(row, dict) and "question" in row:
            return row | {"messages": [{"from": "human", "value": row["question"]}]}
        return row


@pytest.mark.parametrize(
    "cell",
    [
        TURNS,
        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
        [{"role": "User", "content": "hi", "name": "Ann"}, {"role": "ASSISTANT", "content": "hello"}],
        [{"role": "user", "content": [{"type": "text", "text": "h"}, {"text": "i"}]}, TURNS[1]],
        [{"role": "system", "content": " "}, *TURNS],
    ],
)
def test_published_forms_become_role_and_content(cell):
    assert parse_messages(cell) == TURNS


def test_a_text_is_a_users_turn():
    assert parse_messages("hi\nyou") == [{"role": "user", "content": "hi\nyou"}]
    assert parse_messages(" ") == []


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([*TURNS, {"role": "tool", "content": "x"}], "message 3 has the role 'tool'; expected system"),
        ([{"role": "user"}], "message 1 has the keys role; expected role and content"),
        (["hi"], "message 1 has 'hi'"),
        ([TURNS[0], {"role": "assistant", "content": None}], "message 2 holds 'None' instead of a text"),
        ([TURNS[0], {"role": "assistant", "content": " "}], r"message 2 \(assistant\) is empty"),
        ([*TURNS, {"role": "system", "content": "x"}], "message 3 is a system message, which must come first"),
    ],
)
def test_the_error_of_a_bad_message_names_it(cell, message):
    with pytest.raises(DataError, match=message):
        parse_messages(cell)


@pytest.mark.parametrize("value", [3, {"role": "user", "content": "hi"}])
def test_a_conversation_must_be_a_list(value):
    with pytest.raises(DataError, match="the messages must be a list of messages"):
        Columns(Dialogue(), Files()).example(Row(1, {"messages": value}))


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(DataError, match="surrogate"):
        Columns(Dialogue(), Files()).example(Row(1, {"messages": [{"role": "user", "content": "\ud800"}]}))


def test_an_empty_conversation_is_refused():
    with pytest.raises(DataError, match="the messages is empty"):
        Columns(Dialogue(), Files()).example(Row(1, {"messages": []}))


def test_a_task_converts_rows_after_the_columns_are_mapped():
    columns = Columns(Dialogue(), Files())
    assert columns.example(Row(1, {"question": "hi", "mood": "gay"})) == {"messages": TURNS[:1], "mood": "gay"}
    assert columns.example(Row(1, {"messages": TURNS})) == {"messages": TURNS, "mood": None}
    mapped = Columns(Dialogue(), Files(columns={"messages": "talk.turns", "mood": "how"}))
    assert mapped.example(Row(1, {"talk": {"turns": TURNS}, "how": "sad"})) == {"messages": TURNS, "mood": "sad"}
    with pytest.raises(DataError, match=r"no column 'talk\.turns' for messages"):
        mapped.example(Row(1, {"chat": TURNS}))


def test_messages_are_formatted_line_by_line():
    assert format_message(TURNS) == "user: hi\nassistant: hello"
    assert (
        format_message(["a"]) is format_message("a") is format_message([]) is format_message([{"role": "user"}]) is None
    )
