"""Requests of OpenAI's chat and completions, and what is wrong with one. Null means that a field is not set."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from pydantic import model_validator as validator
from pydantic_core import ErrorDetails, from_json

from gptask.errors import listing, nearest
from gptask.serving.http.http_errors import ApiError

MAX_CHOICES = 16  # texts for each prompt
MAX_ROWS = 128  # texts of a request
MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_TOP = 5  # likeliest tokens that are told
NOTHING: tuple[Any, ...] = (None, [], {}, "")
UNSUPPORTED: dict[str, tuple[Any, ...]] = {  # field -> values that ask for nothing; others are refused, not ignored
    "tools": NOTHING,
    "tool_choice": (None, "none"),
    "parallel_tool_calls": (None,),
    "functions": NOTHING,
    "function_call": (None, "none"),
    "logit_bias": NOTHING,
    "modalities": (None, [], ["text"]),
    "audio": (None,),
    "images": NOTHING,
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": NOTHING,
    "verbosity": (None,),
    "web_search_options": (None,),
}
UNSUPPORTED_IN_MESSAGE = ("name", "tool_calls", "tool_call_id", "function_call", "audio", "refusal", "annotations")
Stop = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenIds = Annotated[list[StrictInt], Field(min_length=1)]
Body = TypeVar("Body", bound="WritingRequest")


class RequestPart(BaseModel):
    """A part of a request. What a field expects stands in its description, for the reader and for messages."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(RequestPart):
    """A part of a message's content."""

    type: Literal["text"]
    text: StrictStr


class ChatMessage(RequestPart):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | list[TextPart] = Field(description="a text, or a list of parts of type text")

    @property
    def text(self) -> str:
        """All its text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(RequestPart):
    """What a stream holds besides texts."""

    include_usage: StrictBool = False
    include_obfuscation: Literal[False] = False


class JsonSchema(RequestPart):
    """A schema that the text must follow. It always does: ``strict`` changes nothing."""

    name: StrictStr | None = None
    description: StrictStr | None = None
    schema_: dict[str, Any] = Field(alias="schema", description="a JSON schema, an object")
    strict: StrictBool | None = None


class ResponseFormat(RequestPart):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, which needs one")
        return self


class WritingRequest(RequestPart):
    """What chat and completions have in common."""

    model: StrictStr = Field(description="the name of a model, see /v1/models")
    max_tokens: StrictInt | None = Field(None, ge=1, le=2**31, description="the most tokens that are written")
    temperature: StrictFloat = Field(1.0, ge=0, le=2, description="0 takes the likeliest token, else one is drawn")
    top_p: StrictFloat = Field(1.0, ge=0, le=1, description="draw from the likeliest tokens of this probability mass")
    top_k: StrictInt = Field(0, ge=-1, le=2**31, description="draw from the k likeliest tokens; 0 or -1: from all")
    n: StrictInt = Field(1, ge=1, le=MAX_CHOICES, description="texts for each prompt")
    seed: StrictInt | None = Field(None, ge=-(2**63), lt=2**63, description="the same request gives the same texts")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] = Field(
        [], description=f"a text or up to {MAX_STOPS}, each of 1 to {MAX_STOP_LENGTH} characters, that end the answer"
    )
    stream: StrictBool = Field(False, description="send the text as it is written, as server-sent events")
    stream_options: StreamOptions | None = None
    frequency_penalty: StrictFloat = Field(0.0, ge=-2, le=2, description="taken from a token's logit, each time it was")
    presence_penalty: StrictFloat = Field(0.0, ge=-2, le=2, description="taken from a token's logit if it was there")
    repetition_penalty: StrictFloat = Field(1.0, ge=0.1, le=10, description="divides the logits of earlier tokens")
    response_format: ResponseFormat | None = None
    user: StrictStr | None = Field(None, description="not used")
    metadata: dict[str, Any] | None = Field(None, description="not used")
    safety_identifier: StrictStr | None = Field(None, description="not used")
    prompt_cache_key: StrictStr | None = Field(None, description="not used")

    @validator(mode="after")
    def _check_stream_options(self) -> WritingRequest:
        if self.stream_options and not self.stream:
            raise ApiError(400, "stream_options: needs stream=true", "stream_options")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens that are written, None where the request does not say."""
        return self.max_tokens

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def top_count(self) -> int | None:
        """How many of the likeliest tokens are told, None without log-probabilities."""
        raise NotImplementedError


