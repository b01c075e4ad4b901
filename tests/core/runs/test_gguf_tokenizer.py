"""llama.cpp's name of a tokenizer follows from what the tokenizer does; one that does anything else is refused."""

import json

import pytest
from gptask.errors import UserError
from gptask.plugins.text_tokenizer import text_tokenizer
from gptask.runs.gguf_tokenizer import WORDS, add_tokenizer, normalizes_unicode
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from tests.support.tokenizers import CHATML, sentencepiece_by_scores, tokenizer_of, with_rule


def written(tokenizer, stop_ids=frozenset(), rows=None, template="Translate: {text}"):
    """What `add_tokenizer` writes, by the names of GGUF."""
    from gguf import GGUFWriter

    writer = GGUFWriter(None, "llama")
    wrapped = text_tokenizer(tokenizer)
    add_tokenizer(writer, wrapped, {wrapped.eos_token_id, *stop_ids}, rows or len(tokenizer), template)
    (values,) = writer.kv_data
    return {name.removeprefix("tokenizer.").removeprefix("ggml."): entry.value for name, entry in values.items()}


def set_a_way_apart(description):
    """Add a second way to make ``▁th``, behind the merges of other tokens."""
    model = description["model"]
    assert ["▁", "th"] in model["merges"]
    model["vocab"]["▁t"] = len(model["vocab"])
    model["merges"] += [["▁", "t"], ["▁t", "h"]]


