"""`gptask export adapter=true`: a run's adapter alone, in the format that PEFT and vLLM load on its backbone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from gptask.config.schemas import Export
from gptask.errors import UserError
from gptask.runs.atomic_write import share_weights
from gptask.runs.folder import model_folder
from gptask.runs.prompt_text import control_tokens_note, prompt_template, prompts_block
from gptask.runs.run import Run
from gptask.runs.saved_model import save_adapter

BASE_FILE = "gptask_backbone.json"  # in a folder for the backbone: which weights it holds
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
README = """# {title}

The LoRA adapter of the gptask run `{run}` (task `{task}`), without its backbone. It belongs to {backbone}, here
`{base}`{moved}. Rank {rank}; adapted: {modules}.

```bash
vllm serve {base_word} --dtype {dtype} --enable-lora --max-lora-rank {max_rank} --lora-modules {module}
```

vLLM loads it where it has LoRA for the architecture (Llama, Qwen and Gemma among others, not GPT-2); `model` of a
request is then `{title}`. Plain PEFT loads it like this:

```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder_text})
model = AutoModelForCausalLM.from_pretrained({base_text}, dtype="{dtype}")
model = PeftModel.from_pretrained(model, {folder_text}).eval()
batch = tokenizer(prompts, padding=True, return_tensors="pt")
with torch.inference_mode():
    ids = model.generate(**batch, **{options}{stop})
texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True){cut}
```

{prompts}

{note}
"""


def refuse_adapter_export(run: Run) -> None:
    """Raise `UserError` for a run that is more than a backbone and an adapter which write texts."""
    from gptask.model.heads import GenerationHead

    problem = ""
    kept = run.backbone.config.num_hidden_layers
    if not isinstance(run.head, GenerationHead) or any(True for _ in run.head.parameters()):
        problem = (
            f"its head ({type(run.head).__name__}) is no part of an adapter: only runs that write texts do without"
        )
    elif not (model_folder(run.folder) / "adapter_config.json").exists():
        problem = f"it has none: tuning={run.config['tuning']['kind'].removesuffix('_schema')}"
    elif kept < (count := _layers_of_backbone(run)):
        problem = f"it belongs to {kept} of the backbone's {count} layers, and others would compute all of them"
    if problem:
        raise UserError(
            f"{run.folder} can't be exported as an adapter: {problem}. Without adapter=true, export writes the whole "
            "model"
        )


def _layers_of_backbone(run: Run) -> int:
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(
        run.backbone.origin.location, local_files_only=True, trust_remote_code=False
    )
    return int(config.get_text_config().num_hidden_layers)


def write_adapter(run: Run, config: Export, output: Path, folder: Path) -> None:
    """Write adapter, tokenizer and README to ``folder``, which becomes ``output``; the backbone too, if asked to."""
    base, peft = config.base or _name_of_base(run), run.backbone.peft
    peft.peft_config["default"].revision = run.config["backbone"].get("revision")  # of the backbone
    tokenizer = run.backbone.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    save_adapter(run.backbone, folder, str(Path(base).absolute()) if config.base else base)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_readme(run, base, output), encoding="utf-8")
    if config.base:
        _write_base(run, Path(config.base))


def _name_of_base(run: Run) -> str:
    """What the adapter's config names as its base: the id on the hub, or the folder on this machine."""
    origin = run.backbone.origin
    source = str(run.config["backbone"].get("source"))
    return source if origin.kind.startswith("hub") else origin.location


def _write_base(run: Run, folder: Path) -> None:
    """Write the backbone without the adapter, unless the folder holds it; raises `UserError` for one of others."""
    backbone, content = run.backbone, {"weights_hash": run.backbone.origin.weights_hash, "dtype": _dtype(run)}
    if folder.exists() and any(folder.iterdir()):
        try:
            present = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            present = None
        if present != content:
            raise UserError(f"base={folder} exists and holds something else than this backbone in {content['dtype']}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    peft: Any = backbone.peft
    model = peft.unload()
    model.generation_config.update(eos_token_id=sorted(backbone.stop_ids), pad_token_id=backbone.tokenizer.pad_token_id)
    model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    (folder / BASE_FILE).write_text(json.dumps(content), encoding="utf-8")
    share_weights(folder, folder / BASE_FILE)


def _dtype(run: Run) -> str:
    return str(run.backbone.model.dtype).removeprefix("torch.")


def _readme(run: Run, base: str, output: Path) -> str:
    from gptask.model.heads import GenerationHead

    assert isinstance(run.head, GenerationHead)
    peft: Any = run.backbone.peft
    adapter, template = peft.peft_config["default"], prompt_template(run.task, run.backbone)
    values = run.head.export()[1] | {
        "eos_token_id": sorted(run.backbone.stop_ids), "pad_token_id": run.backbone.tokenizer.pad_token_id
    }  # fmt: skip
    stops = run.head.options.stop
    is_local = base == run.backbone.origin.location
    return README.format(
        title=output.name,
        run=run.folder,
        task=run.plugin.name,
        backbone=run.config["backbone"].get("source", "a backbone from scratch"),
        base=base,
        moved=" (a folder of this machine; base=<folder> writes a copy to go with the adapter)" if is_local else "",
        rank=adapter.r,
        max_rank=next((rank for rank in VLLM_RANKS if rank >= adapter.r), adapter.r),
        modules=", ".join(sorted(adapter.target_modules)),
        dtype=_dtype(run),
        base_word=shlex.quote(base),
        module=shlex.quote(f"{output.name}={output}"),
        folder_text=json.dumps(str(output), ensure_ascii=False),
        base_text=json.dumps(base, ensure_ascii=False),
        options=values,
        stop=f", stop_strings={stops!r}, tokenizer=tokenizer" if stops else "",
        cut="".join(f"\ntexts = [text.split({stop!r})[0] for text in texts]" for stop in stops),
        prompts=prompts_block(template),
        note=control_tokens_note(run.backbone.tokenizer, template),
    )
