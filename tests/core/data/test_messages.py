"""Conversations in the forms that files have become one form, or an error that names the message."""

import pytest
from gptask import Field, Kind
from gptask.config.schemas import Files
from gptask.data.columns import Columns
from gptask.data.messages import format_message, is_learned, parse_messages, unused_members
from gptask.data.rows import Row
from gptask.errors import DataError

from tests.support.stub_tasks import TaskWithFields

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


class Dialogue(TaskWithFields):
    """A task that converts rows with a question into messages."""

    def __init__(self):
        super().__init__(Field("messages", Kind.MESSAGES), Field("mood", required=False))

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


# --- messages that are not learned, and members besides role and content ----------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"weight": "0"},
        {"train": False},
        {"loss": False},
        {"train": "false", "weight": 1},
    ],
)
def test_an_answer_of_weight_0_keeps_it_in_one_form(members):
    messages = parse_messages([TURNS[0], TURNS[1] | members])
    assert messages == [TURNS[0], TURNS[1] | {"weight": "0"}]
    assert [is_learned(message) for message in messages] == [False, False]
    assert parse_messages(messages) == messages
    assert format_message(messages) == "user: hi\nassistant: hello"


@pytest.mark.parametrize(
    "cell",
    [
        [TURNS[0], TURNS[1] | {"weight": 1}],
        [TURNS[0] | {"weight": 0}, TURNS[1] | {"train": True, "weight": None}],
        [{"from": "human", "value": "hi", "train": False}, {"from": "gpt", "value": "hello", "loss": 1}],
        [TURNS[0], TURNS[1] | {"tool_calls": [], "function_call": None, "refusal": None}],
    ],
)
def test_members_that_change_nothing_leave_the_messages_as_they_are(cell):
    assert parse_messages(cell) == TURNS
    assert is_learned(parse_messages(cell)[1])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"weight": 0.5}, "message 2 has weight=0.5; expected 0 or false"),
        ({"train": "no"}, "message 2 has train=no; expected"),
        ({"tool_calls": [{"id": "1"}]}, "message 2 has tool_calls, which a prompt of gptask can't show"),
        ({"function_call": {"name": "f"}}, "message 2 has function_call"),
        ({"reasoning_content": "hm"}, "message 2 has reasoning_content"),
        ({"images": ["a.png"], "refusal": "no"}, "message 2 has refusal, images"),
    ],
)
def test_members_that_would_change_the_meaning_are_refused(members, message):
    with pytest.raises(DataError, match=message):
        parse_messages([TURNS[0], TURNS[1] | members])


def test_other_members_are_named_wherever_the_messages_stand():
    cell = [TURNS[0] | {"name": "Ann", "weight": 1, "id": None}, TURNS[1] | {"weight": 1, "date": "now"}]
    assert list(unused_members({"talk": {"turns": cell}, "topic": "x", "tags": ["a"]})) == ["name", "weight", "date"]
    assert list(unused_members({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]})) == []
