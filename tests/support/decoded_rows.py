"""Texts that a backbone's engine writes behind prompts, together and each alone."""

from typing import Any

import pytest
from gptask.model.engine.interface import DecodingRow
from gptask.plugins.generation_options import GenerationOptions

Decoded = list[tuple[list[int], float | None]]  # token ids and score of each prompt


def decode_batch(backbone: Any, prompts: list[list[int]], limits: Any = 16, **options: Any) -> Decoded:
    """All prompts are continued at once, by so many tokens, or as many as ``limits`` says for each."""
    limits = [limits] * len(prompts) if isinstance(limits, int) else list(limits)
    generation = GenerationOptions(**options)
    rows = [DecodingRow(prompt, limit, generation) for prompt, limit in zip(prompts, limits, strict=True)]
    backbone.engine.decode(rows)
    return [(row.new_ids, row.score) for row in rows]


def decode_alone(backbone: Any, prompts: list[list[int]], **options: Any) -> Decoded:
    """The prompts are continued one at a time."""
    return [decode_batch(backbone, [prompt], **options)[0] for prompt in prompts]


def assert_same(got: Decoded, expected: Decoded) -> None:
    """Ids are equal, and scores to about one in a thousand."""
    assert [ids for ids, _ in got] == [ids for ids, _ in expected]
    assert [score for _, score in got] == pytest.approx([score for _, score in expected], rel=1e-3)


def shapes_read(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A list of the shapes of ids (B, T) that the decoder reads from here on."""
    shapes: list[tuple[int, int]] = []
    forward = backbone.body.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.body, "forward", spy)
    return shapes
