"""The model card of a run folder, README.md: for readers, with metadata for the Hugging Face hub."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from gptask.config.compression import Compress
from gptask.config.schemas import Sample, Scratch
from gptask.data.files import shortest_paths
from gptask.errors import listing
from gptask.plugins.metric import interval_text, value_text
from gptask.plugins.task import Task
from gptask.plugins.types import Kind
from gptask.runs.atomic_write import write_text
from gptask.runs.cards.card_facts import CardFacts
from gptask.runs.cards.hub_metadata import front_matter, languages
from gptask.runs.cards.parent_table import HEAD, parent_rows
from gptask.runs.markdown import code_span, escaped, fenced, one_line, table
from gptask.runs.prompt_text import control_tokens_note, prompt_template, prompts_block

CARD = """# {title}

{intro}

{about}

## Data

{data}

Licence of the data: {license}.{sample}

## Results

{results}

## Reproduce

{reproduce}

## Use

{use}

## Intended use and limits

{limits}
"""
EXAMPLE_VALUES: dict[Kind, Any] = {  # of inputs that a text can't be
    Kind.TEXTS: ["..."],
    Kind.INTEGERS: [0],
    Kind.NUMBER: 0,
    Kind.MESSAGES: [{"role": "user", "content": "..."}],
    Kind.TOKENS: ["...", "..."],
}
GPTASK_CODE = """import gptask

run = gptask.load_run({folder!r})
for prediction in run.predict([{example!r}]):
    print(prediction.value, prediction.score)"""
PEFT_CODE = """import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder = {model!r}
config = AutoConfig.from_pretrained(folder)  # the backbone's layers that this run keeps
base = AutoModelForCausalLM.from_pretrained({base}, config=config, dtype={dtype!r})  # {comment}
model = PeftModel.from_pretrained(base, folder)
"""
TRANSFORMERS_CODE = """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {model!r}
model = AutoModelForCausalLM.from_pretrained(folder, dtype={dtype!r})
"""
TEXTS_CODE = """tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

batch = tokenizer(prompts, padding=True, return_tensors="pt")
options = {options!r}
with torch.inference_mode():
    ids = model.generate(**batch, **options, pad_token_id=tokenizer.pad_token_id{stop})
texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True){cut}"""


class ModelCard(CardFacts):
    """README.md of a finished run, or of one of its tasks."""

    def write(self) -> None:
        """Write README.md."""
        text = f"---\n{front_matter(self).to_yaml()}\n---\n\n{self.body()}"
        write_text(self.folder / "README.md", text.encode("utf-8", "backslashreplace").decode("utf-8"))

    def body(self) -> str:
        """The text below the metadata."""
        sample = " This is the sample bundled with the task; use it to try things out, not to compare results."
        return CARD.format(
            title=f"{escaped(self.plugin.name)}: {escaped(self.folder.name)}",
            intro=self.intro(),
            about=self.about(),
            data=self.splits(),
            license=escaped(self.options.license or "not stated"),
            sample=sample if isinstance(self.config.data, Sample) else "",
            results=self.results(),
            reproduce=self.reproduce(),
            use=self.use(),
            limits="\n".join(f"- {text}" for text in self.limits()),
        )

    def intro(self) -> str:
        """A sentence or two: what this folder holds."""
        gptask = f"gptask {self.result['versions'].get('gptask', '')}".strip()
        if self.trained:
            others = "" if self.single_task else ", together with other tasks on the same backbone"
            model = f"A model for the task {code_span(self.plugin.name)}, trained with {gptask}{others}."
            return f"{model} {made_smaller(self.config)}".strip()
        model = (
            f"the run {code_span(self.config.run)}" if self.config.run else "the bare backbone, without any training"
        )
        notes = {"int4": ", with weights in int4", "q8_0": ", whose texts OpenVINO wrote with weights in q8_0"}
        weights = notes.get(self.backbone.weight_format, "")
        return f"An evaluation of {model}{weights}, made with {gptask}. This folder holds no model."

    def about(self) -> str:
        """Task, backbone and tuning."""
        summary = (type(self.config.task).__doc__ or "").strip().partition("\n")[0]
        backbone = self.config.backbone
        source = "from scratch" if isinstance(backbone, Scratch) else code_span(backbone.source)
        if self.result["weights_hash"]:
            source += f", weights {code_span(self.result['weights_hash'])}"
        rows = [
            ["task", f"{code_span(self.plugin.name)} of {escaped(self.plugin.origin)}: {escaped(summary)}"],
            ["backbone", f"{source}; licence: {escaped(self.license or 'not stated')}"],
        ]
        if self.trained:
            values = ", ".join(f"{f.name}={getattr(self.config.tuning, f.name)}" for f in fields(self.config.tuning))
            counts = f"{self.result['trainable_parameters']:,} of {self.result['parameters']:,} parameters were trained"
            rows.append(["tuning", f"{self.tuning}: {code_span(values)}; {counts}"])
        if against := self.result.get("against_parent"):
            rows.append(
                ["parent", f"{code_span(against['folder'])}, SHA-256 of its manifest {code_span(against['manifest'])}"]
            )
        if len(layers := self.backbone.layer_numbers) <= max(layers):
            rows.append(["layers", f"of the backbone's, numbered from 0, these {len(layers)}: {listing(layers, 100)}"])
        return table(["what", "which"], rows)

    def splits(self) -> str:
        """The splits that were used, with their sources."""
        rows = []
        for split in ("train", "validation", "test") if self.trained else (self.result["split"],):
            note = " (cut from train)" if self.corpus and self.corpus.split_source(split) is None else ""
            hashes = self.files(split)
            names = {name: name for name in hashes} if self.hub_dataset(split) else shortest_paths(hashes)
            sources = [f"{code_span(names[name])} {code_span(hashes[name][:16])}" for name in hashes]
            rows.append([split + note, f"{len(self.data.examples(split)):,}", "<br>".join(sources) or "unknown"])
        return table(["split", "examples", "source, with the start of its content hash"], rows)

    def results(self) -> str:
        """Every metric with its interval, sample size and signature, and the data they were computed on."""
        rows = [
            [
                code_span(name),
                value_text(score["value"]),
                interval_text(score),
                score["direction"],
                f"{score['n']:,}",
                code_span(score["signature"]) if score["signature"] else "",
            ]
            for name, score in self.result["metrics"].items()
        ]
        data = f"Split {code_span(self.result['split'])}, data hash {code_span(self.result['test_data_hash'])}."
        head = ["metric", "value", "95% interval", "better", "n", "signature"]
        text = f"{data}\n\n{table(head, rows) if rows else 'No example was scored, so there are no metrics.'}"
        if not (parent := parent_rows(against := self.result.get("against_parent") or {})):
            return text
        parent_table = table(HEAD, [[escaped(cell) for cell in row] for row in parent])
        return (
            f"{text}\n\nAgainst its parent, on the same examples: {escaped(against['conclusion'])}.\n\n{parent_table}"
        )

    def reproduce(self) -> str:
        """The command that repeats the run, and the files that hold its options and versions."""
        git_commit, version = self.result["git_commit"], self.result["versions"].get("gptask", "")
        commit = f", commit {code_span(git_commit)}" if git_commit else ""
        return (
            f"{fenced('bash', self.command)}\n\n"
            f"`config.yaml` holds every option, including the seed {self.result['seed']}. `metrics.json` lists the "
            f"versions of the packages used: gptask {version}{commit}."
        )

    def use(self) -> str:
        """How to load the model: with gptask, and with plain transformers where that can."""
        if not self.trained:
            return "The model is in the run named above." if self.config.run else "There is no model to load."
        folder = shlex.quote(f"run={self.folder}")
        example = example_input(self.config.task)
        parts = [
            "With gptask:",
            fenced("bash", f"gptask predict {folder} input=<file>"),
            fenced("python", GPTASK_CODE.format(folder=str(self.folder), example=example)),
        ]
        export = code_span(f"gptask export {folder} output=<new folder>")
        if self.auto_class is None:
            parts.append("No transformers class fits its head.")
        elif self.auto_class == "AutoModelForCausalLM" and self.is_loadable:
            template = prompt_template(self.config.task, self.backbone)
            parts += ["With plain transformers:", fenced("python", self.generating_code())]
            parts += [
                prompts_block(template),
                control_tokens_note(self.backbone.tokenizer, template),
                f"{export} writes a folder without an adapter that `{self.auto_class}` loads.{self.base_hint()}",
            ]
        else:
            parts.append(
                f"For plain transformers, {export} writes a folder that `{self.auto_class}` loads, with instructions."
            )
        return "\n\n".join(parts)

    @property
    def is_loadable(self) -> bool:
        """Whether plain libraries load the model as it is: of a backbone's layers they take the first ones only."""
        layers = self.backbone.layer_numbers
        return bool(self.library) and (self.library != "peft" or layers == [*range(len(layers))])

    def generating_code(self) -> str:
        """The Python lines that load a model and generate texts as the run does, without gptask."""
        from gptask.model.heads import GenerationHead

        values = {"model": str(self.model), "dtype": str(self.backbone.model.dtype).removeprefix("torch.")}
        if self.library == "peft":
            base, comment = self.base_and_comment()
            code = PEFT_CODE.format(base=base, comment=comment, **values)
        else:
            code = TRANSFORMERS_CODE.format(**values)
        head: Any = self.head
        options = {name: value for name, value in head.export()[1].items() if value is not None}
        stops = head.options.stop if isinstance(head, GenerationHead) else []
        return code + TEXTS_CODE.format(
            options=options | {"eos_token_id": sorted(self.backbone.stop_ids)},
            stop=f", stop_strings={stops!r}, tokenizer=tokenizer" if stops else "",
            cut="".join(f"\ntexts = [text.split({stop!r})[0] for text in texts]" for stop in stops),
        )

    def base_and_comment(self) -> tuple[str, str]:
        """The arguments that load the backbone below an adapter, and what it is."""
        options, comment = self.config.backbone, f"the backbone {one_line(self.config.backbone.source)}"
        if self.base_model is None:
            return repr(self.backbone.origin.location), comment + ", converted by gptask" * self.is_converted
        revision = f", revision={options.revision!r}" if options.revision else ""
        return f"{self.base_model!r}{revision}", comment

    @property
    def is_converted(self) -> bool:
        """Whether the backbone's weights are a conversion in the cache of the machine that trained."""
        return "(GGUF, converted to" in self.backbone.origin.kind

    def base_hint(self) -> str:
        """A sentence on a backbone that is on this machine only."""
        if self.library != "peft" or not self.is_converted:
            return ""
        return " The code above needs gptask's cache on the machine that trained; the exported folder needs nothing."

    def limits(self) -> list[str]:
        """The intended use, and the limits of the scores and of the model."""
        inputs = ", ".join(code_span(f.name) for f in self.config.task.inputs())
        codes = ", ".join(languages(self.config.task)) or "not stated"
        max_tokens = self.config.data.max_tokens
        sentences = [
            f"It is meant for input ({inputs}) like the data above. Languages, from the task's options: {codes}.",
            f"The scores hold for the {self.result['split']} split above. On texts of other topics, lengths or sources "
            "the quality may be lower. The intervals cover the choice of test examples, not the choice of seed.",
            "The limits of the backbone apply: its licence, the languages it knows and the biases of its training "
            "data. The licence of the data may restrict the use further.",
            f"A prompt and its answer together have at most {max_tokens} tokens; longer prompts are cut."
            if self.config.task.supervised
            else f"Texts are read in blocks of {max_tokens} tokens.",
        ]
        if self.auto_class == "AutoModelForCausalLM":
            sentences.append("The generated text can be fluent and wrong: have it checked where that matters.")
        return sentences


def made_smaller(config: Any) -> str:
    """A sentence on the run that `gptask compress` made a run from; empty for a run that was trained alone."""
    if not isinstance(config, Compress):
        return ""
    runs = listing(map(code_span, config.parents))
    return f"It is the run {runs} made smaller by {code_span(f'method={config.method.name}')}."


def example_input(task: Task) -> dict[str, Any]:
    """The smallest example that a task predicts, for a reader to fill in."""
    return {field.name: EXAMPLE_VALUES.get(field.kind, "...") for field in task.inputs() if field.required}
