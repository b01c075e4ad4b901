"""Sampled tokens have the probabilities that the options promise, a seed repeats them, and stop texts end a text."""

import pytest
import torch
from gptask.model.engine.sampling import stop_test
from gptask.model.generation.generate import generate
from gptask.plugins.generation_options import GenerationOptions
from scipy.stats import chisquare

PROMPTS = [[40, 41, 42], list(range(5, 25)), [7], list(range(60, 72))]
OPTIONS = [
    {"temperature": 3.0},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 4.0, "top_p": 0.6},
    {"temperature": 2.5, "top_k": 12, "top_p": 0.8},
]


class IdsAsText:
    """A tokenizer whose text is the token ids."""

    eos_token_id = 0

    def batch_decode(self, rows, **options):
        return [" ".join(map(str, row)) for row in rows]


@pytest.fixture
def llama(backbone_of):
    backbone = backbone_of("llama")
    backbone.tokenizer = IdsAsText()
    return backbone


@torch.no_grad()
def probabilities(backbone, ids, temperature, top_k=0, top_p=1.0):
    """(V,) by the definitions of Fan et al. 2018 (top-k) and Holtzman et al. 2020 (nucleus), without the engine."""
    logits = backbone.model(torch.tensor([ids])).logits[0, -1].double() / temperature
    if top_k:
        logits[logits < logits.sort(descending=True)[0][top_k - 1]] = -torch.inf
    sorted_probabilities, order = logits.softmax(-1).sort(descending=True)
    nucleus = int((sorted_probabilities.cumsum(0) < top_p).sum()) + 1
    remaining = torch.zeros_like(sorted_probabilities)
    remaining[order[:nucleus]] = sorted_probabilities[:nucleus]
    return remaining / remaining.sum()


def sampled_texts(backbone, prompt, count, **options):
    torch.manual_seed(0)
    return [text.text for text in generate(backbone, [prompt] * count, GenerationOptions(**options))]


