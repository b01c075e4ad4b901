"""What an informed user of transformers would write: Trainer, pipeline() and generate(), on the same weights.

The stock side takes the defaults: float32 and all weights. The tuned side is the fastest we know that learns as well:
weights loaded in bfloat16, LoRA on query and value, batches by length, the user's own short prompts, and eager
attention, which on a CPU trains on short texts 1.2 to 1.5 times as fast as the default (sdpa).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from harness import bf16
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

STOCK: dict[str, Any] = {"per_device_train_batch_size": 16, "learning_rate": 2e-5}
TUNED: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "bf16": bf16(),
    "train_sampling_strategy": "group_by_length",
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.06,
}
TUNED_LM = TUNED | {
    "per_device_train_batch_size": 16
}  # the scores of a larger batch's vocabulary cost more than it saves
LONG_BATCH = 8  # of texts with more than LONG tokens
LONG = 100
MAX_TOKENS = 512
PROMPTS = {
    "translation": "German: {source}\nEnglish:",
    "qa": "Context: {context}\nQuestion: {question}\nAnswer:",
    "summarization": "{document}\nSummary:",
}


def tokenizer(location: str) -> Any:
    """The tokenizer, padded with its EOS where it has no pad token."""
    words: Any = AutoTokenizer.from_pretrained(location)
    if words.pad_token is None:
        words.pad_token = words.eos_token
    return words


def _load(model_class: Any, location: str, task_type: str, lora: bool, **settings: Any) -> Any:
    """The stock model in float32, or the tuned one with its adapter."""
    if not lora:
        return model_class.from_pretrained(location, dtype=torch.float32, **settings)
    from peft import LoraConfig, get_peft_model

    dtype = torch.bfloat16 if bf16() else torch.float32
    base = model_class.from_pretrained(location, dtype=dtype, attn_implementation="eager", **settings)
    targets = ["q_proj", "v_proj"]
    model: Any = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type=task_type))
    for weights in model.parameters():
        if weights.requires_grad:
            weights.data = weights.data.float()  # small steps vanish in a head of bfloat16 numbers
    return model


def autocast(model: Any) -> Any:
    """Compute a bfloat16 model's float32 adapters and head in bfloat16 too, as its Trainer does."""
    return torch.autocast("cpu", torch.bfloat16, enabled=next(model.parameters()).dtype is torch.bfloat16)


def _trainer(
    model: Any, words: Any, rows: Sequence[dict[str, Any]], collator: Any, settings: dict[str, Any]
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        **({"num_train_epochs": 1} | settings),
    )
    return Trainer(
        model=model, args=arguments, train_dataset=list(rows), data_collator=collator, processing_class=words
    )


def classifier(location: str, labels: Sequence[str], lora: bool = False) -> Any:
    """A sequence classifier with a new head."""
    names = dict(enumerate(labels))
    settings: dict[str, Any] = {"id2label": names, "label2id": {name: n for n, name in names.items()}}
    settings["pad_token_id"] = tokenizer(location).pad_token_id
    return _load(AutoModelForSequenceClassification, location, "SEQ_CLS", lora, **settings)


def classification(model: Any, location: str, texts: Sequence[str], labels: Sequence[int], **settings: Any) -> Trainer:
    """A Trainer on texts and label numbers, dynamically padded."""
    words = tokenizer(location)
    rows = [
        {**words(text, truncation=True, max_length=MAX_TOKENS), "labels": label}
        for text, label in zip(texts, labels, strict=True)
    ]
    return _trainer(model, words, rows, DataCollatorWithPadding(words), settings)


def classified(model: Any, location: str, texts: Sequence[str]) -> list[list[float]]:
    """The probabilities of the labels for each text."""
    words = tokenizer(location)
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    probabilities: dict[int, list[float]] = {}
    model.eval()
    with torch.inference_mode(), autocast(model):
        for start in range(0, len(order), 32):
            part = order[start : start + 32]
            batch = words([texts[n] for n in part], padding=True, truncation=True, return_tensors="pt")
            probabilities |= dict(zip(part, model(**batch).logits.float().softmax(-1).tolist(), strict=True))
    model.train()
    return [probabilities[n] for n in range(len(texts))]


def accuracy(model: Any, location: str, texts: Sequence[str], labels: Sequence[int]) -> float:
    """Accuracy in percent."""
    predicted = [row.index(max(row)) for row in classified(model, location, texts)]
    return 100 * sum(a == b for a, b in zip(predicted, labels, strict=True)) / len(texts)


def generator(location: str, lora: bool = True) -> Any:
    """A causal language model."""
    return _load(AutoModelForCausalLM, location, "CAUSAL_LM", lora)


def prompt_ids(words: Any, task_name: str, example: Mapping[str, Any]) -> list[int]:
    """Token ids of the user's prompt, without the beginning of one that is too long."""
    ids: list[int] = words(PROMPTS[task_name].format(**example))["input_ids"]
    return ids[-MAX_TOKENS:]


def pairs(words: Any, task_name: str, examples: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts and of what is to be written behind them."""
    targets = [
        example["answers"][0] if task_name == "qa" else example["target" if task_name == "translation" else "summary"]
        for example in examples
    ]
    return [
        (prompt_ids(words, task_name, example), [*words(f" {target}")["input_ids"], words.eos_token_id])
        for example, target in zip(examples, targets, strict=True)
    ]


def sequence_trainer(model: Any, location: str, pairs: Sequence[Any], **settings: Any) -> Trainer:
    """A Trainer on pairs of prompt ids and target ids, the prompt masked from the loss."""
    words = tokenizer(location)
    rows = [{"input_ids": a + b, "attention_mask": [1] * len(a + b), "labels": [-100] * len(a) + b} for a, b in pairs]
    if sum(len(a) + len(b) for a, b in pairs) > LONG * len(pairs):
        settings = settings | {"per_device_train_batch_size": LONG_BATCH}
    return _trainer(model, words, rows, DataCollatorForSeq2Seq(words, padding=True), settings)


def certainty(model: Any, pairs: Sequence[Any]) -> float:
    """The geometric mean, in percent, of the probabilities a causal model gives the target ids behind their prompts."""
    log_probabilities = []
    training = model.training
    model.eval()
    with torch.inference_mode():
        for prompt, target in pairs:
            scores = model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].float()
            log_probabilities.append(scores.log_softmax(-1).gather(1, torch.tensor(target)[:, None]))
    model.train(training)
    return 100 * float(torch.cat(log_probabilities).mean().exp())


class Generator:
    """``generate()``, greedy, left-padded, prompts sorted by length, with adapters merged."""

    def __init__(self, location: str, dtype: torch.dtype, model: Any = None) -> None:
        self.words = tokenizer(location)
        self.words.padding_side = "left"
        self.model: Any = model or AutoModelForCausalLM.from_pretrained(location)
        self.model.to(dtype).eval()

    def __call__(self, prompts: Sequence[list[int]], batch: int, new: int, stop: Sequence[str] = ()) -> list[str]:
        """Texts of all prompts."""
        order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
        answers = [""] * len(prompts)
        settings: dict[str, Any] = {"stop_strings": list(stop), "tokenizer": self.words} if stop else {}
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            inputs = self.words.pad({"input_ids": [prompts[n] for n in part]}, return_tensors="pt")
            with torch.inference_mode():
                ids = self.model.generate(
                    **inputs, max_new_tokens=new, do_sample=False, pad_token_id=self.words.pad_token_id, **settings
                )
            texts = self.words.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for n, text in zip(part, texts, strict=True):
                answers[n] = text
        return answers
