"""`gptask export format=gguf`: a run's language model as one file for llama.cpp and what is built on it."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.schemas import DType, Export, Quantization
from gptask.errors import UserError, writing
from gptask.plugins.generation_options import DEFAULT_NEW_TOKENS, GenerationOptions
from gptask.runs.atomic_write import written_whole
from gptask.runs.gguf_tokenizer import add_tokenizer, normalizes_unicode
from gptask.runs.gguf_weights import check_architecture, write_gguf
from gptask.runs.markdown import fenced
from gptask.runs.prompt_text import prompt_template
from gptask.runs.run import Run, load_run

if TYPE_CHECKING:
    from gguf import GGUFWriter

log = logging.getLogger("gptask")
README = """# {title}

The language model of the gptask run `{run}` (task `{task}`) in the GGUF format, for llama.cpp and programs built on it.
Backbone: {backbone}. The adapter is merged. The weights are {formats}.

```bash
llama-server -m {file} --port 8080
curl http://127.0.0.1:8080/completion -d {request}
```

The answer is `content` of what the server returns. A prompt follows this template{end}, as in training, with a text in
the place of each name in braces:

{template}

{notes}
"""
PARSED = (
    "llama.cpp takes the string of a control token in a prompt for the token itself, where gptask reads text: remove "
    "such strings from a text before it goes into the template."
)
NOT_NORMALIZED = "Send texts in Unicode's form NFC, into which the run's tokenizer brings them and llama.cpp does not."
NOT_DECODED = "llama.cpp has no {}, with which the run decodes: its texts differ from the run's."


def export_gguf(config: Export) -> Path:
    """Write the run's language model, adapter merged, to the new file ``config.output``, and a page about it beside.

    The adapter is merged in float32, and the weights are then rounded one after the other as ``config.quantization``
    says (q8_0 by default), so that memory holds the model and one matrix more. Raises `UserError` for options that
    don't go together, a file that exists or can't be written, a head that is no language model, and a model or
    tokenizer that llama.cpp does not compute.
    """
    output = Path(config.output)
    page = output.with_name(f"{output.name}.md")
    _check_options(config, output, page)
    run = load_run(config.run, dtype=DType.float32, engine=config.engine)
    _check_head(run)
    check_architecture(run.backbone.config)
    quantization = config.quantization or Quantization.q8_0
    try:
        with writing(f"output={output}", lambda: "Nothing of it is left; choose another place."):
            output.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(page) as partial_page, written_whole(output) as partial:
                formats = _write(run, quantization, partial)
                partial_page.write_text(_page(run, output, formats), encoding="utf-8")
    except OSError as error:
        raise UserError(f"output={output} can't be written: {error.strerror or error}") from error
    return output


def _check_options(config: Export, output: Path, page: Path) -> None:
    """Raise `UserError` for options of another format, and for files that would be written over."""
    if config.adapter:
        raise UserError("adapter=true goes with format=huggingface: a GGUF file has the adapter merged")
    if config.dtype:
        raise UserError(
            f"dtype={config.dtype.value} goes with format=huggingface: here it is quantization=q8_0|q4_1|f16"
        )
    if output.suffix != ".gguf":
        raise UserError(f"output={output}: with format=gguf it is a file whose name ends in .gguf")
    for path in (output, page):
        if path.exists():
            raise UserError(f"{path} exists; choose another output")


def _check_head(run: Run) -> None:
    """Raise `UserError` for a run that predicts by more than the language model."""
    if run.head.export_class == "AutoModelForCausalLM" and not any(True for _ in run.head.parameters()):
        return
    way = "leave format=gguf out to export a folder for transformers"
    if run.head.export_class is None:
        way = "gptask predict and gptask serve compute it"
    raise UserError(
        f"{run.folder} can't be exported as GGUF: llama.cpp has no head such as its {type(run.head).__name__}, only "
        f"language models: {way}"
    )


def _write(run: Run, quantization: Quantization, path: Path) -> str:
    """Write the file; return which number formats its weights have."""
    backbone = run.backbone
    peft: Any = backbone.peft
    template = prompt_template(run.task, backbone)
    model = peft.merge_and_unload() if hasattr(peft, "merge_and_unload") else peft

    def add_description(writer: GGUFWriter) -> None:
        writer.add_name(run.folder.name)
        if licence := run.config["backbone"].get("license"):
            writer.add_license(licence)
        writer.add_string("gptask.run", str(run.folder))
        writer.add_string("gptask.task", run.plugin.name)
        writer.add_string("gptask.prompt_template", template)
        add_tokenizer(writer, backbone.tokenizer, backbone.stop_ids, model.config.vocab_size, template)

    sizes = write_gguf(path, model, quantization, add_description)
    log.info("%s: %s", path.with_suffix("").name, ", ".join(f"{n / 1e6:.1f} MB {name}" for name, n in sizes.items()))
    return ", ".join(sizes)


def _page(run: Run, output: Path, formats: str) -> str:
    """The page beside the file: how llama.cpp computes it, and what prompts look like."""
    from gptask.model.heads import GenerationHead

    template, backbone = prompt_template(run.task, run.backbone), run.config["backbone"]
    licence = f" (licence: {backbone['license']})" if backbone.get("license") else ""
    notes = [PARSED, NOT_NORMALIZED] if normalizes_unicode(run.backbone.tokenizer) else [PARSED]
    request: dict[str, Any] = {"prompt": template, "n_predict": DEFAULT_NEW_TOKENS}
    if isinstance(run.head, GenerationHead):
        options = run.head.options
        request |= _decoding(options)
        unknown = {"num_beams": options.num_beams, "min_new_tokens": max(options.min_new_tokens, 1)}
        notes += [NOT_DECODED.format(f"{name}={value}") for name, value in unknown.items() if value > 1]
    return README.format(
        title=output.name,
        run=run.folder,
        task=run.plugin.name,
        backbone=backbone.get("source", "from scratch") + licence,
        formats=formats,
        file=shlex.quote(str(output)),
        request=shlex.quote(json.dumps(request, ensure_ascii=False)),
        end=" and ends with a line break" if template.endswith("\n") else "",
        template=fenced("text", template),
        notes="\n\n".join(notes),
    )


def _decoding(options: GenerationOptions) -> dict[str, Any]:
    """The options of a request to llama.cpp's server that decode as the run does."""
    request: dict[str, Any] = {"n_predict": options.limit, "stop": options.stop, "temperature": options.temperature}
    request |= {"repeat_penalty": options.repetition_penalty, "repeat_last_n": -1}
    if options.temperature > 0:
        request |= {"top_k": options.top_k, "top_p": options.top_p, "min_p": 0.0}
    return request
