"""The objects that the contract is checked on: a task's sample, a tiny random GPT-2, a memorized batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gptask.config import schemas
from gptask.config.engine import Fast, Reference
from gptask.data.corpus import CachedCorpus
from gptask.model.predictions import predictions_by_example
from gptask.plugins.task import Task, with_options
from gptask.plugins.types import Example, Prediction
from gptask.training import builder
from gptask.training.resolve import prepared_options

if TYPE_CHECKING:
    from gptask.data.datamodule import PaddedBatch
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

BATCH_SIZE, CONTEXT, MAX_STEPS = 4, 512, 200


@dataclass
class Parts:
    """The parts of a run."""

    backbone: GPTBackbone
    head: Head
    data: Any  # the data module


class Trial:
    """One task with the objects that the clauses examine, each built on first use."""

    def __init__(self, task: Task) -> None:
        self.task = task  # with the options that `Task.prepare` chooses, once `parts` are built

    @cached_property
    def corpus(self) -> CachedCorpus:
        """The corpus of the bundled sample."""
        return builder.build_corpus(self.task, schemas.Sample(max_tokens=CONTEXT, batch_size=BATCH_SIZE), seed=0)

    @cached_property
    def chosen_options(self) -> dict[str, Any]:
        """The options that `Task.prepare` chooses."""
        return prepared_options(self.task, self.corpus.split("train"))

    @cached_property
    def parts(self) -> Parts:
        """The parts of a run on a random backbone."""
        import torch

        from gptask.model.backbone.backbone import load_or_build_backbone

        self.task = with_options(self.task, self.chosen_options)
        torch.manual_seed(0)
        options = schemas.Scratch(n_layer=2, n_head=2, n_embd=64, context=CONTEXT, vocab_size=512)
        backbone = load_or_build_backbone(options, None, lambda: builder.training_texts(self.task, self.corpus), Fast())
        head = cast("Head", self.task.head(backbone))
        data = builder.build_data(self.task, self.corpus, self.corpus.options, backbone, seed=0)
        return Parts(backbone, head, data)

    @cached_property
    def on_reference_engine(self) -> Trial:
        """The same task and backbone, computed and trained by the reference engine."""
        other = copy(self)
        for name in ("trained", "predictions", "untrained"):
            vars(other).pop(name, None)
        backbone, head = deepcopy((self.parts.backbone, self.parts.head))
        backbone.use_engine(Reference())
        other.parts = Parts(backbone, head, self.parts.data)
        return other

    @cached_property
    def examples(self) -> list[Example]:
        """A few short training examples with answers and groups as different as possible."""
        first = list(islice(self.corpus.split("train"), 64))
        by_length = sorted(first, key=lambda example: sum(item["length"] for item in self.items([example])))
        short = by_length[: max(len(first) // 4, 8)]
        occurrences: Counter[Any] = Counter()
        repetitions = []  # of each example's answer and group among those before it
        for example in short:
            keys = (repr([example[f.name] for f in self.task.targets()]), example["group"])
            repetitions.append(sum(occurrences[key] for key in keys))
            occurrences.update(keys)
        order = sorted(range(len(short)), key=repetitions.__getitem__)
        return [short[number] for number in order[:BATCH_SIZE]]

    def items(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Encode examples; ``example`` in each item is the number of its example."""
        from gptask.data.datamodule import encode

        tokenizer = self.parts.backbone.tokenizer
        return [
            item | {"example": number}
            for number, example in enumerate(examples)
            for item in encode(self.task, example, tokenizer, CONTEXT)
        ]

    def batch(self, extra_pads: int = 0, pad_id: int = 0) -> PaddedBatch:
        """Return the examples as one batch, with ``extra_pads`` more pads after each sequence than it needs."""
        from gptask.data.datamodule import collate

        return padded(collate(self.items(self.examples)), extra_pads, pad_id)

    @cached_property
    def generates(self) -> bool:
        """Whether the head learns target tokens."""
        return self.items(self.examples)[0]["target"] is not None

    @cached_property
    def trained(self) -> tuple[GPTBackbone, Head, list[float]]:
        """Backbone and head trained on the one batch until the loss is tiny, and the loss of every step."""
        import torch

        backbone, head = deepcopy((self.parts.backbone, self.parts.head))
        batch, losses = self.batch(), list[float]()
        optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=3e-3, fused=True)
        while len(losses) < MAX_STEPS and (not losses or losses[-1] > 0.005 * losses[0]):
            optimizer.zero_grad()
            loss = head.loss(backbone.hidden(batch.input_ids), batch)
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        return backbone.eval(), head.eval(), losses

    def outputs(self, batch: PaddedBatch, *, packed: bool = True) -> list[Any]:
        """Return the trained head's output for each sequence of a batch; ``packed``: its states are computed packed."""
        return _outputs(self.trained[1], batch, packed)

    @cached_property
    def predictions(self) -> list[Prediction]:
        """The trained task's predictions for its own training batch, the best that it can make."""
        return self._merge(self.task, self.outputs(self.batch()))

    @cached_property
    def untrained(self) -> list[Prediction]:
        """The predictions for the same batch before any training."""
        return self._merge(self.task, _outputs(self.parts.head, self.batch()))

    def predictions_of(self, task: Task) -> list[Prediction]:
        """The predictions for the same batch by the trained weights in a head that ``task`` builds."""
        backbone, trained_head, _ = self.trained
        head = cast("Head", task.head(backbone)).eval()
        head.load_state_dict(trained_head.state_dict())
        return self._merge(task, _outputs(head, self.batch()))

    def _merge(self, task: Task, outputs: list[Any]) -> list[Prediction]:
        """Merge the outputs of all sequences into one prediction for each example."""
        owners = np.array([item["example"] for item in self.items(self.examples)])
        return predictions_by_example(task, self.examples, owners, dict(enumerate(outputs)))[1]


def _outputs(head: Head, batch: PaddedBatch, packed: bool = True) -> list[Any]:
    """Return a head's output for each sequence of a batch; texts are not sampled, which could not be compared."""
    import torch

    from gptask.model.heads import GenerationHead

    if isinstance(head, GenerationHead):
        head.options = replace(head.options, temperature=0.0)
    with torch.inference_mode():
        if head.decodes:
            return head.predict(None, batch)
        lengths, needed = (batch.lengths, head.needed_positions(batch)) if packed else (None, None)
        return head.predict(head.backbone.hidden(batch.input_ids, lengths, needed), batch)


def padded(batch: PaddedBatch, extra_pads: int, pad_id: int = 0) -> PaddedBatch:
    """Return a batch with ``extra_pads`` more pads after every sequence."""
    from torch.nn.functional import pad

    return replace(batch, input_ids=pad(batch.input_ids, (0, extra_pads), value=pad_id))
