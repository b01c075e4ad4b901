"""Texts and labels of adapters that come and go, in any order, are those of each model alone: nothing leaks.

Whatever shares memory or a pass is here at once: rows with adapters of all layers, of fewer layers and with none,
prompts in parts, kept texts, samples, heads of other sizes, two backbones, reloads, and removals while rows decode.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Lora
from gptask.model.backbone.tuning import apply_tuning
from gptask.model.engine.interface import DecodingRow
from gptask.plugins.generation_options import GenerationOptions
from gptask.serving.batching.failed_passes import FailedPasses
from gptask.serving.batching.scoring_queue import ScoringQueue
from gptask.serving.batching.work import ScoringWork
from gptask.serving.prometheus import ServerMetrics

from tests.support.fake_engine import item

LAYERS, LIMIT = 3, 6
GREEDY = GenerationOptions()
SAMPLED = GenerationOptions(temperature=1.5, top_k=9, seed=4)
# layers that the adapter's model keeps, tuning, number of labels of its head
TUNINGS = [(LAYERS, Lora(rank=2), 2), (1, Lora(rank=3), 6), (2, Lora(rank=1, top=0.5, alpha=5), 11), (LAYERS, None, 3)]
SHARED = [*range(20, 60)]  # a beginning that is worth keeping
PROMPTS = [[5, 6, 7], [40], [*SHARED, 70], [*SHARED, 71, 72], [*SHARED[:9], 80], [*range(60, 145)], [9, 8]]


class Head:
    """K numbers of the last state."""

    def __init__(self, k: int, all_states: bool) -> None:
        torch.manual_seed(k)
        self.weight, self.all_states = torch.randn(32, k), all_states

    def needed_positions(self, batch: Any) -> torch.Tensor | None:
        if self.all_states:
            return None
        needed: torch.Tensor = torch.arange(batch.input_ids.shape[1])[None] == batch.last()[:, None]
        return needed

    def predict(self, hidden: torch.Tensor, batch: Any) -> list[torch.Tensor]:
        return [*(hidden[torch.arange(len(hidden)), batch.last()] @ self.weight)]


@dataclass(eq=False)
class Model:
    """What is served."""

    name: str
    backbone: Any


class Member:
    """A model by itself, and the folder of its adapter."""

    def __init__(self, backbone: Any, number: int, folder: Any) -> None:
        self.layers, tuning, k = TUNINGS[number]
        self.head, self.folder, self.backbone = Head(k, all_states=number == 1), None, backbone
        backbone.use_engine(Reference())
        backbone.keep_layers(range(self.layers))
        if tuning is not None:
            torch.manual_seed(number)
            backbone.set_model(apply_tuning(backbone.peft, tuning))
            with torch.no_grad():
                for name, parameter in backbone.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(0, 0.3)
            self.folder = folder
            backbone.peft.save_pretrained(folder)
        backbone.eval()
        self.texts: dict[Any, list[int]] = {}
        self.labels: dict[int, torch.Tensor] = {}

    def text(self, number: int, options: GenerationOptions, draw: int) -> list[int]:
        key = number, options is SAMPLED, draw
        if key not in self.texts:
            row = DecodingRow(PROMPTS[number], LIMIT, options, draw=draw)
            self.backbone.engine.decode([row])
            self.texts[key] = row.new_ids
        return self.texts[key]

    @torch.inference_mode()
    def label(self, number: int) -> torch.Tensor:
        if number not in self.labels:
            state_C = self.backbone.hidden(torch.tensor([PROMPTS[number]]))[0, -1]
            self.labels[number] = state_C @ self.head.weight
        return self.labels[number]


class Interleaving:
    """Random operations on shared backbones, of which every answer is compared with that of the model alone."""

    def __init__(self, shared: list[Any], members: list[list[Member]], seed: int) -> None:
        self.shared, self.members, self.draw = shared, members, random.Random(seed)
        self.batches = [backbone.engine.decoding_batch(keep=8) for backbone in shared]
        self.queue = ScoringQueue(ServerMetrics(), FailedPasses(ServerMetrics()))
        self.digests: list[dict[int, str | None]] = [{3: None} for _ in shared]  # of the members that are loaded
        self.rows: dict[DecodingRow, tuple[int, int, int]] = {}  # place of backbone, member, prompt
        self.labels: list[tuple[ScoringWork, Member, list[int]]] = []
        self.counts: dict[str, int] = {}

    def run(self, operations: int) -> None:
        names = ["write", "score", "add", "remove", "leave", "read", "step", "score_now"]
        for place in [*range(len(self.shared))] * 2:
            self.add(place)
        for _ in range(operations):
            (name,) = self.draw.choices(names, [5, 4, 2, 1, 1, 5, 8, 2])
            self.counts[name] = self.counts.get(name, 0) + 1
            getattr(self, name)(self.draw.randrange(len(self.shared)))
        for place, batch in enumerate(self.batches):
            while batch.unread or batch.rows:
                self.read(place)
                self.step(place)
        while self.queue:
            self.score_now(0)
        assert not self.rows
        assert not self.labels

    def count(self, event: str) -> None:
        self.counts[event] = self.counts.get(event, 0) + 1

    def write(self, place: int) -> None:
        member, prompt = self.draw.choice([*self.digests[place]]), self.draw.randrange(len(PROMPTS))
        options, samples = self.draw.choice([(GREEDY, 1), (GREEDY, 1), (SAMPLED, 3)])
        limit, digest = self.draw.randint(1, LIMIT), self.digests[place][member]
        rows = [DecodingRow([*PROMPTS[prompt]], limit, options, digest, draw) for draw in range(samples)]
        self.rows |= dict.fromkeys(rows, (place, member, prompt))
        self.batches[place].enqueue(rows)

    def score(self, place: int) -> None:
        member = self.draw.choice([*self.digests[place]])
        numbers = [self.draw.randrange(len(PROMPTS)) for _ in range(self.draw.choice([1, 1, 4]))]
        view, alone = self.shared[place].with_adapter(self.digests[place][member]), self.members[place][member]
        items = [item([*PROMPTS[number]]) for number in numbers]
        work = ScoringWork(Model(f"{place} {member}", view), items, alone.head)  # type: ignore[arg-type]
        self.labels.append((work, alone, numbers))
        self.queue.add(work)

    @torch.inference_mode()
    def score_now(self, _: int) -> None:
        self.queue.compute(self.draw.choice([60, 300]))
        for entry in [entry for entry in self.labels if entry[0].future.done()]:
            self.labels.remove(entry)
            work, alone, numbers = entry
            for got, number in zip(work.future.result(), numbers, strict=True):
                expected = alone.label(number)
                assert (got - expected).abs().max() <= 1e-3, (work.model.name, number)  # of labels of about 10

    def add(self, place: int) -> None:
        """Load an adapter, one that has been removed again with the same digest; one that is there stays the same."""
        number = self.draw.randrange(len(TUNINGS) - 1)
        member, before = self.members[place][number], self.digests[place].get(number)
        digest = self.shared[place].engine.add_adapter(member.folder, member.layers)
        assert before in (None, digest)
        self.digests[place][number] = digest

    def remove(self, place: int) -> None:
        """Remove an adapter that rows may decode with: they fail, the texts of others and what is kept of them stay."""
        number = self.draw.choice([*self.digests[place]])
        digest, batch = self.digests[place][number], self.batches[place]
        if digest is None or any(work.model.backbone.adapter == digest for work, *_ in self.labels):
            return
        kept = [text for text in getattr(batch, "kept", []) if text.adapter != digest]
        self.shared[place].engine.remove_adapter(digest)
        del self.digests[place][number]
        for row in [row for row, (at, of, _) in self.rows.items() if (at, of) == (place, number)]:
            if row in batch.rows:
                with pytest.raises(KeyError, match=f"no adapter {digest}"):
                    batch.step()
                self.count("rows of a removed adapter")
            batch.leave(row)
            del self.rows[row]
        if hasattr(batch, "kept"):
            batch._forget_outdated()  # as the next read does
            assert batch.kept == kept
            self.count("kept texts beside a removed adapter" if kept else "none kept")

    def leave(self, place: int) -> None:
        if rows := [row for row, (at, *_) in self.rows.items() if at == place]:
            row = self.draw.choice(rows)
            self.batches[place].leave(row)
            self.check(row)
            del self.rows[row]

    def read(self, place: int) -> None:
        self.batches[place].read(self.draw.choice([7, 30, 256]))

    def step(self, place: int) -> None:
        present = self.batches[place].rows
        if len({row.adapter for row in present}) > 1:
            self.count("mixed steps")
        for row in self.batches[place].step():
            self.check(row)
            assert len(row.new_ids) == row.limit
            del self.rows[row]

    def check(self, row: DecodingRow) -> None:
        place, member, prompt = self.rows[row]
        expected = self.members[place][member].text(prompt, row.options, row.draw)
        assert row.new_ids == expected[: len(row.new_ids)], (place, member, prompt)
        self.count("texts")


@pytest.fixture(scope="module")
def members_of(backbone_of: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``members_of("llama", seed)``: the models of `TUNINGS` on the random backbone of a seed, made once."""
    made: dict[Any, list[Member]] = {}

    def make(family: str, seed: int) -> list[Member]:
        if (family, seed) not in made:
            bare = endless(backbone_of(family, 256, seed, LAYERS))
            made[family, seed] = [
                Member(copy.deepcopy(bare), number, tmp_path_factory.mktemp("adapter"))
                for number in range(len(TUNINGS))
            ]
        return made[family, seed]

    return make


