"""`gptask export`: a run's model as a folder that plain transformers loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from gptask.config.engine import refuse_openvino
from gptask.config.schemas import DType, Export, ExportFormat
from gptask.errors import UserError, writing
from gptask.runs import saved_model
from gptask.runs.adapter_export import refuse_adapter_export, write_adapter
from gptask.runs.atomic_write import share_weights
from gptask.runs.folder import model_folder
from gptask.runs.gguf_export import export_gguf
from gptask.runs.prompt_text import control_tokens_note, prompt_template, prompts_block
from gptask.runs.run import Run, load_run

README = """# {title}

Exported by gptask from the run `{run}` (task `{task}`). Backbone: {backbone}.

```python
import torch
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = {auto}.from_pretrained({folder}, dtype="{dtype}")
batch = tokenizer(prompts, padding=True, return_tensors="pt")
with torch.inference_mode():
{use}
```

{prompts}

{note}

The weights are {dtype}. {expectation}
"""
SAME_FORMAT = {
    "float32": "The run predicts in float32 too: predictions are the same up to rounding in the last digits.",
    "bfloat16": "The run predicts in bfloat16 too, rounded elsewhere: a probability may differ by a few hundredths, "
    "and where two labels or tokens are about equally likely the other one may come first.",
}
OTHER_FORMAT = (
    "The run predicts in {0}, and its figures were measured so: a probability may differ by a tenth and more. "
    "`dtype={0}` exports what the run predicts in."
)
USAGE_LINES = {
    "AutoModelForCausalLM": """    ids = model.generate(**batch{stop})
texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True){cut}""",
    "AutoModelForSequenceClassification": """    logits = model(**batch).logits
probabilities = logits.{activation}
names = [model.config.id2label[number] for number in range(model.config.num_labels)]""",
}


def export(config: Export) -> Path:
    """Write the run's model to a new folder: adapter merged, with tokenizer, generation config and README.

    With ``config.adapter`` it is the adapter alone, with ``config.format`` a GGUF file (`export_gguf`). The number
    format is ``config.dtype``, by default what the run predicts in on this machine. Raises `UserError` where the folder
    is not empty or can't be written, where no transformers class fits the head, and where the run is more than an
    adapter.
    """
    refuse_openvino(config.engine, "export")
    if config.dtype is DType.int4:
        raise UserError(
            "dtype=int4: the weights of an export are float32 or bfloat16; evaluate, predict, chat and serve compute "
            "in int4"
        )
    if config.base and not config.adapter:
        raise UserError(f"base={config.base} goes with adapter=true: other exports have the backbone in them")
    if config.format is ExportFormat.gguf:
        return export_gguf(config)
    output = Path(config.output)
    if config.quantization or output.suffix == ".gguf":
        option = f"quantization={config.quantization.value}" if config.quantization else f"output={output}"
        raise UserError(f"{option} goes with format=gguf; a folder has dtype=float32|bfloat16")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output={output} exists and is not an empty folder; choose another")
    run = load_run(config.run, dtype=config.dtype, engine=config.engine)
    if config.adapter:
        refuse_adapter_export(run)
    model = None if config.adapter else exported_model(run).to(run.backbone.model.dtype)
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with writing(f"output={output}", lambda: "Nothing of it is left; choose another place."):
            partial.mkdir(parents=True)
            if model is None:
                write_adapter(run, config, output, partial)
            else:
                model.save_pretrained(partial)
                run.backbone.tokenizer.save_pretrained(partial)
                (partial / "README.md").write_text(readme(run, output), encoding="utf-8")
            share_weights(partial, partial / "README.md")
            partial.replace(output)
    except OSError as error:
        raise UserError(f"output={output} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def exported_model(run: Run) -> Any:
    """The run's model as an instance of the head's transformers class, with the adapter merged and the head inside."""
    cls = model_class(run)
    weights, values = run.head.export()
    peft, tokenizer = run.backbone.peft, run.backbone.tokenizer
    merged = peft.merge_and_unload() if hasattr(peft, "merge_and_unload") else peft
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    values |= {"pad_token_id": tokenizer.pad_token_id}
    generates = isinstance(merged, cls)
    tokenizer.padding_side = "left" if generates else "right"
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side  # save_pretrained writes this value
    if not generates:
        return with_head(cls, merged, weights, values)
    merged.generation_config.update(**values, eos_token_id=sorted(run.backbone.stop_ids))
    return merged


def model_class(run: Run) -> Any:
    """The class that the head's ``export_class`` stands for with the backbone's architecture."""
    import transformers

    from gptask.model.engine.private import auto_model_classes

    name, head = run.head.export_class, type(run.head).__name__
    if name is None:
        raise UserError(f"{run.folder} can't be exported: no transformers class fits its head ({head})")
    config = run.backbone.model.config
    mapping = auto_model_classes(getattr(transformers, name))
    if type(config) not in mapping:
        raise UserError(f"{run.folder} can't be exported: transformers has no {name} for {config.model_type}")
    return mapping[type(config)]


def with_head(cls: Any, merged: Any, weights: dict[str, Any], values: dict[str, Any]) -> Any:
    """A model of class ``cls`` with the decoder of ``merged``, the head's ``weights`` and its config ``values``."""
    import torch

    config = merged.config
    for name, value in values.items():
        setattr(config, name, value)
    with torch.device("meta"):  # all weights are replaced below
        model = cls(config)
    prefix = model.base_model_prefix
    head_names = {name for name in model.state_dict() if not name.startswith(f"{prefix}.")}
    if head_names != set(weights) or type(getattr(model, prefix)) is not type(merged.base_model):
        raise UserError(
            f"{cls.__name__} needs the head weights {sorted(head_names)}, but the head exports {sorted(weights)}"
        )
    setattr(model, prefix, merged.base_model)
    model.load_state_dict({name: value.contiguous() for name, value in weights.items()}, strict=False, assign=True)
    return model.eval()


def readme(run: Run, output: Path) -> str:
    """README.md: how to load the folder, and the prompt template."""
    template = prompt_template(run.task, run.backbone)
    auto, backbone, dtype = str(run.head.export_class), run.config["backbone"], _name(run.backbone.model.dtype)
    predicts_in = _name(saved_model.prediction_format(model_folder(run.folder), run.config))
    licence = f" (licence: {backbone['license']})" if backbone.get("license") else ""
    return README.format(
        title=output.name,
        run=run.folder,
        task=run.plugin.name,
        backbone=backbone.get("source", "from scratch") + licence,
        auto=auto,
        folder=json.dumps(str(output), ensure_ascii=False),
        use=usage(run, auto),
        prompts=prompts_block(template),
        note=control_tokens_note(run.backbone.tokenizer, template),
        dtype=dtype,
        expectation=SAME_FORMAT[dtype] if dtype == predicts_in else OTHER_FORMAT.format(predicts_in),
    )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def usage(run: Run, auto: str) -> str:
    """The README's lines that turn a batch into predictions."""
    from gptask.model.heads import GenerationHead

    stops = run.head.options.stop if isinstance(run.head, GenerationHead) else []
    multi_label = run.backbone.model.config.problem_type == "multi_label_classification"
    return USAGE_LINES.get(auto, "    output = model(**batch)").format(
        stop=f", stop_strings={stops!r}, tokenizer=tokenizer" if stops else "",
        cut="".join(f"\ntexts = [text.split({stop!r})[0] for text in texts]" for stop in stops),
        activation="sigmoid()" if multi_label else "softmax(-1)",
    )