def changed(tokenizer, change):
    """A copy whose description `change` has edited."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    change(description)
    backend = Tokenizer.from_str(json.dumps(description))
    names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{name: text for name, text in names.items() if text})


@pytest.mark.parametrize(
    ("tokenizer", "rule"),
    [
        (lambda: tokenizer_of("byte-level"), "gpt-2"),
        (lambda: GPT2Tokenizer(vocab={"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, merges=[("a", "b")]), "gpt-2"),
        (lambda: Qwen2Tokenizer(vocab={"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, merges=[("a", "b")]), "qwen2"),
        (lambda: with_rule(["digits", "bytes and words"]), "smollm"),
        (lambda: with_rule([WORDS % "{1,3}", "bytes"]), "smaug-bpe"),
        (lambda: with_rule([WORDS % "{1,3}", "bytes"], ignore_merges=True), "llama-bpe"),
    ],
)
def test_the_rule_follows_from_the_pre_tokenizer(tokenizer, rule):
    values = written(tokenizer())
    assert (values["model"], values["pre"]) == ("gpt2", rule)


@pytest.mark.parametrize(
    "tokenizer",
    [
        lambda: with_rule(["digits", WORDS % "", "bytes"]),
        lambda: with_rule([r"\s+|\S+", "bytes"]),
        lambda: with_rule(["bytes and words"], ignore_merges=True),
        lambda: with_rule(["bytes"]),
        lambda: changed(tokenizer_of("byte-level"), lambda d: d["pre_tokenizer"].update(add_prefix_space=True)),
        lambda: changed(tokenizer_of("byte-level"), lambda d: d.update(normalizer={"type": "Lowercase"})),
        lambda: changed(tokenizer_of("byte-level"), lambda d: d.update(pre_tokenizer=None)),
    ],
)
def test_a_pre_tokenizer_of_no_known_rule_is_refused(tokenizer):
    with pytest.raises(
        UserError, match=r"can't tokenize as the run's tokenizer does: .*splits them by .*export a folder"
    ):
        written(tokenizer())


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (lambda: tokenizer_of("unigram"), "its model is Unigram"),
        (lambda: tokenizer_of("characters"), "it changes texts by"),
        (
            lambda: changed(tokenizer_of("byte-level"), lambda d: d["added_tokens"][0].update(lstrip=True)),
            "takes in spaces beside it",
        ),
        (
            lambda: changed(tokenizer_of("byte-level"), lambda d: d["model"].update(end_of_word_suffix="</w>")),
            "marks where words begin or end",
        ),
        (
            lambda: changed(sentencepiece_by_scores("gemma"), lambda d: d["model"]["merges"].pop()),
            "its merges are in no order of tokens",
        ),
        (
            lambda: changed(sentencepiece_by_scores("gemma"), set_a_way_apart),
            "its merges are in no order of tokens",
        ),
        (
            lambda: changed(sentencepiece_by_scores("gemma"), lambda d: d.update(normalizer={"type": "NFKC"})),
            "it changes texts by",
        ),
    ],
)
def test_another_kind_of_tokenizer_is_refused(tokenizer, problem):
    with pytest.raises(UserError, match=problem):
        written(tokenizer())


def test_tokens_have_their_types_and_rows_without_a_token_a_name():
    from gguf import TokenType

    tokenizer = tokenizer_of("byte-level")
    count = len(tokenizer)
    values = written(tokenizer, rows=count + 2)
    types = dict(zip(values["tokens"], values["token_type"], strict=True))
    assert values["tokens"][-2:] == [f"[PAD{count}]", f"[PAD{count + 1}]"]
    assert types[f"[PAD{count}]"] is TokenType.UNUSED
    assert types["<|im_end|>"] is TokenType.CONTROL
    assert types["<think>"] is TokenType.USER_DEFINED
    assert types["the"] is TokenType.NORMAL
    assert values["tokens"][tokenizer.convert_tokens_to_ids("Ġthe")] == "Ġthe"
    assert values["merges"] == [
        " ".join(m) for m in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ]
    assert values["chat_template"] == CHATML


def test_more_tokens_than_embeddings_are_refused():
    tokenizer = tokenizer_of("byte-level")
    with pytest.raises(UserError, match=f"has the number {len(tokenizer) - 1}, but the model only"):
        written(tokenizer, rows=len(tokenizer) - 1)


def test_ids_that_end_a_text_are_named(caplog):
    tokenizer = tokenizer_of("byte-level")
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<think>", "the")]
    values = written(tokenizer, stop_ids=ends[:1])
    assert (values["eos_token_id"], values["eot_token_id"]) == (tokenizer.eos_token_id, ends[0])
    assert "eom_token_id" not in values
    assert not caplog.records
    written(tokenizer, stop_ids=ends)
    assert "end none" in caplog.text


def test_what_comes_before_every_text_is_said():
    assert written(tokenizer_of("byte-level"))["add_bos_token"] is False
    bos = changed(tokenizer_of("byte-level"), lambda d: d.update(post_processor=template_of("<|endoftext|>")))
    assert written(bos)["add_bos_token"] is True
    assert written(bos)["add_eos_token"] is False
    other = changed(tokenizer_of("byte-level"), lambda d: d.update(post_processor=template_of("<|im_start|>")))
    with pytest.raises(UserError, match=r"it puts \['<\|im_start\|>'\] before every text"):
        written(other)


def template_of(token):
    from tokenizers import processors

    number = tokenizer_of("byte-level").convert_tokens_to_ids(token)
    processor = processors.TemplateProcessing(f"{token} $A", f"{token} $A $B", [(token, number)])
    return json.loads(processor.__getstate__())


def test_scores_put_tokens_in_the_order_of_their_merges():
    from gguf import TokenType

    tokenizer = sentencepiece_by_scores("gemma")
    tokenizer.add_tokens([AddedToken("▁▁▁", special=False, normalized=False)])
    values = written(tokenizer)
    scores = dict(zip(values["tokens"], values["scores"], strict=True))
    types = dict(zip(values["tokens"], values["token_type"], strict=True))
    products = [left + right for left, right in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    assert [scores[token] for token in products] == sorted((scores[token] for token in products), reverse=True)
    assert values["model"] == "llama"
    assert values["add_space_prefix"] is False
    assert types["<0x41>"] is TokenType.BYTE
    assert types["<unk>"] is TokenType.UNKNOWN
    assert types["   "] is TokenType.USER_DEFINED  # llama.cpp looks for it before it replaces spaces


@pytest.mark.parametrize(
    ("scheme", "template", "expected"),
    [
        ("never", "{text}", False),
        ("first", "Translate: {text}", True),
        ("always", "Translate: {text}", True),
        ("first", "{text}", None),
        ("first", " {text}", None),
        ("first", "Translate: <s>{text}", None),
    ],
)
def test_a_space_before_texts_is_written_where_llama_cpp_puts_the_same(scheme, template, expected):
    tokenizer = sentencepiece_by_scores("llama")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    if expected is None:
        with pytest.raises(UserError, match="it puts a space before texts that begin with none"):
            written(tokenizer, template=template)
    else:
        assert written(tokenizer, template=template)["add_space_prefix"] is expected


def test_a_space_that_the_normalizer_puts_is_llama_cpps():
    tokenizer = sentencepiece_by_scores("llama")
    tokenizer.backend_tokenizer.pre_tokenizer = None
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    assert written(tokenizer, template="{text}")["add_space_prefix"] is True


def test_unicode_forms_are_told():
    assert normalizes_unicode(Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]))
    assert not normalizes_unicode(tokenizer_of("byte-level"))
