"""What an engine does. An engine computes a backbone's passes: the fast one, or the reference by plain libraries.

Shapes: B rows, T positions, C channels, N states, V vocabulary.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from gptask.model.engine.int4 import Quantization
from gptask.plugins.protocols import Backbone

if TYPE_CHECKING:
    from gptask.model.engine.adapter_files import AdapterFiles
    from gptask.plugins.generation_options import GenerationOptions

log = logging.getLogger("gptask")
Adapters = Sequence[str | None]  # the digest of each row's adapter, None for the model as it is


class EngineBackbone(Backbone, Protocol):
    """A decoder whose passes an engine computes, and whose layers it may replace."""

    peft: Any  # the model, PEFT-wrapped where it has adapters
    origin: Any  # where its weights came from, with their hash
    engine: Engine
    adapter_layers: dict[str, int]  # of each adapter of `Engine.add_adapter`, how many layers its rows pass
    int4: Quantization | None  # what of the model is in int4

    @property
    def config(self) -> Any:
        """The model's configuration; in a multimodal model, that of its text part."""

    @property
    def body(self) -> Any:
        """The decoder without the vocabulary projection."""

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers; empty where the model holds them in no plain list."""

    @property
    def softcap(self) -> float | None:
        """The bound of the logits, None for most models."""

    def sees_all(self, positions: int) -> bool:
        """Whether every layer sees this many positions back."""

    def only_layers(self, positions: Sequence[int]) -> AbstractContextManager[None]:
        """A context in which the model has only its layers at these positions."""

    def set_model(self, model: Any) -> None:
        """Replace the model by one that is wrapped or tuned in another way."""


class TokenConstraint(Protocol):
    """Which tokens a text may go on with, such as those of a grammar. It must not raise: that would end all rows."""

    def allowed(self, vocabulary: int) -> Tensor:
        """Return which ids of so many may come next, a boolean tensor (V,); at least one."""

    def advance(self, token: int) -> None:
        """Take the next token."""


@dataclass(eq=False)
class DecodingRow:
    """A text that is being written behind a prompt, by at most ``limit`` tokens.

    ``draw`` numbers the samples of one prompt: each has its own random draws. ``finish`` says why the text ended: at a
    stop token or text (``stop``), or at the limit (``length``). A token that was there before in the text loses
    ``presence_penalty``, and ``frequency_penalty`` for each time, of its logit. With a ``top_count``, ``top_tokens``
    gets the ids and log-probabilities of that many likeliest tokens of each step.
    """

    prompt: list[int]
    limit: int
    options: GenerationOptions
    adapter: str | None = None
    draw: int = 0
    new_ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    finish: str | None = None
    generator: Any = None  # of this row's draws, where the options name a seed
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    constraint: TokenConstraint | None = None
    top_count: int = 0
    top_tokens: list[list[tuple[int, float]]] = field(default_factory=list)
    penalized_ids: Tensor | None = None  # ids (T,) so far, where the row has penalties

    @property
    def ids(self) -> list[int]:
        """The prompt and what is written behind it."""
        return self.prompt + self.new_ids

    @property
    def score(self) -> float | None:
        """The geometric mean of the probabilities of the tokens and EOS, None before the first one."""
        return exp(fmean(self.log_probabilities)) if self.log_probabilities else None


class DecodingBatch(ABC):
    """Texts that are written together, a token each in a step; rows enter and leave between steps.

    Either `admit` reads prompts at once, or `enqueue` takes them and `read` reads them part by part.
    """

    @property
    @abstractmethod
    def rows(self) -> list[DecodingRow]:
        """The rows that are still being written."""

    @abstractmethod
    def admit(self, rows: Sequence[DecodingRow]) -> None:
        """Read the prompts of more rows."""

    @property
    @abstractmethod
    def unread(self) -> list[DecodingRow]:
        """The rows whose prompts are not read to their end."""

    @abstractmethod
    def enqueue(self, rows: Sequence[DecodingRow]) -> None:
        """Take more rows, whose prompts `read` reads."""

    @abstractmethod
    def read(self, max_tokens: int) -> int:
        """Read at most so many tokens of the unread prompts, in the order they came in; return how many it were.

        A row whose prompt is read to its end is written from the next step on. Where reading fails, the rows whose
        prompts were being read leave the batch (they are neither in `rows` nor in `unread`); all others are as they
        were, and the batch goes on.
        """

    @abstractmethod
    def step(self) -> list[DecodingRow]:
        """Write the next token of every row; return the rows that end with it, which leave.

        Raises `KeyError` where the adapter of a row has been removed, before anything changes: `leave` for each row of
        that adapter lets the others go on. Where anything else is raised (memory is out, a key is pressed), layers may
        hold different numbers of tokens: all `rows` are lost, and so is the batch. Its unread rows, and new ones, go
        to a new batch.
        """

    @abstractmethod
    def leave(self, row: DecodingRow) -> None:
        """Drop a row before its end, or before its prompt is read; a row that has left already is no error."""

    @property
    def kept_bytes(self) -> int:
        """The memory that is kept of texts that have left, beside the keys and values of the rows."""
        return 0

    def forget(self) -> None:  # noqa: B027 (a batch may keep nothing)
        """Drop what is kept of texts that have left."""


class Engine(ABC):
    """Computes the passes of one backbone; several threads may call it at the same time.

    What changes the model or the engine (adapters added or removed, another engine, training) must not run beside them.
    """

    name: ClassVar[str]

    def __init__(self, backbone: EngineBackbone) -> None:
        self.backbone = backbone
        self.off: dict[str, str] = {}  # component -> the reason why it is off

    @abstractmethod
    def install(self) -> None:
        """Adapt to the backbone's model as it is now."""

    @abstractmethod
    def uninstall(self) -> None:
        """Give the model back as it was before `install`."""

    @abstractmethod
    def hidden(
        self,
        ids: Tensor | None = None,
        lengths: Tensor | None = None,
        needed: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        adapters: Adapters | None = None,
    ) -> Tensor:
        """Return the last hidden states (B, T, C) of right-padded ids (B, T) or embeddings ``embeds`` (B, T, C).

        No mask is needed: in a causal model, real positions don't see the pads to their right. If the ``lengths`` (B,)
        are given, states of pads may hold anything finite, and so may those that are not ``needed`` (B, T).
        ``adapters`` names an adapter of `add_adapter` for each row.
        """

    @abstractmethod
    def token_nll(self, states: Tensor, next_ids: Tensor) -> Tensor:
        """Return the cross-entropy (N,) in nats of states (N, C) and the token ids (N,) that follow; differentiable."""

    @abstractmethod
    def decoding_batch(self, keep: int = 0) -> DecodingBatch:
        """Return an empty batch. It may keep what it read of the last ``keep`` texts for prompts that begin alike."""

    @abstractmethod
    def running(self, adapter: str | None = None) -> AbstractContextManager[None]:
        """A context in which the model's own methods compute by this engine, with an adapter of `add_adapter`."""

    @abstractmethod
    def read_adapter(self, folder: Path, layers: int | None = None) -> AdapterFiles:
        """Read and check a LoRA adapter in PEFT's format for `add_adapter`; any thread may, beside passes too.

        ``layers`` are those of the model it was trained in, from the bottom (None: all). Raises `UserError`.
        """

    @abstractmethod
    def add_adapter(self, adapter: Path | AdapterFiles, layers: int | None = None) -> str:
        """Load a LoRA adapter beside the model's own; return its name, a digest of its bytes (and of its ``layers``).

        One that is there already is not loaded again: equal bytes have one name, whoever adds them, so that an adapter
        may only be removed when nobody uses it any more. Rows with an adapter for the first ``layers`` only leave the
        model after these (and its last norm). Raises `UserError`, and leaves the model as it was, where the adapter
        does not fit, and where it changes nothing though it is not zero.
        """

    @abstractmethod
    def remove_adapter(self, digest: str) -> None:
        """Unload an adapter; raise `KeyError` for one that is not there."""

    @abstractmethod
    def compile(self) -> None:
        """Let torch.compile make `hidden`."""

    def layers_of(self, adapter: str | None) -> int:
        """How many layers rows with an adapter pass, from the bottom."""
        return int(self.backbone.config.num_hidden_layers)

    def row_bytes(self, row: DecodingRow) -> int:
        """The most bytes that a row's keys and values take, at its limit of tokens."""
        return self.position_bytes(self.layers_of(row.adapter)) * (len(row.prompt) + row.limit)

    def position_bytes(self, layers: int | None = None) -> int:
        """The bytes that the keys and values of one position take, in all layers or in so many.

        Layers with a window count like others: they hold what their window hides, too.
        """
        config = self.backbone.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        keys = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        keys = getattr(config, "qk_head_dim", None) or keys  # multi-head latent attention: head_dim is a part of it
        values = getattr(config, "v_head_dim", None) or keys
        count = config.num_hidden_layers if layers is None else layers
        return int(count * heads * (keys + values) * self.backbone.model.dtype.itemsize)

    @property
    def weight_drops(self) -> int:
        """A number that grows when the weights may have changed unseen."""
        return 0

    def check_generation(self, options: GenerationOptions) -> None:  # noqa: B027 (an engine may honour them all)
        """Raise `UserError` for options of text generation that this engine can't honour."""

    def decode(self, rows: Sequence[DecodingRow]) -> None:
        """Write the texts of all rows to their end."""
        batch = self.decoding_batch()
        batch.admit(rows)
        while batch.rows:
            batch.step()

    def can_pack(self, positions: int) -> bool:
        """Whether sequences of up to this many positions are packed into one row, and share their prefixes."""
        return False

    def decodes_in_buckets(self, positions: int) -> bool:
        """Whether texts of up to this many positions are decoded without pads: on a CPU only, where pads take time."""
        return self.backbone.device.type == "cpu" and self.can_pack(positions)

    @property
    def caches_activations(self) -> bool:
        """Whether states of frozen layers may be read from disk."""
        return False

    @property
    def keeps_logits(self) -> bool:
        """Whether `token_nll` keeps the logits of all states for the backward pass."""
        return True

    @abstractmethod
    def drop_inference_weights(self) -> None:
        """Forget what was made of the weights for inference: they may have changed."""

    def fits(self, component: str, check: Callable[[], str | None]) -> bool:
        """Whether a component that is on fits the model: ``check`` returns the reason where it does not.

        The reason, or the exception that the check raised, is logged and switches the component off.
        """
        if component in self.off:
            return False
        try:
            reason = check()
        except Exception as error:  # models raise whatever they raise where a check tries them
            reason = f"its check failed with {type(error).__name__}: {' '.join(str(error).split())}"
            log.warning("engine: %s is off: %s", component, reason)
            log.debug("the check of engine.%s", component, exc_info=error)
        if reason:
            self.off[component] = reason
        return not reason

    @property
    def weight_format(self) -> str:
        """The name of the number format of the weights that predict: float32, bfloat16 or int4."""
        return "int4" if self.backbone.int4 else str(self.backbone.model.dtype).removeprefix("torch.")

    def describe(self) -> dict[str, Any]:
        """The engine's name, the reason of each component that is off, and the weights where they are in int4."""
        int4 = self.backbone.int4
        return {"name": self.name, "off": self.off} | ({"weights": int4.describe()} if int4 else {})

    def summary(self) -> str:
        """The same as a line of the log."""
        return f"engine: {self.name}{self.int4_note}"

    @property
    def int4_note(self) -> str:
        """What the summary says of weights in int4, empty where there are none."""
        return "; weights in int4" if self.backbone.int4 else ""
