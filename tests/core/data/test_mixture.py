"""How often the batches of each task come, and in which order."""

from types import SimpleNamespace

import pytest
from gptask import Mixing, TaskConfig, UserError
from gptask.config.multitask import batches_per_task, check_tasks
from gptask.config.schemas import Sampling
from gptask.data.mixture import PASS_STRIDE, InterleavedLoader, Mixture


class Numbered:
    """A data module whose batches are pairs of the pass they belong to and a number."""

    def __init__(self, batches):
        self.batches, self.trainer = batches, None

    def train_dataloader(self):
        epoch = self.trainer.current_epoch if self.trainer else 0
        return [(epoch, number) for number in range(self.batches)]


def mixture(mixing, epoch=0, seed=13, **sizes):
    data = Mixture({name: Numbered(size) for name, size in sizes.items()}, mixing, seed)
    data.trainer = SimpleNamespace(current_epoch=epoch, global_rank=0, reload_dataloaders_every_n_epochs=1)
    return data


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        (Mixing(Sampling.proportional), [90, 9, 1]),
        (Mixing(Sampling.uniform), [33, 33, 33]),
        (Mixing(Sampling.temperature, temperature=1), [90, 9, 1]),
        (Mixing(Sampling.temperature, temperature=2), [70, 22, 7]),  # 9.49 : 3 : 1
        (Mixing(Sampling.temperature, temperature=1e6), [33, 33, 33]),
        (Mixing(Sampling.temperature, temperature=0.1), [100, 1, 1]),  # every task gets at least one
    ],
)
def test_each_task_gets_its_share_of_the_batches(mixing, expected):
    assert batches_per_task([90, 9, 1], mixing) == expected


def test_proportional_sampling_passes_through_all_data_once_an_epoch():
    drawn = list(mixture(Mixing(Sampling.proportional), epoch=3, a=5, b=2).train_dataloader())
    assert sorted(drawn) == [(0, (3, n)) for n in range(5)] + [(1, (3, n)) for n in range(2)]


def test_the_order_differs_by_epoch_and_repeats_with_the_seed():
    def order(**options):
        return [seat for seat, _ in mixture(Mixing(), a=20, b=20, **options).train_dataloader()]

    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=14)
    assert order() != sorted(order())


def test_a_small_task_is_passed_through_again_and_a_large_one_in_part():
    data = mixture(Mixing(Sampling.uniform), epoch=1, small=2, large=8)
    drawn = list(data.train_dataloader())
    assert [batch for seat, batch in drawn if seat == 0] == [
        (1, 0), (1, 1), (1 + PASS_STRIDE, 0), (1 + PASS_STRIDE, 1), (1 + 2 * PASS_STRIDE, 0),
    ]  # fmt: skip
    assert [batch for seat, batch in drawn if seat == 1] == [(1, n) for n in range(5)]
    assert data.passes() == [2.5, 0.625]
    assert len(data.train_dataloader()) == len(drawn)


def test_a_stream_of_unknown_length_is_an_error():
    data = mixture(Mixing(), a=2, b=2)
    data.modules["b"].train_dataloader = lambda: iter(())
    with pytest.raises(UserError, match=r"tasks\.b: its training data is a stream"):
        data.train_dataloader()


def test_a_loader_is_made_when_its_first_batch_is_drawn():
    passes = []
    epoch = iter(InterleavedLoader([lambda number, _: passes.append(number) or [0]], [2], 1))
    assert passes == []
    next(epoch)
    assert passes == [0]


@pytest.mark.parametrize(
    ("members", "mixing", "message"),
    [
        ({"a b": TaskConfig()}, Mixing(), "'a b' is not a plain name"),
        ({"checkpoints": TaskConfig()}, Mixing(), "'checkpoints' is the name of a folder"),
        ({"a": TaskConfig(weight=0)}, Mixing(), r"tasks\.a\.weight=0 must be above 0"),
        ({"a": TaskConfig()}, Mixing(temperature=0), r"mixing\.temperature=0 must be above 0"),
        ({"trec": TaskConfig()}, Mixing(best="tree"), r"mixing\.best=tree is not one .* Did you mean 'trec'"),
    ],
)
def test_bad_names_and_values_are_errors(members, mixing, message):
    with pytest.raises(UserError, match=message):
        check_tasks(members, mixing)


class Resumable(Numbered):
    """One whose loader begins behind the batches that are done, and says so."""

    def train_dataloader(self):
        epoch, first = self.trainer.current_epoch, self.resumed_at[1]

        class Loader(list):
            first_batch = first

            def __len__(loader):
                return self.batches

        return Loader((epoch, number) for number in range(first, self.batches))


@pytest.mark.parametrize("done", [0, 1, 4, 7, 10])
def test_a_resumed_epoch_gives_the_batches_that_are_left(done):
    def data(kind, resumed_at):
        mixed = Mixture({"small": kind(2), "large": kind(8)}, Mixing(Sampling.uniform), 13)
        mixed.trainer = SimpleNamespace(current_epoch=1, reload_dataloaders_every_n_epochs=1)
        mixed.resumed_at = resumed_at
        return mixed.train_dataloader()

    everything = list(data(Resumable, (0, 0)))
    assert len(everything) == 10
    resumed = data(Resumable, (1, done))
    assert list(resumed) == everything[done:]
    assert list(resumed) == everything  # a later epoch of the same loader
    assert list(data(Resumable, (2, done))) == everything
    assert data(Numbered, (1, done)).first_batch == 0  # a plugin's loaders begin anew
