"""The metadata of a model card, in the terms of the Hugging Face hub.

The hub refuses a card whose licence, data set or base model is not one of its identifiers
(https://github.com/huggingface/hub-docs/blob/main/modelcard.md), so these entries never hold local names.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gptask.config.schemas import Hub, Sample
from gptask.data.files import shortest_paths
from gptask.errors import listing
from gptask.runs.cards.card_facts import hub_id
from gptask.runs.markdown import one_line

if TYPE_CHECKING:
    from gptask.plugins.task import Task
    from gptask.runs.cards.card_facts import CardFacts

PIPELINE_TAGS = {  # the hub's name for the use of a transformers class
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
}
LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m bsd-2-clause bsd-3-clause
    cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 agpl-3.0 gpl-3.0 lgpl-3.0
    mpl-2.0 isc unlicense gemma llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
"""  # the hub's identifiers that a language model is likely to have


def front_matter(card: CardFacts) -> Any:
    """The card's metadata as a `huggingface_hub.ModelCardData`."""
    from huggingface_hub import ModelCardData

    dataset = card.hub_dataset("train") if card.trained else None
    values: dict[str, Any] = {
        "language": languages(card.config.task) or None,
        **license_of(card.license),
        "base_model": card.base_model,
        "datasets": [dataset] if dataset else None,
        "library_name": card.library,
        "pipeline_tag": PIPELINE_TAGS.get(str(card.auto_class)),
        "tags": ["gptask", card.plugin.name, card.tuning or "evaluation"],
        "model_name": one_line(f"{card.plugin.name} {card.folder.name}"),
        "eval_results": scores(card) or None,
    }
    return ModelCardData(**values)


def scores(card: CardFacts) -> list[Any]:
    """Every metric with a finite value, as a `huggingface_hub.EvalResult` with the metric's name in gptask."""
    from huggingface_hub import EvalResult

    options, split = card.options, card.result["split"]
    hub_dataset = card.hub_dataset(split)
    sample = f"{card.plugin.name}-sample" if isinstance(card.config.data, Sample) else ""
    files = one_line(listing(shortest_paths(card.files(split)).values()))
    source: dict[str, Any] = {
        "task_type": PIPELINE_TAGS.get(str(card.auto_class), card.plugin.name),
        "task_name": card.plugin.name,
        "dataset_type": hub_dataset or hub_id(sample) or "local",
        "dataset_name": hub_dataset or sample or files,
        "dataset_split": split,
    }
    if hub_dataset and isinstance(options, Hub):
        source |= {"dataset_config": options.name, "dataset_revision": options.revision}
    return [
        EvalResult(metric_type=name, metric_name=name, metric_value=score["value"], **source)
        for name, score in card.result["metrics"].items()
        if score["value"] is not None and math.isfinite(score["value"])
    ]


def license_of(text: str | None) -> dict[str, str]:
    """A licence as the hub takes it: an identifier, or ``other`` with a name and, where the text has one, a link."""
    if not text:
        return {}
    name = re.sub(r"\(.*?\)|\b(licen[cs]e|terms of use)\b", " ", text.lower())
    name = re.sub(r"[^a-z0-9.]+", "-", name).strip("-.")
    if name in LICENSES.split():
        return {"license": name}
    entries = {"license": "other", "license_name": name or "other"}
    if link := re.search(r"(?:https?://)?((?:[\w-]+\.)+[a-z]{2,}/[^\s)]+)", text):
        entries["license_link"] = f"https://{link[1]}"
    return entries


def languages(task: Task) -> list[str]:
    """Language codes from the task's options: those named ``*_lang`` (source and target), else ``language``."""
    options = {f.name: str(getattr(task, f.name)) for f in fields(task)}
    tags = [value for name, value in options.items() if name.endswith("_lang")] or [options.get("language", "")]
    codes = [re.split("[-_]", tag.lower())[0] for tag in tags]
    return list(dict.fromkeys(code for code in codes if re.fullmatch("[a-z]{2,3}", code)))