class ChatRequest(WritingRequest):
    """A request of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, description="the conversation; its last message is the user's")
    max_completion_tokens: StrictInt | None = Field(None, ge=1, le=2**31, description="the newer name of max_tokens")
    logprobs: StrictBool = Field(False, description="tell the log-probabilities: the model's own, at temperature 1")
    top_logprobs: StrictInt | None = Field(
        None, ge=0, le=MAX_TOP, description="tell the likeliest tokens of each place"
    )

    @validator(mode="after")
    def _check_messages(self) -> ChatRequest:
        for number, message in enumerate(self.messages):
            if message.role in ("system", "developer") and number:
                path = f"messages[{number}].role"
                raise ApiError(400, f"{path}: a system message must come first", path)
        if self.messages[-1].role != "user":
            last = len(self.messages) - 1
            raise ApiError(400, f"messages[{last}].role: the last message must be the user's", f"messages[{last}].role")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs=true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ApiError(400, "max_tokens: differs from max_completion_tokens; set one of them", "max_tokens")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens that are written, None where the request does not say."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top_count(self) -> int | None:
        """How many of the likeliest tokens are told, None without log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(WritingRequest):
    """A request of `/v1/completions`."""

    prompt: StrictStr | list[StrictStr] | TokenIds | list[TokenIds] = Field(
        description="a text, a list of texts, a list of token ids, or a list of such lists"
    )
    max_tokens: StrictInt | None = Field(16, ge=1, le=2**31, description="the most tokens that are written")
    logprobs: StrictInt | None = Field(None, ge=0, le=MAX_TOP, description="tell this many of the likeliest tokens too")
    echo: StrictBool = Field(False, description="put the prompt before the text")
    best_of: StrictInt | None = Field(None, description="not supported, but equal to n")

    @validator(mode="after")
    def _check_options(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ApiError(400, "echo: not supported together with logprobs", "echo")
        if self.best_of not in (None, self.n):
            raise ApiError(400, f"best_of: not supported; leave it out, or set it to n={self.n}", "best_of")
        if not self.prompt and not isinstance(self.prompt, str):
            raise ApiError(400, "prompt: expected at least one prompt, got an empty list", "prompt")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, as texts or as token ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    @property
    def top_count(self) -> int | None:
        """How many of the likeliest tokens are told, None without log-probabilities."""
        return self.logprobs


def parse_request(body: bytes, kind: type[Body]) -> Body:
    """Return the request of a body; raise `ApiError` that names the field that is wrong."""
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is no valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ApiError(400, f"the body must be a JSON object; got {_short(values)}")
    values = _without_nulls(_without_unsupported(values, kind))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _api_error(error.errors(include_url=False, include_context=False), values, kind) from error


def _without_unsupported(values: dict[str, Any], kind: type[WritingRequest]) -> dict[str, Any]:
    """The fields but those that ask for nothing; raises `ApiError` for one that asks for what is not supported."""
    for name, allowed in UNSUPPORTED.items():
        if not _is_one_of(value := values.get(name), allowed):
            raise ApiError(400, f"{name}: not supported; got {_short(value)}", name, code="unsupported_parameter")
    values = {name: value for name, value in values.items() if name not in UNSUPPORTED}
    messages = values.get("messages")
    for number, message in enumerate(messages) if isinstance(messages, list) else ():
        for name in [name for name in UNSUPPORTED_IN_MESSAGE if isinstance(message, dict) and name in message]:
            if not _is_one_of(value := message.pop(name), NOTHING):
                path = f"messages[{number}].{name}"
                raise ApiError(400, f"{path}: not supported; got {_short(value)}", path, code="unsupported_parameter")
    return values


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is among those, of the same type: 0 is no False."""
    return any(type(value) is type(other) and value == other for other in allowed)


def _without_nulls(value: Any) -> Any:
    """The same without fields that are null; what stands in a schema means what it says."""
    if isinstance(value, dict):
        kept = {name: part for name, part in value.items() if part is not None}
        return {name: part if name in ("schema", "metadata") else _without_nulls(part) for name, part in kept.items()}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _api_error(errors: list[ErrorDetails], values: Any, kind: type[BaseModel]) -> ApiError:
    """The error of the first field that is wrong, where it reaches deepest: a union has errors of all its kinds."""
    first = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    located = [(_path(error["loc"], values, error["type"]), error) for error in first]
    depth = max(len(path) for path, _ in located)
    deepest = [(path, error) for path, error in located if len(path) == depth]
    path, error = deepest[0]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".") or None
    last, got = str(path[-1]) if path else "", _short(error["input"])
    if error["type"] == "extra_forbidden":
        known = kind.model_fields if len(path) == 1 else ()
        return ApiError(400, f"unknown field '{name}'; {_fields(known)}{nearest(last, known)}", name)
    fields = kind.model_fields | ChatMessage.model_fields
    field = next((fields[part] for part in reversed(path) if part in fields), None)
    if error["type"] == "missing":
        what = f", {field.description}" if field and field.description else ""
        return ApiError(400, f"{name}: required{what}", name)
    if error["type"] == "literal_error":
        expected = error["msg"].removeprefix("Input should be ")
        return ApiError(400, f"{name}: {got} is not supported; expected {expected}", name)
    if len(deepest) > 1 and field and field.description:  # no kind of a union fits
        return ApiError(400, f"{name}: expected {field.description}; got {got}", name)
    message = error["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{name}: {message[:1].lower()}{message[1:]}; got {got}", name)


def _fields(known: Any) -> str:
    return f"known: {listing(sorted(known), 40)}." if known else "remove it."


def _path(location: tuple[int | str, ...], values: Any, kind: str) -> list[int | str]:
    """Where an error is in the request: pydantic also puts the kinds of a union among the names."""
    path: list[int | str] = []
    for place, part in enumerate(location):
        if isinstance(values, dict) and part in values:
            path, values = [*path, part], values[str(part)]
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            path, values = [*path, part], values[part]
        elif kind == "missing" and place == len(location) - 1:
            path.append(part)
    return path


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def body_schema(kind: type[WritingRequest]) -> dict[str, Any]:
    """The request's part of the OpenAPI page, without references."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).removeprefix("#/$defs/")
            rest = {key: inlined(part) for key, part in value.items() if key != "$ref"}
            return (inlined(definitions[name]) if name else {}) | rest
        return [inlined(part) for part in value] if isinstance(value, list) else value

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined(schema)}}}}
