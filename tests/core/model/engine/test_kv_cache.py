"""Buffers of keys and values grow, and keep what was written when rows leave."""

import pytest
import torch
from gptask.model.engine import kv_cache
from gptask.model.engine.kv_cache import PreallocatedKVCache


def keys_of(buffer):
    """The numbers (B, S) that a buffer's keys are; its values are their negatives."""
    assert torch.equal(buffer.values, -buffer.keys)
    return buffer.keys[:, 0, :, 0].tolist()


def pair(rows):
    """Rows of numbers as keys, in two heads of three channels, and their negatives as values."""
    keys = torch.tensor(rows, dtype=torch.float32)[:, None, :, None].expand(-1, 2, -1, 3)
    return keys, -keys


def buffer_of(*rows, shows_capacity=False):
    """A buffer that holds rows of numbers."""
    buffer, shape = PreallocatedKVCache(shows_capacity), (len(rows), len(rows[0]))
    places = torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1])).unbind(1)
    buffer.write(shape, places, [part.transpose(1, 2).flatten(0, 1) for part in pair(rows)])
    return buffer


def append(buffer, *rows):
    keys, values = buffer.update(*pair(rows))
    assert keys is buffer.keys
    assert values is buffer.values


@pytest.mark.parametrize(
    ("count", "source", "target", "expected"),
    [
        (2, [3], [0], [[7, 8], [3, 4]]),
        (3, [], [], [[1, 2], [3, 4], [5, 6]]),
        (2, [2, 3], [0, 1], [[5, 6], [7, 8]]),
        (1, [2], [0], [[5, 6]]),
    ],
)
def test_rows_are_moved_and_the_first_ones_kept(count, source, target, expected):
    buffer = buffer_of([1, 2], [3, 4], [5, 6], [7, 8])
    buffer.move_rows(source, target, count)
    assert keys_of(buffer) == expected
    assert buffer.get_seq_length() == 2
    append(buffer, *([place + 90] for place in range(count)))
    assert keys_of(buffer) == [[*row, place + 90] for place, row in enumerate(expected)]


def test_a_buffer_grows(monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    buffer = buffer_of([1, 2], [3, 4])
    allocated = buffer.buffers[0]
    append(buffer, [5], [6])
    assert buffer.buffers[0] is allocated
    append(buffer, [7], [8])
    assert buffer.buffers[0] is not allocated
    assert keys_of(buffer) == [[1, 2, 5, 7], [3, 4, 6, 8]]


def test_a_buffer_that_shows_its_capacity_has_zeros_behind_the_end(monkeypatch):
    monkeypatch.setattr(kv_cache, "GROWTH", 3)
    buffer = buffer_of([1, 2], [3, 4], shows_capacity=True)
    assert keys_of(buffer) == [[1, 2, 0], [3, 4, 0]]
    append(buffer, [5], [6])
    append(buffer, [7], [8])
    assert keys_of(buffer) == [[1, 2, 5, 7, 0, 0], [3, 4, 6, 8, 0, 0]]
    buffer.move_rows([1], [0], 1)
    assert keys_of(buffer) == [[3, 4, 6, 8, 0, 0]]
    assert buffer.keys.is_contiguous()
    assert buffer.get_seq_length() == 4


def test_states_written_in_parts_lie_at_their_places():
    buffer, numbers = PreallocatedKVCache(), torch.arange(1.0, 6.0)[:, None, None].expand(-1, 2, 3)
    for part, rows, columns in ((slice(3), [2, 2, 2], [0, 1, 2]), (slice(3, 5), [0, 1], [2, 2])):
        buffer.write((3, 3), (torch.tensor(rows), torch.tensor(columns)), [numbers[part], -numbers[part]])
    assert keys_of(buffer) == [[0, 0, 4], [0, 0, 5], [1, 2, 3]]
