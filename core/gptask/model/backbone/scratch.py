"""Builds a small GPT-2 with random weights, and a tokenizer trained on the run's own text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from gptask.config.schemas import Scratch, TokenizerKind
from gptask.errors import UserError

END_OF_TEXT = "<|endoftext|>"
BYTES_OF_LAYER = 50_000  # of a layer's objects, however small its weights
MIN_VOCAB_SIZE = 257  # 256 bytes and the end of text


def build_from_scratch(options: Scratch, texts: Iterable[str]) -> tuple[Any, Any]:
    """Build model and tokenizer; seed torch before. Raises `UserError` for sizes out of range."""
    from transformers import GPT2Config, GPT2LMHeadModel

    for name in ("n_layer", "n_head", "n_embd", "context"):
        if getattr(options, name) < 1:
            raise UserError(f"backbone.{name}={getattr(options, name)} must be at least 1")
    if not 0 <= options.dropout < 1:
        raise UserError(f"backbone.dropout={options.dropout} must be at least 0 and below 1")
    if options.n_embd % options.n_head:
        raise UserError(f"backbone.n_embd={options.n_embd} must be a multiple of backbone.n_head={options.n_head}")
    _check_memory(options)
    tokenizer_of = character_tokenizer if options.tokenizer is TokenizerKind.characters else train_tokenizer
    tokenizer = tokenizer_of(texts, options.vocab_size)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=options.context,
        n_embd=options.n_embd,
        n_layer=options.n_layer,
        n_head=options.n_head,
        activation_function="gelu",  # the exact form; its kernel is faster than that of the tanh approximation
        resid_pdrop=options.dropout,
        embd_pdrop=options.dropout,
        attn_pdrop=options.dropout,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config), tokenizer


def _check_memory(options: Scratch) -> None:
    """Raise `UserError` for a model whose weights alone are larger than this machine's memory."""
    channels = options.n_embd
    parameters = 12 * channels**2 * options.n_layer + channels * options.context  # and those of the vocabulary
    needed = 4 * parameters + BYTES_OF_LAYER * options.n_layer
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    if needed > present:
        raise UserError(
            f"backbone.n_layer={options.n_layer} n_embd={channels} context={options.context} make {parameters:,} "
            f"parameters: {needed / 2**30:,.0f} GB, and training four times that, but this machine has "
            f"{present / 2**30:,.0f} GB; lower them"
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019): no text is unknown to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    _check_vocab_size(vocab_size)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _to_transformers(backend)


def character_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Build a tokenizer with one token for each of the most frequent characters of the texts, as many as fit.

    Other characters become their bytes, which have tokens of their own, so that no text is unknown to it.
    """
    from tokenizers import Tokenizer, decoders, models

    _check_vocab_size(vocab_size)
    character_counts = Counter[str]()
    for text in texts:
        character_counts.update(text)
    by_frequency = sorted(character_counts, key=lambda character: (-character_counts[character], character))
    frequent = by_frequency[: vocab_size - MIN_VOCAB_SIZE]
    tokens = [END_OF_TEXT, *(f"<0x{byte:02X}>" for byte in range(256)), *frequent]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _to_transformers(backend)


def _check_vocab_size(vocab_size: int) -> None:
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"backbone.vocab_size={vocab_size} must be at least {MIN_VOCAB_SIZE}: 256 bytes and the end of text"
        )


def _to_transformers(backend: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer_class: Any = PreTrainedTokenizerFast  # transformers leaves its constructor untyped
    return tokenizer_class(tokenizer_object=backend, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)
