"""Language modeling: pre-training and continued pre-training on raw text, and the score of any text."""

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
    """Pre-train a backbone on raw text, or continue its pre-training, and score how well it predicts a text.

    A document begins with a start token and is cut into blocks of ``data.max_tokens``. Each position of a block
    predicts the token that follows it, so that every token is learned, and scored, exactly once. Documents never see
    each other.
    """

    contract_version = "1.0"

    supervised: ClassVar[bool] = False
    documents: ClassVar[Documents] = Documents.section
    examples_per_step: ClassVar[int] = 4  # a block teaches as much as hundreds of examples

    cleaning: Cleaning = option(Cleaning, "how the text is cleaned first")
    overlap: int = option(0, "tokens at the end of a block that the next one reads again, as context only")

    def fields(self) -> list[Field]:
        """Return the text."""
        return [Field("text", help="a document, or a section of one")]

    def validate(self) -> None:
        """Refuse options out of range."""
        if self.overlap < 0:
            raise UserError(f"task.overlap={self.overlap} must be 0 or more")
        self.cleaning.validate()

    def clean(self, examples: Iterable[Example], train: bool, counts: Counter[str]) -> Iterator[Example]:
        """Clean every text; leave out training texts that repeat earlier ones."""
        return self.cleaning.clean(examples, train, counts)

    def render(self, example: Example) -> tuple[str, str | None]:
        """Return the cleaned text."""
        return self.cleaning.text(example["text"]), None

    def encode(self, example: Example, tokenizer: Any, max_tokens: int) -> list[Encoded]:
        """Cut the document into blocks.

        Their ``extra`` has the token behind the block (``next``), how many tokens at its start are context only
        (``skip``), and whether the document ends with it (``end``: EOS is learned, and not scored, as it has no bytes).
        """
        if self.overlap >= max_tokens:
            raise UserError(f"task.overlap={self.overlap} must be less than the {max_tokens} tokens of a block")
        ids = tokenizer(self.render(example)[0], add_special_tokens=False)["input_ids"]
        if not ids:
            raise DataError("the text is empty, or nothing is left of it after task.cleaning")
        document = [*start_ids(tokenizer), *ids, tokenizer.eos_token_id]
        last = len(document) - 1
        blocks = []
        for start in range(0, max(1, last - self.overlap), max_tokens - self.overlap):
            stop = min(start + max_tokens, last)
            extra = {"next": document[stop], "skip": self.overlap if start else 0, "end": int(stop == last)}
            blocks.append(Encoded(document[start:stop], extra=extra))
        return blocks

    def head(self, backbone: Backbone) -> LanguageModelHead:
        """Build the language model itself."""
        from gptask_tasks.language_modeling.head import LanguageModelHead

        return LanguageModelHead(backbone)

    def prediction(self, example: Example, outputs: Sequence[Any]) -> Prediction:
        """Return perplexity and bits per byte of a text, and the counts they are computed from."""
        nats, tokens = (float(sum(column)) for column in zip(*outputs, strict=True))
        size = len(self.render(example)[0].encode())  # in bytes
        value = {name: Likelihood.FORMS[name](nats, tokens, size) for name in ("perplexity", "bits_per_byte")}
        return Prediction(value, extra=dict(zip(Likelihood.COUNTS, (nats, int(tokens), size), strict=True)))

    def metrics(self) -> list[Metric]:
        """List bits per byte first: it can be compared whatever the tokenizer, the others only for one tokenizer."""
        signature = "the backbone's own tokens"
        bits = Likelihood("bits_per_byte", "UTF-8 bytes of the cleaned text")
        return [bits, Likelihood("perplexity", signature), Likelihood("nats_per_token", signature)]

    def sample(self) -> dict[str, Any]:
        """Return the sample: short stories and notes, in English and Chinese."""
        return sample("language_modeling", "txt", documents=Documents.paragraph)


def start_ids(tokenizer: Any) -> list[int]:
    """Return the token that the tokenizer puts before a text, EOS where it puts none."""
    ids = tokenizer("")["input_ids"]
    return ids[:1] or [tokenizer.eos_token_id]
