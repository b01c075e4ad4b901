"""Unread prompts are read in the order they came in; short ones go along where there is room."""

import pytest
from gptask.model.engine.interface import DecodingRow
from gptask.model.engine.prompt_queue import KeptText, PromptQueue
from gptask.plugins.generation_options import GenerationOptions


def queue_of(*lengths):
    queue = PromptQueue()
    for number, length in enumerate(lengths):
        queue.add(DecodingRow([number] * length, 9, GenerationOptions()))
    return queue


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([100, 100, 100], [(0, 100), (1, 100)]),  # 56 are too few for a part
        ([100, 200, 50, 90], [(0, 100), (1, 156)]),
        ([200, 300, 50, 6, 9], [(0, 200), (2, 50), (3, 6)]),
        ([1000, 10, 10], [(0, 256)]),
        ([250, 1000, 3, 9], [(0, 250), (2, 3)]),
        ([256, 1], [(0, 256)]),
        ([20], [(0, 20)]),
        ([], []),
    ],
)
def test_what_one_call_reads(lengths, expected):
    queue = queue_of(*lengths)
    assert [(queue.prompts.index(prompt), tokens) for prompt, tokens in queue.choose(256, [])] == expected


def test_no_prompt_waits_for_ever_behind_others_that_keep_coming():
    queue = queue_of(200, 3000)
    long = queue.prompts[1]
    for number in range(40):
        queue.add(DecodingRow([number, 7] * 100, 9, GenerationOptions()))
        chosen = queue.choose(256, [])
        if any(prompt is long for prompt, _ in chosen):
            break
        queue.drop([prompt for prompt, _ in chosen])
    assert number <= 2


def test_equal_prompts_of_one_adapter_are_one():
    queue = PromptQueue()
    rows = [DecodingRow([5, 6, 7], 9, GenerationOptions(), adapter) for adapter in ("a", "b", "a", None)]
    for row in rows:
        queue.add(row)
    assert [len(prompt.rows) for prompt in queue.prompts] == [2, 1, 1]
    queue.remove(rows[0])
    queue.remove(rows[1])
    assert queue.rows == [rows[2], rows[3]]
    assert [tokens for _, tokens in queue.choose(100, [])] == [3, 3]


@pytest.mark.parametrize(
    ("text", "ids", "common"),
    [([1, 2, 3], [1, 2, 3, 4], 3), ([1, 2, 3], [1, 2, 3], 2), ([1, 2], [2, 1], 0), ([1, 2, 9, 4], [1, 2, 3, 4, 5], 2)],
)
def test_what_a_prompt_has_in_common_with_a_kept_text(text, ids, common):
    kept = KeptText(text, "a", [])
    assert kept.common(ids, "a") == common
    assert kept.common(ids, None) == 0
    assert kept.begins_with(KeptText(text[:1], "a", []))
    assert not kept.begins_with(KeptText([*text, 9], "a", []))


def test_a_kept_text_is_used_where_it_saves_more_than_reading_alone_costs():
    kept = [KeptText([*range(40)], None, []), KeptText([*range(10), 99], None, [])]
    queue = PromptQueue()
    queue.add(DecodingRow([*range(10), 98], 9, GenerationOptions()))
    assert queue.choose(256, kept)[0][1] == 1
    queue.add(DecodingRow([*range(39), 98], 9, GenerationOptions()))
    assert [tokens for _, tokens in queue.choose(256, kept)] == [11, 1]
