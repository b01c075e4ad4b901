"""What sequences have in common at their start is computed once, and states and gradients stay the same."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from gptask.data import prefixes
from gptask.model.engine import attention, packing

from tests.support.tiny_models import FAMILIES

CONTEXTS = [[5, 6, 7, 8], [5, 9, 5]]
ROWS = [[*CONTEXTS[0], 11, 12], [*CONTEXTS[1], 13], [*CONTEXTS[0], 14], [*CONTEXTS[1], 11, 12], [20, 21, 22], [30]]


def groups_of(rows):
    groups = prefixes.prefix_groups([np.array(row) for row in rows])
    return sorted((sorted(members), length) for members, length in groups)


def saved(rows, partition):
    """How many tokens a partition into groups saves."""
    total = 0
    for members in partition:
        prefix = min(len(rows[row]) for row in members) - 1
        while any(rows[a][:prefix] != rows[b][:prefix] for a, b in pairwise(members)):
            prefix -= 1
        total += prefix * (len(members) - 1)
    return total


def partitions(items):
    """Every way to split items into sets."""
    if not items:
        yield []
        return
    first, *rest = items
    for sets in partitions(rest):
        yield [[first], *sets]
        for place in range(len(sets)):
            yield [*sets[:place], [first, *sets[place]], *sets[place + 1 :]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2, 3]], [([0], 2)]),
        ([[1, 2, 3], [1, 2, 3], [1, 2, 3]], [([0, 1, 2], 2)]),  # each keeps a last token of its own
        ([[1, 2, 3, 4], [1, 2]], [([0, 1], 1)]),
        ([[5, 1, 2], [6, 1, 2]], [([0], 2), ([1], 2)]),
        ([[5], [5, 6]], [([0], 0), ([1], 1)]),
        # two questions share a context; the third row shares only its first token
        ([[1, 2, 3, 4, 5], [1, 9, 9], [1, 2, 3, 4, 6]], [([0, 2], 4), ([1], 2)]),
        ([[300, 1], [70_000, 1], [300, 2]], [([0, 2], 1), ([1], 1)]),  # ids of more than one byte
    ],
)
def test_sequences_are_grouped_by_common_prefix(rows, expected):
    assert groups_of(rows) == expected


@pytest.mark.parametrize("seed", range(8))
def test_no_grouping_saves_more_tokens(seed):
    generator = np.random.default_rng(seed)
    rows = [generator.integers(1, 3, generator.integers(1, 7)).tolist() for _ in range(7)]
    saved_tokens = sum(length * (len(members) - 1) for members, length in groups_of(rows))
    assert saved_tokens == max(saved(rows, partition) for partition in partitions(list(range(7))))


def test_a_split_holds_every_sequence():
    parts = packing.split_prefixes(ROWS)
    pairs = zip(parts.prefix_numbers, parts.suffixes, strict=True)
    assert [parts.prefixes[number] + suffix for number, suffix in pairs] == ROWS
    assert parts.size == sum(map(len, ROWS)) - len(CONTEXTS[0]) - len(CONTEXTS[1])
    unshared = packing.split_prefixes(ROWS, share=False)
    assert (unshared.prefixes, unshared.suffixes) == ([[]], ROWS)


def padded(rows):
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return ids, lengths, torch.arange(ids.shape[1])[None] < lengths[:, None]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_those_of_whole_sequences(family, adapted_backbone_of):
    ids, lengths, real = padded(ROWS)
    backbone = adapted_backbone_of(family)
    weights = torch.randn(*ids.shape, backbone.channels)[real]
    shapes, results = [], []
    backbone.body.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    for known_lengths in (None, lengths):
        backbone.zero_grad()
        states = backbone.hidden(ids, known_lengths)[real]
        (states * weights).sum().backward()
        results.append((states.detach(), [p.grad.clone() for p in backbone.parameters() if p.requires_grad]))
    assert shapes[0] == tuple(ids.shape)
    assert shapes[1:] == [(1, packing.split_prefixes(ROWS).size)]
    (expected_states, expected_gradients), (states, gradients) = results
    torch.testing.assert_close(states, expected_states, atol=1e-5, rtol=1e-4)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("family", "rows", "shape"),
    [
        ("llama", [[1, *range(5, 30)], [2, *range(5, 30)]], (2, 26)),  # nothing in common, no pads
        ("llama", [[1, 2, 3, 4, 5, 6], [7]], (1, 7)),  # pads
        ("gemma3", [[*range(8)]] * 4, (1, 11)),
        ("gemma3", [[*range(10)]] * 4, (1, 13)),  # longer than the window of some layers
    ],
)
def test_sequences_are_packed_where_that_saves_tokens(family, rows, shape, backbone_of):
    backbone, shapes = backbone_of(family), []
    backbone.body.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    ids, lengths, _ = padded(rows)
    backbone.hidden(ids, lengths)
    assert shapes == [shape]


def test_packing_is_supported_unless_layers_mix_tokens_by_other_means(backbone_of):
    from transformers import Lfm2Config, Lfm2ForCausalLM

    assert all(packing.supports_packing(backbone_of(family)) for family in FAMILIES)
    backbone = backbone_of("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 320}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}
    torch.manual_seed(0)
    backbone.set_model(Lfm2ForCausalLM(Lfm2Config(**sizes, **heads)))
    assert attention.is_installed(backbone.model)
    assert not packing.supports_packing(backbone)
    assert "by other means" in backbone.engine.off["packing"]
    assert not backbone.engine.can_pack(6)


def mistral(**settings):
    """A Mistral whose layers all have a window."""
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 320}
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **settings))


@pytest.mark.parametrize("prefix", [12, 3], ids=["longer than the window", "shorter"])
@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_packed_layers_with_a_window_see_no_farther_than_in_whole_sequences(family, prefix, backbone_of):
    backbone = backbone_of("llama" if family == "mistral" else family)
    if family == "mistral":
        backbone.set_model(mistral(sliding_window=5, tie_word_embeddings=True))
    rows = [[*range(5, 5 + prefix), *range(40 + row, 41 + 4 * row)] for row in range(4)]
    assert backbone.config.sliding_window < max(map(len, rows))
    ids, lengths, real = padded(rows)
    weights = torch.randn(*ids.shape, backbone.channels)[real]
    results = []
    for backbone.engine.packs_windows in (False, True):
        assert backbone.engine.can_pack(99) is backbone.engine.packs_windows
        backbone.zero_grad()
        states = backbone.hidden(ids, lengths)[real]
        (states * weights).sum().backward()
        results.append((states.detach(), [p.grad.clone() for p in backbone.parameters()]))
    (expected_states, expected_gradients), (states, gradients) = results
    torch.testing.assert_close(states, expected_states, atol=1e-5, rtol=1e-4)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-2)


def test_a_model_that_does_not_pass_its_window_is_detected(backbone_of):
    assert all(packing.passes_window(backbone_of(family)) for family in FAMILIES)
    backbone = backbone_of("gemma3")
    assert backbone.engine.can_pack(99)
    for layer in backbone.layers:
        layer.self_attn.sliding_window = None  # as if the layer did not pass it
    assert not packing.passes_window(backbone)
    backbone.engine.packs_windows = False
    assert backbone.engine.can_pack(8)
    assert not backbone.engine.can_pack(9)
