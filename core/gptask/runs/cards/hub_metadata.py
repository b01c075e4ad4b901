"""What the Hugging Face hub reads of a model card: its metadata, in the hub's own terms.

The hub refuses a card whose licence, data set or base model is not one of its identifiers
(https://github.com/huggingface/hub-docs/blob/main/modelcard.md), so local names stay out of those places.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.schemas import Hub, Sample
from gptask.errors import listing
from gptask.runs.cards.card_facts import hub_id
from gptask.runs.markdown import line

if TYPE_CHECKING:
    from gptask.plugins.task import Task
    from gptask.runs.cards.card_facts import CardFacts

PIPELINES = {  # what the hub calls the use of a transformers class
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
}
LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m bsd-2-clause bsd-3-clause
    cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 agpl-3.0 gpl-3.0 lgpl-3.0
    mpl-2.0 isc unlicense gemma llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
"""  # of the hub's identifiers those that a language model is likely to have


def front_matter(card: CardFacts) -> Any:
    """The card's metadata as a `huggingface_hub.ModelCardData`."""
    from huggingface_hub import ModelCardData

    hub = card.hub("train") if card.trained else None
    values: dict[str, Any] = {
        "language": languages(card.config.task) or None,
        **license_of(card.license),
        "base_model": card.base,
        "datasets": [hub] if hub else None,
        "library_name": card.library,
        "pipeline_tag": PIPELINES.get(str(card.auto)),
        "tags": ["gptask", card.plugin.name, card.tuning or "evaluation"],
        "model_name": line(f"{card.plugin.name} {card.folder.name}"),
        "eval_results": scores(card) or None,
    }
    return ModelCardData(**values)


def scores(card: CardFacts) -> list[Any]:
    """Every metric that has a number for a value, under the run's names, as `huggingface_hub.EvalResult`."""
    from huggingface_hub import EvalResult

    options, split = card.options, card.result["split"]
    hub = card.hub(split)
    sample = f"{card.plugin.name}-sample" if isinstance(card.config.data, Sample) else ""
    files = line(listing(Path(name).name for name in card.files(split)))
    where: dict[str, Any] = {
        "task_type": PIPELINES.get(str(card.auto), card.plugin.name),
        "task_name": card.plugin.name,
        "dataset_type": hub or hub_id(sample) or "local",
        "dataset_name": hub or sample or files,
        "dataset_split": split,
    }
    if hub and isinstance(options, Hub):
        where |= {"dataset_config": options.name, "dataset_revision": options.revision}
    return [
        EvalResult(metric_type=name, metric_name=name, metric_value=score["value"], **where)
        for name, score in card.result["metrics"].items()
        if math.isfinite(score["value"])
    ]


def license_of(said: str | None) -> dict[str, str]:
    """A licence as the hub takes it: an identifier, or ``other`` with a name and, where one is said, a link."""
    if not said:
        return {}
    name = re.sub(r"\(.*?\)|\b(licen[cs]e|terms of use)\b", " ", said.lower())
    name = re.sub(r"[^a-z0-9.]+", "-", name).strip("-.")
    if name in LICENSES.split():
        return {"license": name}
    found = {"license": "other", "license_name": name or "other"}
    if link := re.search(r"(?:https?://)?((?:[\w-]+\.)+[a-z]{2,}/[^\s)]+)", said):
        found["license_link"] = f"https://{link[1]}"
    return found


def languages(task: Task) -> list[str]:
    """Codes in the task's options: those named ``*_lang`` (a source's and a target's), else ``language``."""
    said = {f.name: str(getattr(task, f.name)) for f in fields(task)}
    named = [value for name, value in said.items() if name.endswith("_lang")] or [said.get("language", "")]
    codes = [re.split("[-_]", value.lower())[0] for value in named]
    return list(dict.fromkeys(code for code in codes if re.fullmatch("[a-z]{2,3}", code)))
