"""Which items go into a batch together: budgets, order, shares of processes, prefixes in common."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from gptask.data.batches import BatchesByLength, epoch_of_batches, first_batch_of


def lengths(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 200, n)


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize(("n", "examples", "tokens"), [(1, 4, 100), (500, 8, 400), (3000, 16, 2048), (77, 100, 10_000)])
def test_every_item_is_in_one_batch_within_both_budgets(n: int, examples: int, tokens: int, seed: int | None) -> None:
    sizes = lengths(n)
    batches = list(BatchesByLength(sizes, examples, tokens, seed))
    assert sorted(row for batch in batches for row in batch) == list(range(n))
    for batch in batches:
        assert len(batch) <= examples
        assert len(batch) == 1 or len(batch) * sizes[batch].max() <= tokens


def test_without_items_there_is_no_batch() -> None:
    assert list(BatchesByLength(np.array([], dtype=int), 4, 100, 1)) == []
    assert list(BatchesByLength(np.array([], dtype=int), 4, 100, None)) == []


def test_an_item_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    batches = list(BatchesByLength(np.array([5, 900, 5]), 8, 100, None))
    assert batches == [[1], [0, 2]]


def test_batches_fill_the_budget_of_examples_or_of_tokens() -> None:
    batches = list(BatchesByLength(np.full(100, 10), 8, 1000, 3))
    assert [len(batch) for batch in batches].count(8) == 12
    assert [len(batch) for batch in BatchesByLength(np.full(100, 10), 50, 200, 3)] == [20] * 5


def test_scoring_goes_from_long_to_short_in_a_fixed_order() -> None:
    sizes = lengths(300)
    batches = list(BatchesByLength(sizes, 8, 400, None))
    assert batches == list(BatchesByLength(sizes, 8, 400, None))
    in_order = [sizes[row] for batch in batches for row in batch]
    assert in_order == sorted(in_order, reverse=True)


def test_training_batches_differ_by_seed_and_have_few_pads() -> None:
    sizes = lengths(2000)
    first, again, other = (list(BatchesByLength(sizes, 8, 4096, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in other}
    padded = sum(len(batch) * sizes[batch].max() for batch in first)
    assert padded < 1.1 * sizes.sum()
    longest = [sizes[batch].max() for batch in first]
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("n", [1, 5, 400])
def test_processes_divide_all_items_into_the_same_number_of_batches(n: int, world: int) -> None:
    sizes = lengths(n)
    shards = [list(BatchesByLength(sizes, 8, 400, 5, (rank, world))) for rank in range(world)]
    batches = list(BatchesByLength(sizes, 8, 400, 5))
    assert {len(shard) for shard in shards} == {math.ceil(len(batches) / world)}
    assert {row for shard in shards for batch in shard for row in batch} == set(range(n))
    assert sum(map(len, shards)) - len(batches) < world


def test_a_batch_that_fills_up_a_process_is_the_smallest_and_known_as_such() -> None:
    sizes = lengths(400)
    whole = BatchesByLength(sizes, 8, 400, 5)
    processes = [BatchesByLength(sizes, 8, 400, 5, (rank, 3)) for rank in range(3)]
    numbers = range(len(processes[0]))
    counted = [batch for one in processes for n, batch in enumerate(one.batches) if not one.is_filler(n)]
    assert sorted(counted) == sorted(whole.batches)
    fillers = [one.costs[n] for one in processes for n in numbers if one.is_filler(n)]
    assert len(fillers) == -len(whole) % 3
    assert set(fillers) <= {min(whole.costs)}


@pytest.mark.parametrize("limit", [None, 3])
def test_processes_divide_what_is_scored_without_a_batch_twice(limit: int | None) -> None:
    sizes = lengths(100)
    whole = BatchesByLength(sizes, 8, 400, None).batches[:limit]
    shards = [BatchesByLength(sizes, 8, 400, None, (rank, 4), limit=limit).batches for rank in range(4)]
    assert sorted(batch for shard in shards for batch in shard if batch) == sorted(whole)
    assert all(shards)


def test_a_batch_is_closed_before_a_tenth_of_it_is_pads(monkeypatch):
    monkeypatch.setattr("gptask.data.batches.BUSY_TOKENS", 40)
    sizes = np.random.default_rng(0).integers(5, 60, 300)
    batches = list(BatchesByLength(sizes, 64, 10_000, None, max_padding=0.1))
    assert sorted(row for batch in batches for row in batch) == list(range(300))
    for batch in batches:
        padded = int(sizes[batch].max()) * len(batch)
        assert padded <= 40 or padded - sizes[batch].sum() <= 0.1 * padded
    assert len(batches) > len(list(BatchesByLength(sizes, 64, 10_000, None)))


# --- items that share a prefix ----------------------------------------------------------------------------------


def grouped_lengths(n: int, seed: int = 0) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Lengths of n items; their prefix groups, and the length of each group's prefix."""
    generator = np.random.default_rng(seed)
    groups = np.sort(generator.integers(0, n // 5, n))
    prefix = generator.integers(20, 200, n)[groups]
    return prefix + generator.integers(1, 30, n), (groups, prefix)


@pytest.mark.parametrize("seed", [None, 4])
def test_items_that_share_a_prefix_stay_together_and_it_counts_once(seed: int | None) -> None:
    sizes, common = grouped_lengths(600)
    groups, prefix = common
    sampler = BatchesByLength(sizes, 32, 1024, seed, common=common)
    assert sorted(row for batch in sampler for row in batch) == list(range(600))
    groups_split = 0
    for batch, cost in zip(sampler.batches, sampler.costs, strict=True):
        batch_groups = set(groups[batch])
        assert cost == prefix[batch].max() * len(batch_groups) + (sizes - prefix)[batch].max() * len(batch)
        assert len(batch) <= 32
        assert len(batch) == 1 or cost <= 1024
        others = (other for other in sampler.batches if other is not batch)
        groups_split += sum(not batch_groups.isdisjoint(groups[other]) for other in others)
    assert groups_split <= 2 * len(sampler.batches), "a group continues in the next batch at most"
    assert len(sampler) < 0.6 * len(BatchesByLength(sizes, 32, 1024, seed))


def test_costs_are_padded_tokens() -> None:
    sampler = BatchesByLength(np.array([5, 9, 5]), 2, 100, None)
    assert sampler.batches == [[1, 0], [2]]
    assert sampler.costs == [18, 5]


def test_a_resumed_training_leaves_out_the_batches_it_has_done_in_the_first_pass_only() -> None:
    everything = list(BatchesByLength(lengths(100), 8, 400, 3))
    resumed = BatchesByLength(lengths(100), 8, 400, 3, first_batch=5)
    assert len(resumed) == len(everything)
    iter(resumed)  # making an iterator is no pass
    assert list(resumed) == everything[5:]
    assert list(resumed) == everything
    assert first_batch_of(SimpleNamespace(batch_sampler=resumed)) == 5
    assert first_batch_of([]) == first_batch_of(SimpleNamespace(batch_sampler=None)) == 0


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2, 3]), (0, [0, 0, 0, 0]), (2, [0, 0, 2, 2])])
def test_the_order_of_batches_is_that_of_the_epoch_that_asked_for_a_loader(every: int, epochs: list[int]) -> None:
    trainers = [SimpleNamespace(current_epoch=epoch, reload_dataloaders_every_n_epochs=every) for epoch in range(4)]
    assert [epoch_of_batches(trainer) for trainer in trainers] == epochs
    assert epoch_of_batches(None) == 0
