"""How readers of a model card or an export make the prompts that a model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptask.plugins.task import Task
from gptask.plugins.types import Field, Kind
from gptask.runs.markdown import code_span, fenced

if TYPE_CHECKING:
    from gptask.model.backbone.backbone import GPTBackbone


def prompt_template(task: Task, backbone: GPTBackbone) -> str:
    """The prompt with the names of fields in braces; a conversation is formatted by the tokenizer's chat template.

    A BOS token that the plain tokenizer of transformers puts before every text is left out.
    """
    example = {field.name: _placeholder(field) for field in task.inputs()} | {f.name: None for f in task.targets()}
    if all(field.kind is not Kind.MESSAGES for field in task.inputs()):
        return str(task.render(example)[0])
    from gptask.data.datamodule import encode

    tokenizer = backbone.tokenizer
    (item,) = encode(task, example, tokenizer, backbone.context)
    begins = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    ids = item["ids"]
    return str(tokenizer.decode(ids[len(begins) :] if [*ids[: len(begins)]] == begins else ids))


def _placeholder(field: Field) -> Any:
    """The value that shows a field's place in the template: ``{text}``; None for kinds that no prompt shows."""
    mark = f"{{{field.name}}}"
    messages = [{"role": "user", "content": mark}]
    return {Kind.TEXT: mark, Kind.TEXTS: [mark], Kind.TOKENS: [mark], Kind.MESSAGES: messages}.get(field.kind)


def prompts_block(template: str) -> str:
    """Tell readers how a prompt is made; a code block does not show the line break that may end it."""
    end = " and end with a line break" if template.endswith("\n") else ""
    intro = f"`prompts` is a list of texts that follow this template{end}, as in training:"
    return f"{intro}\n\n{fenced('text', template)}"


def control_tokens_note(tokenizer: Any, template: str) -> str:
    """Tell readers of a card how plain transformers reads the strings of control tokens in a text."""
    if tokenizer.mentions_control(template):
        advice = "Remove such strings from a text before it goes into the template."
    else:
        advice = "Pass `split_special_tokens=True` to it where texts may hold such strings."
    return (
        f"The string of a special token in a text, such as {code_span(tokenizer.eos_token)}, is text to gptask, and "
        f"the token itself to this tokenizer. {advice}"
    )
