"""Memory that runs out is recognised, freed, and batches are computed in parts that fit."""

import gc
import logging
import os
import subprocess
import sys
import weakref

import pytest
import torch
from gptask import UserError
from gptask.model.out_of_memory import BatchDivider, is_out_of_memory


@pytest.fixture(autouse=True)
def _no_collection(request, monkeypatch):
    """Collect no garbage, which takes half a second in a large process, where a test does not depend on it."""
    if "freed" not in request.node.name:
        monkeypatch.setattr("gc.collect", int)


class Memory:
    """Computes rows of these lengths, in parts of at most ``tokens`` padded ones."""

    def __init__(self, lengths, tokens):
        self.lengths, self.tokens, self.parts = lengths, tokens, []

    def compute(self, rows):
        part = self.lengths[rows]
        self.parts.append(len(part))
        if len(part) * max(part) > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [(rows.start + place, length) for place, length in enumerate(part)]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_what_says_that_memory_ran_out_is_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), OSError(28, "full")],
)
def test_nothing_else_is(error):
    assert not is_out_of_memory(error)


def test_the_allocator_of_torch_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("lengths", [[9] * 8, [9, 8, 7, 5, 5, 2, 1], [1, 9, 1, 9, 1], [9]])
@pytest.mark.parametrize("tokens", [9, 20, 36, 1000])
def test_parts_fit_and_give_all_rows_in_order(lengths, tokens):
    memory, divider = Memory(lengths, tokens), BatchDivider()
    results = [row for part in divider.compute(lengths, memory.compute) for row in part]
    assert results == list(enumerate(lengths))


def test_later_batches_don_t_fail_again_and_it_is_said_once(caplog):
    lengths, divider = [10] * 16, BatchDivider()
    memory = Memory(lengths, 40)
    with caplog.at_level(logging.WARNING, "gptask"):
        divider.compute(lengths, memory.compute)
        assert memory.parts == [16, 8, 4, 4, 4, 4]
        memory.parts.clear()
        divider.compute(lengths, memory.compute)
    assert memory.parts == [4, 4, 4, 4]
    (message,) = caplog.messages
    assert "16 rows of up to 10 tokens ran out of memory" in message
    assert "data.eval_batch_size=8 avoids it" in message


def test_a_row_that_does_not_fit_alone_is_the_user_s_to_shorten():
    with pytest.raises(UserError, match=r"one input of 9 tokens does not fit into memory: lower data\.max_tokens"):
        BatchDivider().compute([9, 9], Memory([9, 9], 8).compute)


def test_other_exceptions_pass():
    def fail(rows):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        BatchDivider().compute([9, 9], fail)


def test_what_failed_is_freed_before_it_is_computed_again():
    class Activations:
        pass

    held = []

    def layer(rows):
        states = Activations()
        held.append(weakref.ref(states))
        states.itself = states  # a cycle, which only the garbage collector frees
        if rows.stop - rows.start > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def compute(rows):
        assert [reference for reference in held if reference() is not None] == []
        layer(rows)
        gc.collect()

    BatchDivider().compute([1, 1], compute)
    assert len(held) == 3


REAL = """
import resource, torch
from gptask.model.out_of_memory import BatchDivider
sizes = []
def compute(rows):
    activations = [torch.ones(rows.stop - rows.start, 2**20) for _ in range(8)]  # 32 MB a row
    sizes.append(rows.stop - rows.start)
    return len(activations)
compute(slice(0, 1))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
BatchDivider().compute([1] * 64, compute)
assert sum(sizes[1:]) == 64 and max(sizes) in (4, 8), sizes
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits the addresses of a process")
def test_memory_that_really_runs_out_is_divided():
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "64 rows" in done.stderr or done.stderr == ""
