"""Batches: their content, budgets and order; which tokens are learned; what is cached."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gptask import DataError, Encoded, Field, Kind
from gptask.config.schemas import Files, Limit
from gptask.data import datamodule as modules
from gptask.data.corpus import CachedCorpus
from gptask.data.datamodule import DataModule, Items, PaddedBatch, collate, encode
from gptask.model.backbone.scratch import train_tokenizer
from gptask.plugins.task import Task
from gptask.plugins.types import IGNORED, Example
from torch.utils.data import DataLoader

TEXT = "the cat sat on the mat and the dog sat on the log\n"


@dataclass
class Echo(Task):
    """Repeat the text in capitals."""

    prompt: str = "Text: {text}\nLoud:"

    def fields(self) -> list[Field]:
        return [Field("text", truncate=True), Field("loud", Kind.TEXTS, target=True)]

    def render(self, example: Example) -> tuple[str, str | None]:
        loud = example.get("loud")
        return self.prompt.format(text=example["text"]), f" {loud[0]}" if loud else None

    def head(self, backbone: Any) -> Any: ...
    def prediction(self, example: Example, outputs: Any) -> Any: ...
    def metrics(self) -> Any: ...
    def sample(self) -> Any: ...


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([TEXT] * 3 + ["Text: Loud: THE CAT"], 300)


# --- one batch --------------------------------------------------------------------------------------------------


def item(prompt: list[int], target: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"ids": prompt, "target": target, "label": None, "extra": None} | more


def test_collate_pads_on_the_right() -> None:
    batch = collate([item([5, 6], [7, 9], row=4), item([5], None, row=2)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 9], [5, 0, 0, 0]]
    assert batch.lengths.tolist() == [4, 1]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.prompts() == [[5, 6], [5]]
    assert batch.last().tolist() == [3, 0]
    assert batch.rows == [4, 2]
    assert batch.labels is None


def test_lists_of_labels_may_differ_in_length() -> None:
    batch = collate([item([5, 6], label=[3, IGNORED, 1]), item([5], label=[2])])
    assert batch.labels is not None
    assert batch.labels.tolist() == [[3, IGNORED, 1], [2, IGNORED, IGNORED]]
    assert batch.labels.dtype == torch.long


def test_spans_of_a_prompt_may_be_learned() -> None:
    batch = collate([item([5, 6, 7, 8, 9, 4], [3, 0], learned=[1, 3, 4, 5]), item([5, 6], [7, 0], learned=[])])
    assert batch.predicting().long().tolist() == [[1, 1, 0, 1, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0, 0]]
    wider = replace(batch, input_ids=torch.nn.functional.pad(batch.input_ids, (0, 3)))
    assert wider.predicting()[:, :8].equal(batch.predicting())
    assert not wider.predicting()[:, 8:].any()
    text = collate([item([5, 6, 7], None, learned=[0, 3])])  # every token is learned but the first
    assert text.predicting().tolist() == [[True, True, False]]
    assert batch.to("cpu").learned is not None


def test_learned_spans_are_the_same_from_the_cache(tokenizer: Any, tmp_path: Any) -> None:
    class Spoken(Echo):
        def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded:
            return Encoded([5, 6, 7, 8], [9], learned=[(1, 2)] if example["text"] == "b" else [])

    file = tmp_path / "data.jsonl"
    file.write_text("".join(f'{{"text": "{c}", "loud": "{c}"}}\n' for c in "aaab"))
    corpus = CachedCorpus(Spoken(), Files(train=str(file), validation=str(file), test=str(file)), 0)
    data = DataModule(Spoken(), corpus, tokenizer, Files(batch_size=4), 0)
    (batch,) = data.eval_dataloader("test")
    assert [batch.predicting()[batch.rows.index(row)].sum().item() for row in range(4)] == [2, 2, 2, 3]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [([1, 0], torch.int64), ([0.5, 2.0], torch.float32), ([[1.0, 0.0], [0.0, 1.0]], torch.float32),
     ([[3, 4], [5, 5]], torch.int64)],
)  # fmt: skip
def test_collate_makes_a_tensor_of_labels_and_lists_of_extras(labels: list, kind: torch.dtype) -> None:
    batch = collate([item([5], label=labels[0], extra={"left": [1]}), item([6], label=labels[1], extra={"left": []})])
    assert batch.labels.tolist() == labels
    assert batch.labels.dtype == kind
    assert batch.extra == {"left": [[1], []]}


@pytest.mark.parametrize("eos", [0, 9])
def test_loss_is_on_target_and_eos_and_nowhere_else(eos: int) -> None:
    """With ``eos=0`` the pads have the same id as EOS, as they do in GPT-2."""
    items = [item([5, 6, 5], [7, 8, eos]), item([5, eos], [eos]), item([5, 6], None)]
    batch = collate(items)
    mask = batch.predicting()
    following = torch.roll(batch.input_ids, -1, dims=1)
    learned = [ids[row_mask].tolist() for ids, row_mask in zip(following, mask, strict=True)]
    assert learned == [[7, 8, eos], [eos], []]
    assert not mask[:, -1].any()


def test_a_batch_moves_to_a_device_with_all_its_parts() -> None:
    batch = replace(collate([item([5], label=1)]), extra={"left": [[1]]}, rows=[3])
    moved = batch.to("meta")
    assert isinstance(moved, PaddedBatch)
    assert moved.input_ids.device.type == moved.labels.device.type == "meta"
    assert (moved.extra, moved.rows) == ({"left": [[1]]}, [3])


def test_a_part_of_a_batch_is_what_its_items_alone_make() -> None:
    items = [
        item([1, 2, 3, 4], [5], label=[1, 2], extra={"left": [4]}, row=7, learned=[0, 2]),
        item([1], [2], label=[2, 3], extra={"left": [5]}, row=2, learned=[0, 1]),
        item([1, 2], [3], label=[0, 0], extra={"left": [6]}, row=5, learned=[1, 2]),
    ]
    whole = collate(items)
    for rows in (slice(0, 1), slice(1, 3), slice(2, 3)):
        part, expected = whole.part(rows), collate(items[rows])
        for name, value in vars(expected).items():
            same = torch.equal(getattr(part, name), value) if isinstance(value, torch.Tensor) else None
            assert getattr(part, name) == value if same is None else same, name
    assert whole.part(slice(0, 3)) is whole


# --- encoding ---------------------------------------------------------------------------------------------------


def test_every_target_ends_with_eos(tokenizer: Any) -> None:
    (encoded,) = encode(Echo(), {"text": "the cat", "loud": ["THE CAT"]}, tokenizer, 100)
    assert encoded["target"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoded["ids"]) == "Text: the cat\nLoud:"
    assert tokenizer.decode(encoded["target"][:-1]) == " THE CAT"
    assert encoded["length"] == len(encoded["ids"]) + len(encoded["target"])


def test_an_example_without_a_target_text_has_no_target_ids(tokenizer: Any) -> None:
    (encoded,) = encode(Echo(), {"text": "the cat", "loud": None}, tokenizer, 100)
    assert encoded["target"] is None
    assert encoded["length"] == len(encoded["ids"])


def test_a_long_text_is_cut_and_its_target_is_not(tokenizer: Any) -> None:
    example = {"text": TEXT * 20, "loud": ["THE CAT"]}
    (encoded,) = encode(Echo(), example, tokenizer, 60)
    assert encoded["length"] <= 60
    assert tokenizer.decode(encoded["target"][:-1]) == " THE CAT"
    assert tokenizer.decode(encoded["ids"]).endswith("\nLoud:")
    uncut_length = len(tokenizer(Echo().render(example)[0])["input_ids"])
    assert abs(encoded["truncated"] - (uncut_length - len(encoded["ids"]))) <= 2


def test_an_item_longer_than_max_tokens_is_an_error(tokenizer: Any) -> None:
    class Careless(Echo):
        def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> Encoded:
            return Encoded([5] * 50)

    with pytest.raises(DataError, match=r"need 50 tokens; data.max_tokens is 20: raise it"):
        encode(Careless(), {"text": "a"}, tokenizer, 20)


# --- the data module --------------------------------------------------------------------------------------------


@pytest.fixture
def build(write_file: Callable, tokenizer: Any) -> Callable[..., DataModule]:
    rows = "".join(f"{TEXT[: 4 + k % 40]} {k}\tTHE {k}\n" for k in range(60))

    def build_module(task: Task | None = None, seed: int = 13, **options: Any) -> DataModule:
        files = {
            "train": write_file("a.tsv", rows),
            "columns": {"text": 0, "loud": 1},
            "batch_size": 8,
            "max_tokens": 80,
        }
        data = Files(**(files | options))
        return DataModule(task or Echo(), CachedCorpus(task or Echo(), data, 13), tokenizer, data, seed)

    return build_module


def order(loader: DataLoader) -> list[list[int]]:
    return [batch.rows for batch in loader]


def test_every_example_is_trained_on_once_an_epoch(build: Callable) -> None:
    data = build()
    loader = data.train_dataloader()
    assert sorted(row for rows in order(loader) for row in rows) == list(range(len(data.examples("train"))))
    assert isinstance(loader.dataset, Items)


def test_epochs_differ_and_repeat_with_the_seed(build: Callable) -> None:
    data = build()
    epochs = []
    for epoch in (0, 1, 0):
        data.trainer = SimpleNamespace(
            current_epoch=epoch, global_rank=0, world_size=1, reload_dataloaders_every_n_epochs=1
        )
        epochs.append(order(data.train_dataloader()))
    assert epochs[0] == epochs[2] != epochs[1]
    assert order(build(seed=14).train_dataloader()) != order(build().train_dataloader())


def process(rank: int, **limits: Any) -> SimpleNamespace:
    """The trainer of one of two processes."""
    limits = {"limit_val_batches": 1.0, "limit_test_batches": 1.0} | limits
    state = SimpleNamespace(fn="fit")
    return SimpleNamespace(
        current_epoch=0, global_rank=rank, world_size=2, reload_dataloaders_every_n_epochs=1, state=state, **limits
    )


def test_processes_train_on_different_batches_and_score_different_ones(build: Callable) -> None:
    data = build()
    whole = order(data.test_dataloader())
    trained, scored = [], []
    for rank in range(2):
        data.trainer = process(rank)
        trained.append({row for rows in order(data.train_dataloader()) for row in rows})
        scored.append([rows for rows in order(data.test_dataloader()) if rows])
    assert not trained[0] & trained[1]
    assert sorted([*scored[0], *scored[1]]) == sorted(whole)
    assert abs(len(scored[0]) - len(scored[1])) <= 1


def test_a_limit_on_scored_batches_is_that_of_all_processes(build: Callable) -> None:
    data = build(eval_batch_size=2)
    whole = order(data.val_dataloader())
    scored = []
    for rank in range(2):
        data.trainer = process(rank, limit_val_batches=1)
        scored += [rows for rows in order(data.val_dataloader()) if rows]
    assert scored == whole[:1]


def test_a_process_without_anything_to_score_gets_one_empty_batch(build: Callable) -> None:
    data = build(eval_batch_size=1000)
    data.trainer = process(1)
    (batch,) = data.test_dataloader()
    assert (batch.rows, batch.lengths.shape, batch.input_ids.shape) == ([], (0,), (0, 0))


class Silent(Echo):
    """Nothing is generated behind the prompt."""

    def render(self, example: Example) -> tuple[str, str | None]:
        return super().render(example)[0], None


def test_scored_batches_are_small_where_text_is_only_read_and_large_where_it_is_generated(
    build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, generating = build(task=Silent(), batch_tokens=100), build(batch_tokens=100)

    def max_tokens(data: DataModule, split: str) -> int:
        return data.eval_dataloader(split).batch_sampler.max_tokens  # type: ignore[union-attr]

    assert [max_tokens(reading, split) for split in ("validation", "test")] == [200, 200]
    assert [max_tokens(generating, split) for split in ("validation", "test")] == [1600, 6400]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert max_tokens(reading, "test") == 1600


def test_loading_in_workers_gives_the_same_batches(build: Callable) -> None:
    in_process, in_worker = (build(workers=n).val_dataloader() for n in (0, 1))
    for expected, batch in zip(in_process, in_worker, strict=True):
        assert batch.rows == expected.rows
        assert torch.equal(batch.input_ids, expected.input_ids)


@dataclass
class Questions(Echo):
    """Several examples have their text in common."""

    def fields(self) -> list[Field]:
        text, loud = super().fields()
        return [replace(text, group=True), loud, Field("question", help="what each asks")]

    def render(self, example: Example) -> tuple[str, str | None]:
        prompt, target = super().render(example)
        return prompt.replace("\n", f" {example['question']}\n"), target


def test_examples_with_a_text_in_common_share_a_batch(build: Callable, write_file: Callable) -> None:
    rows = "".join(f"{TEXT[4 * (k % 5) :].strip()}\tTHE\t{k}\n" for k in range(40))
    columns = {"text": 0, "loud": 1, "question": 2}
    data = build(Questions(), train=write_file("c.tsv", rows), columns=columns)
    ungrouped = order(data.train_dataloader())
    data.shares_prefixes = True
    texts = [example["text"] for example in data.examples("train")]
    batches = order(data.train_dataloader())
    assert sorted(row for rows in batches for row in rows) == list(range(len(texts)))
    assert all(len({texts[row] for row in rows}) <= 2 for rows in batches), "shuffled, a batch of eight has five texts"
    assert any(len({texts[row] for row in rows}) > 2 for rows in ungrouped), "without shares, examples are mixed"
    assert order(data.test_dataloader())


class Windows(Echo):
    """Two items an example, like a context that is too long for one window."""

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> list[Encoded]:
        return [super().encode(example, tokenizer, max_tokens)] * 2


def test_items_name_their_example(build: Callable) -> None:
    data = build(Windows())
    assert data.items("test").column("example").tolist() == [k for k in range(6) for _ in range(2)]


def test_truncated_inputs_are_counted(build: Callable, logged: list) -> None:
    for _ in range(2):  # the second time from the cache
        logged.clear()
        build(max_tokens=16).items("train")
        (warning,) = [line for line in logged if "max_tokens" in line]
        assert "WARNING train: " in warning
        assert "of 48 inputs were longer than data.max_tokens=16 and lost" in warning
    logged.clear()
    build(max_tokens=80).items("train")
    assert not [line for line in logged if "max_tokens" in line]


def test_the_error_of_an_example_that_is_too_long_names_it(build: Callable) -> None:
    with pytest.raises(DataError, match=r"example 'a.tsv:\d+': the prompt alone needs"):
        build(max_tokens=10).items("train")


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list:
    """One entry for every time that a split is encoded instead of read from the cache."""
    encoded_splits: list = []
    original = DataModule._encode

    def counting(self: DataModule, examples: Any, meta: dict) -> Iterator[dict[str, Any]]:
        encoded_splits.append(examples.name)
        return original(self, examples, meta)

    monkeypatch.setattr(DataModule, "_encode", counting)
    return encoded_splits


def test_a_split_is_encoded_once_and_then_from_the_cache(build: Callable, encodings: list) -> None:
    first, again = (build().items("train") for _ in range(2))
    assert encodings == ["train"]
    assert list(first) == list(again)


def test_a_change_of_whatever_shapes_token_ids_encodes_again(
    build: Callable, encodings: list, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, write_file: Callable
) -> None:
    build().items("train")
    build(max_tokens=70).items("train")
    build(Echo(prompt="{text} =>")).items("train")
    build(limit=Limit(train=9)).items("train")
    build(train=write_file("b.tsv", "".join(f"other {k}\tOTHER\n" for k in range(60)))).items("train")
    another = build()
    another.tokenizer = train_tokenizer([TEXT] * 3 + ["Text: Loud: THE DOG"], 280)
    another.items("train")
    shots = Echo()
    shots.demonstrations = "Text: a\nLoud: A\n\n"
    build(shots).items("train")
    monkeypatch.setattr(modules, "code_hash", lambda task, names: "edited")
    build().items("train")
    assert len(encodings) == 8
    build(seed=99, batch_size=3, batch_tokens=99).items("train")  # options that only order batches do not
    assert len(encodings) == 8
