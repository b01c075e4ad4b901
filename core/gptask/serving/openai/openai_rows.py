"""From a request of chat or completions to the rows that are written for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptask.data.messages import Message
from gptask.errors import UserError
from gptask.model.backbone.chat_template import PLAIN_TEMPLATE, chat_template_of
from gptask.model.engine.interface import DecodingRow
from gptask.model.generation.chat import ChatOptions
from gptask.plugins.generation_options import GenerationOptions
from gptask.serving.http.http_errors import ApiError
from gptask.serving.models.served_run import ServedModel, ServedRun
from gptask.serving.openai.constrained import JsonGrammars
from gptask.serving.openai.openai_answers import ChoiceText, TokenTable
from gptask.serving.openai.openai_schemas import MAX_ROWS, ChatRequest, CompletionRequest, WritingRequest

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone

CHAT_TOKENS = ChatOptions().limit  # the most tokens of an answer, unless the request says it


@dataclass
class Prompt:
    """A prompt's ids, and the text that `echo` shows."""

    ids: list[int]
    shown: str = ""


def choices_of(request: WritingRequest, model: ServedModel, grammars: JsonGrammars) -> list[ChoiceText]:
    """Return a text to be written for each choice, those of a prompt beside each other; raises `ApiError`.

    It tokenizes and may compile a schema, so it belongs into a thread beside the event loop.
    """
    backbone, stops = model.backbone, [*request.stops, *_task_stops(model)]
    drop_space = False
    try:
        if isinstance(request, ChatRequest):
            template = chat_template_of(backbone.tokenizer)
            stops += template.stop_texts
            drop_space = template.text == PLAIN_TEMPLATE  # which ends with a colon
            prompts = [_conversation(backbone, request)]
        else:
            assert isinstance(request, CompletionRequest)
            prompts = _prompts(backbone, request)
    except UserError as error:  # the chat template refuses the conversation
        raise ApiError(400, f"messages: {error}", "messages") from error
    if len(prompts) * request.n > MAX_ROWS:
        count = f"{len(prompts)} prompts with n={request.n}"
        raise ApiError(400, f"prompt: at most {MAX_ROWS} texts are written for a request; got {count}", "prompt")
    limits = [_limit(request, len(prompt.ids), backbone.context) for prompt in prompts]
    rows = [
        row
        for prompt, limit in zip(prompts, limits, strict=True)
        for row in _rows(request, backbone, prompt.ids, limit, stops)
    ]
    if request.response_format:
        for row, constraint in zip(
            rows, grammars.constraints(backbone, request.response_format, len(rows)), strict=True
        ):
            row.constraint = constraint
    table = TokenTable(backbone.tokenizer, grammars.token_bytes(backbone)) if request.top_count is not None else None
    return [
        ChoiceText(row, backbone.tokenizer, stops, table, drop_space, prompts[place // request.n].shown)
        for place, row in enumerate(rows)
    ]


def _task_stops(model: ServedModel) -> list[str]:
    """The texts that end an answer of the run's task."""
    if not isinstance(model, ServedRun):
        return []
    head: Any = model.run.head
    return list(head.options.stop)


def _conversation(backbone: GPTBackbone, request: ChatRequest) -> Prompt:
    messages: list[Message] = [
        {"role": "system" if message.role == "developer" else message.role, "content": message.text}
        for message in request.messages
    ]
    return Prompt(chat_template_of(backbone.tokenizer).tokenize(messages).ids)


def _prompts(backbone: GPTBackbone, request: CompletionRequest) -> list[Prompt]:
    """The prompts; strings of control tokens are text in a text, while token ids may be any."""
    prompts = []
    for number, prompt in enumerate(request.prompts):
        path = f"prompt[{number}]" if len(request.prompts) > 1 else "prompt"
        ids: list[int]
        if isinstance(prompt, str):
            ids = backbone.tokenizer.encode(prompt)
            if len(ids) > 1 and ids[-1] == backbone.tokenizer.eos_token_id:  # some tokenizers add EOS
                ids = ids[:-1]
            shown = prompt
        else:
            ids, vocabulary = list(prompt), int(backbone.config.vocab_size)
            wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
            if wrong is not None:
                raise ApiError(400, f"{path}: token ids are 0 to {vocabulary - 1}; got {wrong}", path)
            shown = backbone.tokenizer.decode(ids, skip_special_tokens=True) if request.echo else ""
        if not ids:
            raise ApiError(400, f"{path}: the prompt has no tokens; expected a text or token ids", path)
        prompts.append(Prompt(ids, shown if request.echo else ""))
    return prompts


def _limit(request: WritingRequest, length: int, context: int) -> int:
    """How many tokens may be written behind a prompt; raises `ApiError` where the context has no room for them."""
    is_chat = isinstance(request, ChatRequest)
    field, name = ("messages", "max_completion_tokens") if is_chat else ("prompt", "max_tokens")
    room = context - length + 1  # the last token is not read again
    named = request.limit if is_chat or "max_tokens" in request.model_fields_set else None
    if room < 1:
        message = f"this model's context has {context} tokens; the {field} would take {length}: shorten what it reads"
        raise ApiError(400, message, field, code="context_length_exceeded")
    if named is not None and named > room:
        message = (
            f"this model's context has {context} tokens; {length} in the {field} and {named} in the answer exceed it:"
            f" shorten the {field}, or ask for at most {room} tokens"
        )
        name = "max_tokens" if request.max_tokens is not None else name
        raise ApiError(400, message, name, code="context_length_exceeded")
    return named or min(request.limit or CHAT_TOKENS, room)


def _rows(
    request: WritingRequest, backbone: GPTBackbone, ids: list[int], limit: int, stops: Sequence[str]
) -> list[DecodingRow]:
    """The rows of a prompt, one for each choice."""
    options = GenerationOptions(
        max_new_tokens=limit,
        temperature=request.temperature,
        top_k=max(request.top_k, 0),
        top_p=request.top_p,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
    )
    options.stop = list(stops)  # as they are: a backslash and an n are no line break here
    rows = []
    for draw in range(request.n):
        row = DecodingRow(ids, limit, options, backbone.adapter, draw, top_count=request.top_count or 0)
        row.frequency_penalty, row.presence_penalty = request.frequency_penalty, request.presence_penalty
        rows.append(row)
    return rows