def fits(counts, expected):
    """Whether counts fit the expected probabilities, by a chi-square test; rare tokens are counted together."""
    total = counts.sum()
    rare = expected * total < 8
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]]) * total
    observed, wanted = (part[wanted > 0] for part in (observed, wanted))
    return chisquare(observed.numpy(), (wanted * observed.sum() / wanted.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_frequencies_are_the_probabilities(options, llama):
    expected = probabilities(llama, PROMPTS[0], **options)
    texts = sampled_texts(llama, PROMPTS[0], 3000, max_new_tokens=1, **options)
    counts = torch.tensor([int(text or 0) for text in texts]).bincount(minlength=len(expected))
    assert not counts[expected == 0].any()
    assert (counts > 0).sum() > 3
    assert fits(counts, expected)
    other = probabilities(llama, PROMPTS[0], **options | {"temperature": options["temperature"] * 1.5})
    assert not fits(counts, other)  # the test can tell


def test_a_second_token_is_sampled_given_the_first(llama):
    options = {"temperature": 4.0, "top_k": 3}
    first = probabilities(llama, PROMPTS[0], **options)
    pairs = {}
    for one in first.nonzero()[:, 0].tolist():
        second = probabilities(llama, [*PROMPTS[0], one], **options)
        pairs |= {f"{one} {two}": float(first[one] * second[two]) for two in second.nonzero()[:, 0].tolist()}
    texts = sampled_texts(llama, PROMPTS[0], 2000, max_new_tokens=2, **options)
    assert set(texts) <= set(pairs)
    counts = torch.tensor([texts.count(pair) for pair in pairs])
    assert fits(counts, torch.tensor(list(pairs.values()), dtype=torch.double))


def test_a_seed_repeats_a_prompts_samples_whatever_the_other_prompts(llama):
    options = GenerationOptions(max_new_tokens=8, temperature=3.0, seed=5, samples=3)
    together = generate(llama, PROMPTS, options)
    assert [generate(llama, [prompt], options)[0].samples for prompt in PROMPTS] == [text.samples for text in together]
    other = generate(llama, PROMPTS, GenerationOptions(max_new_tokens=8, temperature=3.0, seed=6, samples=3))
    assert other[0].samples[:2] == together[0].samples[1:]  # sample n of a seed is sample 0 of seed + n
    assert all(len(set(text.samples)) == 3 for text in together)


def test_seeded_frequencies_are_the_probabilities(llama):
    options = OPTIONS[3]
    expected = probabilities(llama, PROMPTS[0], **options)
    (text,) = generate(llama, PROMPTS[:1], GenerationOptions(max_new_tokens=1, samples=3000, seed=1, **options))
    assert fits(torch.tensor([int(sample) for sample in text.samples]).bincount(minlength=len(expected)), expected)


@torch.no_grad()
def test_of_several_samples_the_likeliest_is_the_answer(llama):
    (text,) = generate(llama, PROMPTS[:1], GenerationOptions(max_new_tokens=4, temperature=3.0, seed=1, samples=6))

    def mean_log_probability(sample):
        ids = [*PROMPTS[0], *map(int, sample.split())]
        log_probabilities = llama.model(torch.tensor([ids])).logits[0, 2:-1].log_softmax(-1)
        return float(log_probabilities.gather(1, torch.tensor(ids[3:])[:, None]).mean())

    assert text.text == max(text.samples, key=mean_log_probability)
    assert text.text != text.samples[0]
    assert text.score == pytest.approx(torch.tensor(mean_log_probability(text.text)).exp().item(), rel=1e-4)


def test_a_single_sample_is_not_listed(llama):
    assert [text.samples for text in generate(llama, PROMPTS, GenerationOptions(max_new_tokens=2))] == [None] * 4


def test_eos_waits_for_min_new_tokens(llama):
    ids = torch.tensor(PROMPTS[:1])
    free = llama.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 3:].tolist()
    end = free[2]
    llama.model.generation_config.eos_token_id = [0, end]
    short = generate(llama, PROMPTS[:1], GenerationOptions(max_new_tokens=12))[0].text
    assert len(short.split()) == free.index(end) <= 2
    expected = llama.model.generate(ids, max_new_tokens=12, min_new_tokens=6, do_sample=False, pad_token_id=0)
    long = generate(llama, PROMPTS[:1], GenerationOptions(max_new_tokens=12, min_new_tokens=6))[0].text
    assert len(long.split()) >= 6
    expected_ids = [token for token in expected[0, 3:].tolist() if token not in (0, end)]
    assert long.split() == list(map(str, expected_ids))


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of bytes, and of a few words of several letters."""
    from gptask.model.backbone.scratch import train_tokenizer

    return train_tokenizer(["good film, good film\n\n"] * 3, 270)


STOPS = [
    ("a good film is on END of it", ["ND o"]),  # several tokens
    ("a good film, good film", ["oo"]),  # inside a token
    ("a good film, good film", ["m, go"]),  # starts and ends inside tokens
    ("good\n\nfilm", ["\n"]),
    ("电影很好。这部电影", ["。"]),  # three bytes, a token each
    ("这部电影很好", ["影很"]),
    ("so 这部电影讲的是龙凤龟麟虎豹狮象的事", ["这部电影讲的是龙凤龟麟虎豹狮象"]),  # more tokens than letters
    ("film 🙂 good", ["🙂"]),
    ("a good film", ["never", "film", " good"]),
]


@pytest.mark.parametrize(("text", "stops"), STOPS)
def test_a_stop_text_is_found_with_its_last_token_and_not_before(text, stops, tokenizer):
    is_stopped = stop_test(tokenizer, stops)
    ids = tokenizer(text)["input_ids"]
    first = next(n for n in range(len(ids)) if any(stop in tokenizer.decode(ids[: n + 1]) for stop in stops))
    assert next(n for n in range(len(ids)) if is_stopped(ids[: n + 1])) == first


@pytest.mark.parametrize(("text", "stops"), [("这部电影很好", ["影好", "龙"]), ("a good film", ["x", "filmy"])])
def test_a_stop_text_that_is_not_there_is_not_found(text, stops, tokenizer):
    is_stopped = stop_test(tokenizer, stops)
    ids = tokenizer(text)["input_ids"]
    assert not any(is_stopped(ids[: n + 1]) for n in range(len(ids)))


def test_the_string_of_a_control_token_stops_at_the_token_and_at_the_text(tokenizer):
    is_stopped, end = stop_test(tokenizer, [tokenizer.eos_token]), tokenizer.eos_token_id
    assert is_stopped([5, end])
    assert not is_stopped([end, 5])
    assert is_stopped(tokenizer(tokenizer.eos_token, split_special_tokens=True)["input_ids"])


@pytest.mark.parametrize(("text", "stops"), STOPS)
def test_a_stop_text_ends_a_generated_text(text, stops, tokenizer, backbone_of, monkeypatch):
    backbone, ids = backbone_of("llama"), tokenizer(text)["input_ids"]
    backbone.tokenizer = tokenizer
    dictated = iter(ids)

    def logits(hidden):
        return torch.nn.functional.one_hot(torch.tensor([next(dictated)]), 320)

    monkeypatch.setattr(backbone, "logits", logits)
    (generated,) = generate(backbone, [[5, 6]], GenerationOptions(max_new_tokens=len(ids), stop=stops))
    end = min(text.index(stop) for stop in stops if stop in text)
    assert generated.text == text[:end]
    rest = tokenizer.decode(list(dictated))
    assert text.endswith(rest)
    assert len(rest) <= len(text) - end - min(len(stop) for stop in stops if stop in text)
