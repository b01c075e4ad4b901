"""The model card of a run folder, README.md: for readers, with metadata for the Hugging Face hub."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from gptask.config.schemas import Sample, Scratch
from gptask.data.messages import parse_messages
from gptask.plugins.types import Kind
from gptask.runs.cards.card_facts import CardFacts
from gptask.runs.cards.hub_metadata import front_matter, languages
from gptask.runs.config_file import read_config
from gptask.runs.markdown import code, fenced, line, prose, table
from gptask.runs.reproduce import reproduce_command

if TYPE_CHECKING:
    pass

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
LOAD = """import gptask

run = gptask.load_run({folder!r})
for said in run.predict([{example!r}]):
    print(said.value, said.score)"""
PEFT = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base!r})  # {what}
model = PeftModel.from_pretrained(base, {model!r})
tokenizer = AutoTokenizer.from_pretrained({model!r})"""
FULL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({model!r})
tokenizer = AutoTokenizer.from_pretrained({model!r})"""


class ModelCard(CardFacts):
    """README.md of a finished run, or of one of its tasks."""

    def write(self) -> None:
        """Write README.md."""
        text = f"---\n{front_matter(self).to_yaml()}\n---\n\n{self.body()}"
        (self.folder / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")

    def body(self) -> str:
        """The text below the metadata."""
        sample = isinstance(self.config.data, Sample)
        return CARD.format(
            title=f"{prose(self.plugin.name)}: {prose(self.folder.name)}",
            intro=self.intro(),
            about=self.about(),
            data=self.splits(),
            license=prose(self.options.license or "not stated"),
            sample=" This is the sample bundled with the task: for trying things, not for comparing results." * sample,
            results=self.results(),
            reproduce=self.reproduce(),
            use=self.use(),
            limits="\n".join(f"- {text}" for text in self.limits()),
        )

    def intro(self) -> str:
        """What this is, in a sentence."""
        by = f"gptask {self.result['versions'].get('gptask', '')}".strip()
        if self.trained:
            shared = "" if self.alone else ", together with those of other tasks on one backbone"
            return f"A model for the task {code(self.plugin.name)}, trained with {by}{shared}."
        of = (
            f"the run {code(self.config.run)}" if self.config.run else "the bare backbone, of which nothing was trained"
        )
        return f"An evaluation by {by} of {of}. There is no model in this folder."

    def about(self) -> str:
        """Task, backbone and tuning."""
        summary = (type(self.config.task).__doc__ or "").strip().partition("\n")[0]
        backbone = self.config.backbone
        source = "from scratch" if isinstance(backbone, Scratch) else code(backbone.source)
        if self.result["weights_hash"]:
            source += f", weights {code(self.result['weights_hash'])}"
        rows = [
            ["task", f"{code(self.plugin.name)} of {prose(self.plugin.origin)}: {prose(summary)}"],
            ["backbone", f"{source}; licence: {prose(self.license or 'not stated')}"],
        ]
        if self.trained:
            values = ", ".join(f"{f.name}={getattr(self.config.tuning, f.name)}" for f in fields(self.config.tuning))
            counts = f"{self.result['trainable_parameters']:,} of {self.result['parameters']:,} parameters learned"
            rows.append(["tuning", f"{self.tuning}: {code(values)}; {counts}"])
        return table(["what", "which"], rows)

    def splits(self) -> str:
        """Each split that was used, and where it came from."""
        rows = []
        for split in ("train", "validation", "test") if self.trained else (self.result["split"],):
            cut = " (cut from train)" if self.corpus and self.corpus.given(split) is None else ""
            short = str if self.hub(split) else lambda name: Path(name).name
            found = [f"{code(short(name))} {code(digest[:16])}" for name, digest in self.files(split).items()]
            rows.append([split + cut, f"{len(self.data.examples(split)):,}", "<br>".join(found) or "not known"])
        return table(["split", "examples", "from, with the start of the content's hash"], rows)

    def results(self) -> str:
        """Every metric with its interval, what it was computed on, and how."""
        rows = [
            [
                code(name),
                f"{score['value']:.2f}",
                "{:.2f} to {:.2f}".format(*score["interval"]),
                score["direction"],
                f"{score['n']:,}",
                code(score["signature"]) if score["signature"] else "",
            ]
            for name, score in self.result["metrics"].items()
        ]
        on = f"Split {code(self.result['split'])}, data hash {code(self.result['test_data_hash'])}."
        head = ["metric", "value", "95% interval", "better", "n", "signature"]
        return f"{on}\n\n{table(head, rows) if rows else 'No example was scored, so there are no metrics.'}"

    def reproduce(self) -> str:
        """The command that does it again, and where all that it needs is written."""
        commit, version = self.result["git_commit"], self.result["versions"].get("gptask", "")
        at = f", commit {code(commit)}" if commit else ""
        return (
            f"{fenced('bash', reproduce_command(read_config(self.folder)))}\n\n"
            f"`config.yaml` holds every option, with seed {self.result['seed']}; `metrics.json` the versions of what "
            f"it ran on: gptask {version}{at}."
        )

    def use(self) -> str:
        """How the model is loaded: by gptask, and by what else can."""
        if not self.trained:
            return "The model lies in the run named above." if self.config.run else "There is nothing to load."
        folder = shlex.quote(f"run={self.folder}")
        example = {f.name: "..." for f in self.config.task.inputs()}
        parts = [
            "In gptask:",
            fenced("bash", f"gptask predict {folder} input=<file>"),
            fenced("python", LOAD.format(folder=str(self.folder), example=example)),
        ]
        if self.auto is None:
            parts.append("No class of transformers fits its head.")
        elif self.auto == "AutoModelForCausalLM" and self.library and getattr(self.config.tuning, "layers", 1) == 1:
            parts += ["In plain transformers:", fenced("python", self.plain()), "Prompts are made from this template:"]
            parts.append(fenced("text", self.template()))
        else:
            command = code(f"gptask export {folder} output=<new folder>")
            parts.append(f"For plain transformers: {command} writes a folder that `{self.auto}` loads, and says how.")
        return "\n\n".join(parts)

    def plain(self) -> str:
        """The lines that load a model that generates without gptask."""
        model = self.model
        if self.library != "peft":
            return FULL.format(model=str(model))
        if (model / "base").is_dir():
            return PEFT.format(base=str(model / "base"), what="its own, from scratch", model=str(model))
        base = self.base or self.backbone.origin.location
        return PEFT.format(base=base, what=f"the backbone {line(self.config.backbone.source)}", model=str(model))

    def template(self) -> str:
        """The prompt, as it was in training."""
        from gptask.data.datamodule import encode

        task, tokenizer = self.config.task, self.backbone.tokenizer
        blank = {f.name: None for f in task.targets()}
        example = blank | {f.name: f"{{{f.name}}}" for f in task.inputs()}
        turns = {f.name: parse_messages(example[f.name]) for f in task.inputs() if f.kind is Kind.MESSAGES}
        if not turns:
            return task.render(example)[0]
        (item,) = encode(task, example | turns, tokenizer, self.config.data.max_tokens)  # by its chat template
        return str(tokenizer.decode(item["ids"]))

    def limits(self) -> list[str]:
        """What it is for, where that is known to hold, and where not."""
        inputs = ", ".join(code(f.name) for f in self.config.task.inputs())
        known = ", ".join(languages(self.config.task)) or "not stated"
        texts = [
            f"Meant for input ({inputs}) like that of the data above. Languages, by the task's options: {known}.",
            f"The scores are those of the {self.result['split']} split above and of no other text: other topics, "
            "lengths and sources may go worse. The intervals cover the choice of examples, not that of the seed.",
            "What holds for the backbone holds here: its licence, the languages it knows, the slant of what it was "
            "trained on. The licence of the data may narrow the use further.",
            f"A prompt and its answer have {self.config.data.max_tokens} tokens together; longer prompts are cut."
            if self.config.task.supervised
            else f"Texts are read in blocks of {self.config.data.max_tokens} tokens.",
        ]
        if self.auto == "AutoModelForCausalLM":
            texts.append("What it writes can be fluent and wrong: have it checked where that matters.")
        return texts
