"""Rows of different options are sampled together as transformers samples each alone; draws follow the weights."""

import itertools

import pytest
import torch
from gptask.model.engine.interface import DecodingRow
from gptask.model.engine.next_tokens import Sampler, sampling_weights
from gptask.plugins.generation_options import GenerationOptions
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCABULARY = 600
CASES = [
    dict(zip(("temperature", "top_k", "top_p", "repetition_penalty"), case, strict=True))
    for case in itertools.product((0.3, 1.0, 4.0), (0, 1, 7, 10_000), (0.05, 0.8, 0.999, 1.0), (1.0, 1.7))
]


def row_of(prompt=(1, 2), new_ids=(), draw=0, **options):
    row = DecodingRow([*prompt], 50, GenerationOptions(**options), draw=draw)
    row.new_ids = [*new_ids]
    return row


def expected_weights(row, logits_1V):
    options, processors = row.options, LogitsProcessorList()
    processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    processors.append(TemperatureLogitsWarper(options.temperature))
    processors += [TopKLogitsWarper(options.top_k)] if options.top_k else []
    processors += [TopPLogitsWarper(options.top_p)] if options.top_p < 1 else []
    return processors(torch.tensor([row.ids]), logits_1V).softmax(-1)


def test_rows_of_different_options_have_the_weights_of_transformers():
    torch.manual_seed(0)
    rows = [row_of(torch.randint(VOCABULARY, (9,)).tolist(), [3, 4, 4], **case) for case in CASES]
    logits = torch.randn(len(rows), VOCABULARY) * 2
    weights = sampling_weights(rows, Sampler({0})._processed(rows, logits))
    for row, weights_V, logits_V in zip(rows, weights, logits, strict=True):
        torch.testing.assert_close((weights_V / weights_V.sum())[None], expected_weights(row, logits_V[None]))


def test_all_penalties_hold_before_temperature_top_k_and_top_p():
    torch.manual_seed(1)
    options = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.3}
    row, plain = row_of([5, 5, 9], [3, 4, 4], **options), row_of([5, 5, 9], [3, 4, 4], **options)
    row.frequency_penalty, row.presence_penalty = 0.5, -1.5
    logits = torch.randn(1, VOCABULARY) * 2
    for _ in range(3):  # a step after the other, with what the row keeps of the last one
        lost = row.presence_penalty + row.frequency_penalty * torch.tensor(row.new_ids).bincount(minlength=VOCABULARY)
        repeated = RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])(torch.tensor([row.ids]), logits)
        plain.options.repetition_penalty = 1.0
        expected = expected_weights(plain, repeated - lost * (lost != row.presence_penalty))
        weights = sampling_weights([row], Sampler({0})._processed([row], logits))
        torch.testing.assert_close(weights / weights.sum(), expected)
        row.new_ids += [7, 3]


def test_of_equal_tokens_top_p_keeps_as_many_as_its_mass_needs():
    logits = torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, -float("inf")]])
    weights = sampling_weights([row_of(temperature=1.0, top_p=0.7), row_of(temperature=1.0, top_p=0.5)], logits)
    assert (weights > 0).tolist() == [[True, True, False, False, False], [True, True, False, False, False]]


def test_greedy_rows_beside_sampled_ones_take_the_likeliest_token():
    logits = torch.randn(4, 30)
    rows = [row_of(), row_of(temperature=5.0), row_of(), row_of(temperature=1e-320)]
    tokens, _ = Sampler({0})(rows, logits)
    best = logits.argmax(-1).tolist()
    assert [tokens[0], tokens[2], tokens[3]] == [best[0], best[2], best[3]]


def test_a_seed_draws_the_same_whatever_the_other_rows_are():
    logits = torch.randn(1, 40)

    def draws(*others, **options):
        row = row_of(**options)
        return [Sampler({0})([*others, row], logits.expand(len(others) + 1, -1))[0][-1] for _ in range(20)]

    alone = draws(temperature=2.0, seed=7)
    assert alone == draws(row_of(temperature=3.0), row_of(), temperature=2.0, seed=7)
    assert alone != draws(temperature=2.0, seed=8)
    assert draws(temperature=2.0, seed=7, draw=1) == draws(temperature=2.0, seed=8)


def test_frequencies_are_the_weights():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -float("inf")]])
    rows = [row_of(temperature=1.0, seed=seed) for seed in range(1500)]
    tokens, _ = Sampler(set())(rows, logits.expand(len(rows), -1))
    counts = torch.tensor(tokens).bincount(minlength=5)
    assert counts[4] == 0
    torch.testing.assert_close(counts / len(rows), logits[0].softmax(0), atol=0.05, rtol=0)


def test_frequency_and_presence_penalties_count_the_text_but_not_the_prompt():
    plain, row = row_of([5, 5], [1, 1, 2]), row_of([5, 5], [1, 1, 2])
    row.frequency_penalty, row.presence_penalty = 0.5, 0.25
    logits = torch.randn(2, 8)
    processed = Sampler(set())._processed([plain, row], logits)
    torch.testing.assert_close(processed[0], logits[0])
    lost = torch.zeros(8).index_put((torch.tensor([1, 2]),), torch.tensor([1.25, 0.75]))
    torch.testing.assert_close(processed[1], logits[1] - lost)


class Only:
    """A constraint that lets the tokens of a text follow, one by one."""

    def __init__(self, ids):
        self.ids = list(ids)

    def allowed(self, vocabulary):
        return torch.nn.functional.one_hot(torch.tensor(self.ids[0]), vocabulary).bool()

    def advance(self, token):
        assert token == self.ids.pop(0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_holds_for_its_row_alone(temperature):
    free, bound = row_of(), row_of(temperature=temperature, min_new_tokens=9)
    bound.constraint = Only([3, 7, 0])
    logits = torch.randn(2, 9)
    written = [Sampler({0})([free, bound], logits) for _ in range(3)]
    assert [tokens for tokens, _ in written] == [[logits[0].argmax(), token] for token in (3, 7, 0)]
    expected = logits.log_softmax(-1)[1, [3, 7, 0]]  # the model's own
    torch.testing.assert_close(torch.tensor([values[1] for _, values in written]), expected)


def test_the_likeliest_tokens_are_recorded_for_rows_that_ask():
    rows = [row_of(temperature=1.0, top_k=1), row_of(), row_of()]
    rows[0].top_count, rows[2].top_count = 3, 2
    logits = torch.randn(3, 9)
    Sampler(set())(rows, logits)
    for row, logits_V in zip(rows, logits, strict=True):
        values, ids = logits_V.log_softmax(-1).topk(row.top_count or 1)
        expected = [[*zip(ids.tolist(), values.tolist(), strict=True)]] if row.top_count else []
        assert [[(i, pytest.approx(v)) for i, v in top] for top in expected] == row.top_tokens


def test_numbers_that_are_not_finite_do_not_stop_the_other_rows():
    logits = torch.stack([torch.full((9,), float("nan")), torch.arange(9.0)])
    tokens, log_probabilities = Sampler({0})([row_of(temperature=1.0), row_of(temperature=1.0, top_k=1)], logits)
    assert tokens[1] == 8
    assert 0 <= tokens[0] < 9
    assert log_probabilities[0] != log_probabilities[0]
