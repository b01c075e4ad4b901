"""Small tokenizers of the kinds that backbones have: byte-level BPE, SentencePiece's BPE and Unigram, characters."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

TEXT = (
    "the quick brown fox jumps over the lazy dog. is this film good or bad? it is very good, user assistant\n"
    "这部电影很好。 फ़िल्म बहुत अच्छी है। الفيلمُ جيّدٌ ภาพยนตร์เรื่องนี้ดีมาก 👨‍👩‍👧 🇫🇷 é ñ\n"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (m.content | trim) }}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def _byte_level() -> Any:
    """As SmolLM2 and Qwen: turn marks are special tokens, ``<think>`` is an added token that is none."""
    from gptask.model.backbone.scratch import train_tokenizer
    from tokenizers import AddedToken

    tokenizer = train_tokenizer([TEXT] * 3, 420)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer.chat_template = CHATML
    return tokenizer


def _characters() -> Any:
    from gptask.model.backbone.scratch import character_tokenizer

    return character_tokenizer([TEXT[:100]], 300)


def _sentencepiece(first_only: bool) -> Any:
    """As Llama 2 and Gemma: spaces are ▁, unknown characters fall back to bytes, BOS comes first.

    The marks of turns are added tokens that are not special, as Gemma 1 has them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", *byte_tokens]
    trained.train_from_iterator([TEXT[:100]] * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    tokenizer = Tokenizer(models.BPE(state["vocab"], merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if first_only:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    wrapped.add_tokens(
        [AddedToken(mark, special=False, normalized=False) for mark in ("<start_of_turn>", "<end_of_turn>")]
    )
    wrapped.chat_template = GEMMA
    return wrapped


def _unigram() -> Any:
    """As XGLM: ``</s>`` is a piece of the vocabulary, so that the model itself makes it of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_pieces = [(f"<0x{byte:02X}>", -12.0) for byte in range(256)]
    pieces = [(piece, -5.0) for piece in sorted({*TEXT[:103].replace(" ", "▁"), "▁", "<", "/", "s", ">"})]
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *byte_pieces, *pieces, ("▁good", -6.0), ("▁film", -6.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def with_rule(steps: list[str], ignore_merges: bool = False) -> Any:
    """A byte-level tokenizer that splits texts by these steps: ``digits``, ``bytes``, ``bytes and words``, patterns."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    known = {
        "digits": pre_tokenizers.Digits(individual_digits=True),
        "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        "bytes and words": pre_tokenizers.ByteLevel(add_prefix_space=False),
    }
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [known.get(step) or pre_tokenizers.Split(Regex(step), "isolated") for step in steps]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT, "in 1234567890 and 12345 \n\n\n   it's we'll IT'S WE'LL\n\n"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def sentencepiece_by_scores(family: str) -> Any:
    """As ``llama`` and ``gemma`` have it in transformers: a merge for each way to make a token of two."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GemmaTokenizer, LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = {"llama": ["<unk>", "<s>", "</s>"], "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]}[family]
    special += [*(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator([TEXT[:130]] * 3, trainers.BpeTrainer(vocab_size=380, special_tokens=special))
    vocab = json.loads(trained.to_str())["model"]["vocab"]
    merges = generate_merges({token: number for token, number in vocab.items() if token not in special})
    return {"llama": LlamaTokenizer, "gemma": GemmaTokenizer}[family](vocab=vocab, merges=merges)


_BUILDERS: dict[str, Callable[[], Any]] = {
    "byte-level": _byte_level,
    "characters": _characters,
    "sentencepiece-first": lambda: _sentencepiece(first_only=True),
    "sentencepiece-always": lambda: _sentencepiece(first_only=False),
    "unigram": _unigram,
}
KINDS = tuple(_BUILDERS)


@lru_cache(None)
def tokenizer_of(kind: str) -> Any:
    """A tokenizer of one of `KINDS`, as transformers has it; made once, so don't change it."""
    return _BUILDERS[kind]()