def endless(backbone: Any) -> Any:
    """The backbone without stop tokens, so that no text ends early."""
    backbone.tokenizer.eos_token = None
    backbone.model.generation_config.eos_token_id = None
    return backbone.eval()


LONG = [
    *((family, engine, 2, 700) for family in ("llama", "gpt2", "qwen2", "qwen3", "gemma3") for engine in (Fast(),)),
    *((family, Reference(), 2, 300) for family in ("llama", "gpt2", "gemma3")),
    ("llama", Fast(packing=False), 2, 300),
    ("llama", Fast(linear=False), 2, 300),
]


@pytest.mark.parametrize(
    ("family", "engine", "backbones", "operations"),
    [
        ("llama", Fast(), 2, 270),
        ("llama", Reference(), 1, 40),
        *(pytest.param(*case, marks=pytest.mark.long) for case in LONG),
    ],
)
def test_any_order_of_operations_gives_each_model_its_own_answers(
    family: str,
    engine: Any,
    backbones: int,
    operations: int,
    backbone_of: Callable[..., Any],
    members_of: Callable[..., Any],
) -> None:
    members = [members_of(family, seed) for seed in range(backbones)]
    shared = [copy.deepcopy(one[-1].backbone) for one in members]
    for backbone in shared:
        backbone.use_engine(engine)
    interleaving = Interleaving(shared, members, seed=operations)
    interleaving.run(operations)
    assert interleaving.counts["mixed steps"] > operations / 15
    assert interleaving.counts["texts"] > operations / 8
