"""The small GPT-2 from scratch: its sizes, its tokenizer, its attention."""

import numpy as np
import pytest
import torch
from gptask.config.schemas import Scratch
from gptask.errors import UserError
from gptask.model.backbone.scratch import build_from_scratch, train_tokenizer

Q, K, V = [[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]], [[1.0, 2.0], [3.0, 4.0]]


def attention(causal):
    """Return softmax(QK^T/sqrt(d))V in float64."""
    q, k, v = np.array(Q), np.array(K), np.array(V)
    scores = q @ k.T / np.sqrt(q.shape[1])
    scores = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf) if causal else scores
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return weights @ v


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return build_from_scratch(
        Scratch(n_layer=1, n_head=1, n_embd=2, context=16, vocab_size=300), ["some text to learn from"]
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_models_own_attention_is_softmax_of_scaled_products(small, implementation, causal):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

    layer = small[0].transformer.h[0].attn.eval()
    function = ALL_ATTENTION_FUNCTIONS.get(implementation, eager_attention_forward)
    mask = torch.tensor([[0.0, float("-inf")], [0.0, 0.0]])[None, None] if causal else None
    sdpa_options = {"is_causal": False} if implementation == "sdpa" else {}
    query, key, value = (torch.tensor(m)[None, None] for m in (Q, K, V))  # (B, heads, T, d)
    out, _ = function(
        layer, query, key, value, mask, dropout=0.0, scaling=getattr(layer, "scaling", None), **sdpa_options
    )
    np.testing.assert_allclose(out[0, :, 0].numpy(), attention(causal), rtol=1e-6)


def test_the_attention_layer_is_causal_and_scaled(small):
    layer = small[0].transformer.h[0].attn.eval()
    with torch.no_grad():  # token i is the i-th unit vector, so that its rows of Q, K, V are those above
        layer.c_attn.weight.copy_(torch.tensor([q + k + v for q, k, v in zip(Q, K, V, strict=True)]))
        layer.c_attn.bias.zero_()
        layer.c_proj.weight.copy_(torch.eye(2))
        layer.c_proj.bias.zero_()
        out = layer(torch.eye(2)[None])[0]
    np.testing.assert_allclose(out[0].numpy(), attention(causal=True), rtol=1e-6)


def test_the_options_set_the_sizes_of_the_model():
    model, tokenizer = build_from_scratch(
        Scratch(n_layer=3, n_head=2, n_embd=8, context=40, dropout=0.25, vocab_size=280), ["some text"] * 3
    )
    config = model.config
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions) == (3, 2, 8, 40)
    assert {config.resid_pdrop, config.embd_pdrop, config.attn_pdrop} == {0.25}
    assert config.vocab_size == len(tokenizer) <= 280
    assert config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("option", "value"),
    [("n_layer", 0), ("n_embd", 9), ("n_head", 0), ("context", 0), ("dropout", 1.0), ("vocab_size", 256)],
)
def test_sizes_out_of_range_are_refused(option, value):
    with pytest.raises(UserError, match=rf"backbone\.{option}"):
        build_from_scratch(Scratch(**{"n_embd": 8, "n_head": 2, option: value}), ["text"])


def test_no_text_is_unknown_to_the_tokenizer():
    tokenizer = train_tokenizer(["only english was seen in training"] * 5, 300)
    for text in ["only english", "翻译 😀", " leading and  double  spaces\n", "<unk>", "naïve"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("training")["input_ids"]) < len("training")
    assert tokenizer.eos_token_id not in tokenizer("the end.")["input_ids"]


@pytest.mark.parametrize("sizes", [{"n_layer": 10**6}, {"n_embd": 2**20}, {"context": 10**10}])
def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(sizes):
    with pytest.raises(UserError, match=r"parameters: [\d,]+ GB, and training four times that, but this machine has"):
        build_from_scratch(Scratch(**sizes), ["text"])
    with pytest.raises(UserError, match=r"this machine has"):
        build_from_scratch(Scratch(n_layer=10**8, n_embd=4), ["text"])  # of layers' objects
