"""Language modeling: pre-training and going on with it on raw text, and the score of any text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gptask import DataError, Documents, Encoded, Example, Field, Metric, Prediction, Task, UserError, option

from gptask_tasks import sample
from gptask_tasks.language_modeling.cleaning import Cleaning
from gptask_tasks.scores import Likelihood

if TYPE_CHECKING:
    from gptask import Backbone

    from gptask_tasks.language_modeling.head import LanguageModelHead


@dataclass
class LanguageModeling(Task):
    """Pre-train a backbone on raw text, or go on training one; says how well it knows a text.

    A document is read from a start token on, and is cut into blocks of ``data.max_tokens``, each of which predicts the
    tokens that follow its own; so every token is learned, and scored, exactly once. Documents never see each other.
    """

    contract_version = "1.0"

    supervised: ClassVar[bool] = False
    documents: ClassVar[Documents] = Documents.section
    examples_per_step: ClassVar[int] = 4  # a block is hundreds of examples

    cleaning: Cleaning = option(Cleaning, "what is done to the text first")
    overlap: int = option(0, "tokens of the block before that a block reads again, as context only")

    def fields(self) -> list[Field]:
        """The text."""
        return [Field("text", help="a document, or a section of one")]

    def validate(self) -> None:
        """Refuse what no cleaning or cutting can follow."""
        if self.overlap < 0:
            raise UserError(f"task.overlap={self.overlap} must be 0 or more")
        self.cleaning.validate()

    def clean(self, examples: Iterable[Example], train: bool, counts: Counter[str]) -> Iterator[Example]:
        """Clean every text; of training texts leave out what was there before."""
        return self.cleaning.clean(examples, train, counts)

    def render(self, example: Example) -> tuple[str, str | None]:
        """The cleaned text."""
        return self.cleaning.text(example["text"]), None

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> list[Encoded]:
        """Blocks of the document; ``extra`` has the token behind a block, how many tokens at its start are context
        only, and whether the document ends with it (the end is learned, and not scored: it has no bytes)."""
        if self.overlap >= max_tokens:
            raise UserError(f"task.overlap={self.overlap} must be less than the {max_tokens} tokens of a block")
        ids = tokenizer(self.render(example)[0], add_special_tokens=False)["input_ids"]
        if not ids:
            raise DataError("the text is empty, or nothing is left of it after task.cleaning")
        stream = [*start(tokenizer), *ids, tokenizer.eos_token_id]
        blocks = []
        for begin in range(0, max(1, len(stream) - 1 - self.overlap), max_tokens - self.overlap):
            end = min(begin + max_tokens, len(stream) - 1)
            extra = {"next": stream[end], "skip": self.overlap if begin else 0, "end": int(end == len(stream) - 1)}
            blocks.append(Encoded(stream[begin:end], extra=extra))
        return blocks

    def head(self, backbone: Backbone) -> LanguageModelHead:
        """The language model itself."""
        from gptask_tasks.language_modeling.head import LanguageModelHead

        return LanguageModelHead(backbone)

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """Perplexity and bits per byte of a text, and what they are made of."""
        nats, tokens = (float(sum(part)) for part in zip(*outputs, strict=True))
        size = len(self.render(example)[0].encode())
        value = {name: Likelihood.FORMS[name](nats, tokens, size) for name in ("perplexity", "bits_per_byte")}
        return Prediction(value, extra=dict(zip(Likelihood.COUNTS, (nats, int(tokens), size), strict=True)))

    def metrics(self) -> list[Metric]:
        """Bits per byte, which can be compared whatever the tokenizer, first."""
        own = "the backbone's own tokens"  # so comparable only where the tokenizer is the same
        bits = Likelihood("bits_per_byte", "UTF-8 bytes of the cleaned text")
        return [bits, Likelihood("perplexity", own), Likelihood("nats_per_token", own)]

    def sample(self) -> dict[str, Any]:
        """Short stories and notes, in English and Chinese."""
        return sample("language_modeling", "txt", documents=Documents.paragraph)


def start(tokenizer: Any) -> list[int]:
    """What a document is read from: the token that the tokenizer puts before a text, or else the end of another."""
    own = tokenizer("")["input_ids"]
    return own[:1] or [tokenizer.eos_token_id]
