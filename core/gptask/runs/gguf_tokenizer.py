"""A tokenizer as a GGUF file holds it: llama.cpp splits texts into words by the name of a rule that it knows.

A rule that is nearly the tokenizer's makes other tokens of some texts, unnoticed. So the name is derived from what the
tokenizer does, and a tokenizer that does anything else is refused.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from gptask.errors import UserError, listing

if TYPE_CHECKING:
    from gguf import GGUFWriter

log = logging.getLogger("gptask")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES = {  # what splits a text, and whether a word that is a token needs no merges -> llama.cpp's name
    (("bytes and words",), False): "gpt-2",
    (("digits", "bytes and words"), False): "smollm",
    ((WORDS % "", "bytes"), False): "qwen2",
    ((WORDS % "{1,3}", "bytes"), False): "smaug-bpe",
    ((WORDS % "{1,3}", "bytes"), True): "llama-bpe",
}
SPACE = "\u2581"  # stands for a space in the tokens of SentencePiece
BYTES = {f"<0x{byte:02X}>" for byte in range(256)}  # its tokens for what no other token holds


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, stop_ids: set[int], rows: int, template: str) -> None:
    """Write tokens, merges or scores, special ids and the chat template.

    ``rows`` is the number of embeddings, ``template`` the prompt of the run with names of fields.

    Raises `UserError` for a tokenizer that llama.cpp can't reproduce.
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    model = description["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal(f"its model is {model['type']}, or marks where words begin or end; byte-pair encoding is needed")
    vocabulary = [f"[PAD{number}]" for number in range(rows)]  # llama.cpp's name of a row without a token
    for token, number in tokenizer.get_vocab().items():
        if number >= rows:
            raise _refusal(f"the token {token!r} has the number {number}, but the model only {rows} embeddings")
        vocabulary[number] = token
    if model.get("byte_fallback"):
        _add_scores(writer, description, vocabulary)
        control = tokenizer.mentions_control(template)
        writer.add_add_space_prefix(_begins_with_space(description, template if not control else ""))
    else:
        _add_merges(writer, description)
    _add_tokens(writer, description, vocabulary, tokenizer.unk_token_id)
    _add_special_ids(writer, tokenizer, stop_ids)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def normalizes_unicode(tokenizer: Any) -> bool:
    """Whether the tokenizer brings texts into Unicode's form NFC, as llama.cpp does not."""
    return "NFC" in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"])


def _refusal(problem: str) -> UserError:
    return UserError(
        f"format=gguf: llama.cpp can't tokenize as the run's tokenizer does: {problem}. Leave format=gguf out to "
        "export a folder with this tokenizer"
    )


def _steps(step: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer."""
    if step is None:
        return []
    inner = step.get("normalizers", step.get("pretokenizers"))
    return [step] if inner is None else [part for one in inner for part in _steps(one)]


def _add_merges(writer: GGUFWriter, description: dict[str, Any]) -> None:
    """Write a byte-level tokenizer."""
    model, normalizer = description["model"], [step["type"] for step in _steps(description["normalizer"])]
    steps = tuple(_step_of_rule(step) for step in _steps(description["pre_tokenizer"]))
    rule = RULES.get((steps, bool(model.get("ignore_merges"))))
    if rule is None or normalizer not in ([], ["NFC"]):
        changes = f"changes texts by {listing(normalizer)} and " if normalizer else ""
        raise _refusal(f"it {changes}splits them by {json.dumps(description['pre_tokenizer'], ensure_ascii=False)}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])


def _step_of_rule(step: dict[str, Any]) -> str:
    """A step of a pre-tokenizer in the terms of `RULES`; any other as it stands."""
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "bytes and words" if step["use_regex"] else "bytes"
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"].get("Regex"))
    return str(step)


def _add_scores(writer: GGUFWriter, description: dict[str, Any], vocabulary: list[str]) -> None:
    """Write a SentencePiece tokenizer, with scores in the place of merges.

    llama.cpp joins the pair that makes the token with the highest score, whatever its parts. So merges must come token
    by token, and there must be one for each way to make a token of two.
    """
    tokens, merges = {*vocabulary}, [tuple(merge) for merge in description["model"]["merges"]]
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    ranks = [rank[left + right] for left, right in merges]
    plain = tokens - BYTES - {token["content"] for token in description["added_tokens"]}
    ways = {
        (token[:place], token[place:])
        for token in plain
        for place in range(1, len(token))
        if token[:place] in tokens and token[place:] in tokens
    }
    if ranks != sorted(ranks) or ways != {(left, right) for left, right in merges if left + right in plain}:
        raise _refusal("its merges are in no order of tokens")
    if not tokens >= BYTES:
        raise _refusal("it has no token for some bytes")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(rank.get(token, len(rank))) for token in vocabulary])


def _begins_with_space(description: dict[str, Any], template: str) -> bool:
    """Whether a space is put before a text; ``template`` is the run's prompt, empty if it holds control tokens.

    llama.cpp puts one behind each control token, too, and before a text that has one already. Raises `UserError` where
    that makes a difference, and for any other change of texts than ``SPACE`` for spaces.
    """
    steps = _steps(description["normalizer"]) + _steps(description["pre_tokenizer"])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if steps in ([replace], [replace, split]):  # no spaces are left to split at
        return False
    if steps == [{"type": "Prepend", "prepend": SPACE}, replace]:
        return True
    (step, *more) = steps or [{"type": "none"}]
    if step["type"] == "Metaspace" and step["replacement"] == SPACE and not step["split"] and not more:
        if step["prepend_scheme"] == "never":
            return False
        if template and template[0] not in f" {SPACE}{{":  # a field may begin with a space
            return True
        raise _refusal(f"it puts a space before texts that begin with none, and llama.cpp does so before {template!r}")
    raise _refusal(f"it changes texts by {json.dumps(steps, ensure_ascii=False)}")


def _add_tokens(writer: GGUFWriter, description: dict[str, Any], vocabulary: list[str], unknown: int | None) -> None:
    from gguf import TokenType

    is_sentencepiece = bool(description["model"].get("byte_fallback"))
    texts, types = [*vocabulary], [TokenType.NORMAL] * len(vocabulary)
    numbers = {token: number for number, token in enumerate(vocabulary)}
    for number, token in enumerate(vocabulary):
        if is_sentencepiece and token in BYTES:
            types[number] = TokenType.BYTE
        elif token == f"[PAD{number}]":
            types[number] = TokenType.UNUSED
    for token in description["added_tokens"]:
        text, number = token["content"], numbers[token["content"]]
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _refusal(f"its token {text!r} takes in spaces beside it, or stands for whole words only")
        types[number] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        if is_sentencepiece and not token["special"]:
            texts[number] = text.replace(SPACE, " ")  # such a token is looked for before spaces are replaced
    if is_sentencepiece and unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    writer.add_token_list(texts)
    writer.add_token_types(types)


def _add_special_ids(writer: GGUFWriter, tokenizer: Any, stop_ids: set[int]) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first_ids = [token for token in tokenizer("")["input_ids"] if token != eos or token == bos]  # no EOS in prompts
    if first_ids not in ([], [bos]):
        raise _refusal(f"it puts {tokenizer.convert_ids_to_tokens(first_ids)} before every text")
    writer.add_add_bos_token(bool(first_ids))
    writer.add_add_eos_token(False)
    ids = {
        writer.add_bos_token_id: bos,
        writer.add_eos_token_id: eos,
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
    }
    others = sorted(stop_ids - {eos})
    ids |= dict(zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False))
    for add, number in ids.items():
        if number is not None:
            add(number)
    if more := others[2:]:
        log.warning(
            "a GGUF file names three tokens that end a text; %s end none", tokenizer.convert_ids_to_tokens(more)
        )
