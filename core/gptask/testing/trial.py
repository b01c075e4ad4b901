"""What the contract is tried on: a task's own sample, a tiny random GPT-2, a batch learned by heart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from gptask.config import schemas
from gptask.data.corpus import CachedCorpus
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Prediction
from gptask.training import builder

if TYPE_CHECKING:
    from gptask.data.datamodule import PaddedBatch
    from gptask.model.backbone.backbone import GPTBackbone
    from gptask.model.heads import Head

BATCH, CONTEXT, STEPS = 4, 512, 200


class Trial:
    """One task with what the clauses look at, each part made when first asked for."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @cached_property
    def corpus(self) -> CachedCorpus:
        """The bundled sample."""
        return builder.build_corpus(self.task, schemas.Sample(max_tokens=CONTEXT, batch_size=BATCH), seed=0)

    @cached_property
    def parts(self) -> builder.Parts:
        """A run's parts on a random backbone."""
        import torch

        from gptask.model.backbone import backbone as model

        self.task.prepare(self.corpus.split("train"))
        torch.manual_seed(0)
        options = schemas.Scratch(n_layer=2, n_head=2, n_embd=64, context=CONTEXT, vocab_size=512)
        backbone = model.load_backbone_from(options, None, lambda: builder.training_texts(self.task, self.corpus))
        return builder.build_parts(self.task, self.corpus, self.corpus.options, backbone, seed=0)

    @cached_property
    def examples(self) -> list[Example]:
        """A few short training examples, with as many different answers and groups as can be had."""
        first = list(islice(self.corpus.split("train"), 64))
        short = sorted(first, key=lambda e: sum(item["length"] for item in self.items([e])))[: max(len(first) // 4, 8)]
        seen: Counter[Any] = Counter()
        rank = []
        for example in short:
            marks = (repr([example[f.name] for f in self.task.targets()]), example["group"])
            rank.append(sum(seen[mark] for mark in marks))
            seen.update(marks)
        order = sorted(range(len(short)), key=rank.__getitem__)
        return [short[number] for number in order[:BATCH]]

    def items(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Encoded items of examples; ``example`` says whose each is."""
        from gptask.data.datamodule import encode

        tokenizer = self.parts.backbone.tokenizer
        return [
            item | {"example": number}
            for number, example in enumerate(examples)
            for item in encode(self.task, example, tokenizer, CONTEXT)
        ]

    def batch(self, pads: int = 0, pad: int = 0) -> PaddedBatch:
        """The examples as one batch, with more pads than it needs if asked for."""
        from gptask.data.datamodule import collate

        return padded(collate(self.items(self.examples)), pads, pad)

    @cached_property
    def generates(self) -> bool:
        """Whether the head learns target tokens."""
        return self.items(self.examples)[0]["target"] is not None

    @cached_property
    def trained(self) -> tuple[GPTBackbone, Head, list[float]]:
        """GPTBackbone and head after they were fitted to the one batch, and the loss of every step."""
        import torch

        from gptask.model.heads import GenerationHead

        backbone, head = deepcopy((self.parts.backbone, self.parts.head))
        if isinstance(head, GenerationHead):  # sampled texts can't be compared
            head.options = replace(head.options, temperature=0.0)
        batch, losses = self.batch(), list[float]()
        optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=3e-3, fused=True)
        while len(losses) < STEPS and (not losses or losses[-1] > 0.005 * losses[0]):
            optimizer.zero_grad()
            loss = head.loss(backbone.hidden(batch.input_ids), batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return backbone.eval(), head.eval(), losses

    def outputs(self, batch: PaddedBatch, *, states: bool = False) -> list[Any]:
        """What the trained head says about each sequence of a batch, given its ``states`` or not."""
        import torch

        backbone, head, _ = self.trained
        with torch.inference_mode():
            return head.predict(backbone, batch, backbone.hidden(batch.input_ids) if states else None)

    @cached_property
    def predictions(self) -> list[Prediction]:
        """What the trained task says about its own training batch: as right as it gets."""
        return self._merged(self.outputs(self.batch()))

    @cached_property
    def untrained(self) -> list[Prediction]:
        """What the task says about that batch before any training."""
        import torch

        with torch.inference_mode():
            return self._merged(self.parts.head.predict(self.parts.backbone, self.batch()))

    def _merged(self, outputs: list[Any]) -> list[Prediction]:
        from gptask.model.predictions import predictions_by_example

        owners = np.array([item["example"] for item in self.items(self.examples)])
        return predictions_by_example(self.task, self.examples, owners, dict(enumerate(outputs)))[1]


def padded(batch: PaddedBatch, pads: int, pad: int = 0) -> PaddedBatch:
    """A batch with more pads behind every sequence."""
    from torch.nn.functional import pad as widen

    return replace(batch, input_ids=widen(batch.input_ids, (0, pads), value=pad))
