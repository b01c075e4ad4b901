"""Translation between two languages named in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from gptask import Example, Field, GenerationOptions, GenerativeTask, Kind, Metric, Prediction, UserError, option

from gptask_tasks import sample
from gptask_tasks.scores import CorpusScore

LANGUAGES = {
    "ar": ("Arabic", "阿拉伯语"), "cs": ("Czech", "捷克语"), "da": ("Danish", "丹麦语"),
    "de": ("German", "德语"), "el": ("Greek", "希腊语"), "en": ("English", "英语"),
    "es": ("Spanish", "西班牙语"), "fi": ("Finnish", "芬兰语"), "fr": ("French", "法语"),
    "he": ("Hebrew", "希伯来语"), "hi": ("Hindi", "印地语"), "hu": ("Hungarian", "匈牙利语"),
    "id": ("Indonesian", "印尼语"), "it": ("Italian", "意大利语"), "ja": ("Japanese", "日语"),
    "km": ("Khmer", "高棉语"), "ko": ("Korean", "韩语"), "lo": ("Lao", "老挝语"),
    "my": ("Burmese", "缅甸语"), "nl": ("Dutch", "荷兰语"), "no": ("Norwegian", "挪威语"),
    "pl": ("Polish", "波兰语"), "pt": ("Portuguese", "葡萄牙语"), "ro": ("Romanian", "罗马尼亚语"),
    "ru": ("Russian", "俄语"), "sv": ("Swedish", "瑞典语"), "th": ("Thai", "泰语"),
    "tr": ("Turkish", "土耳其语"), "uk": ("Ukrainian", "乌克兰语"), "vi": ("Vietnamese", "越南语"),
    "zh": ("Chinese", "中文"),
}  # fmt: skip
# by characters: languages written without spaces, and Korean, as published
BLEU_TOKENIZERS = {"zh": "zh"} | dict.fromkeys(("ja", "km", "ko", "lo", "my", "th"), "char")


def language_code(language: str) -> str:
    """Return the code of a language given by code (``zh``, ``zh-CN``) or by name; any other as it is."""
    lowered = language.strip().lower()
    code = lowered.replace("_", "-").split("-")[0]
    codes = {name.lower(): code for code, names in LANGUAGES.items() for name in names}
    return code if code in LANGUAGES else codes.get(lowered, language)


@dataclass
class Translation(GenerativeTask):
    """Translate a text from task.source_lang to task.target_lang."""

    contract_version = "1.0"
    baseline_name = "copy of the source"
    PROMPTS: ClassVar[dict[str, str]] = {
        "en": "Translate {source_language} to {target_language}.\n{source_language}: {source}\n{target_language}:",
        "zh": "把{source_language}翻译成{target_language}。\n{source_language}：{source}\n{target_language}：",
    }

    source_lang: str = option("en", "language of the source: a code such as en, zh, de, or any name")
    target_lang: str = option("fr", "language of the target: a code such as fr, zh, de, or any name")
    generation: GenerationOptions = option(partial(GenerationOptions, stop=["\n"]), "how text is decoded")

    def fields(self) -> list[Field]:
        """Return a source and its translations."""
        return [
            Field("source", truncate=True, help="the text to translate"),
            Field("target", Kind.TEXTS, target=True, help="a translation, or several equally good ones"),
        ]

    def placeholders(self, example: Example) -> dict[str, str]:
        """Return the languages' names, in the prompt's language."""
        index = 1 if self.language == "zh" else 0
        languages = (self.source_lang, self.target_lang)
        source, target = (LANGUAGES.get(language_code(name), (name, name))[index] for name in languages)
        return {"source_language": source, "target_language": target}

    def target(self, example: Example) -> str | None:
        """Return the first translation, which is learned; all of them are references."""
        return example["target"][0] if example.get("target") else None

    def baseline_prediction(self, example: Example, train: Sequence[Example]) -> Prediction:
        """Return the source as it is."""
        return Prediction(example["source"])

    def metrics(self) -> list[Metric]:
        """List BLEU (Papineni et al. 2002) and chrF (Popović 2015), both by sacreBLEU (Post 2018)."""
        import sacrebleu

        bleu = sacrebleu.BLEU(tokenize=BLEU_TOKENIZERS.get(language_code(self.target_lang), "13a"))
        return [CorpusScore("bleu", bleu, "target"), CorpusScore("chrf", sacrebleu.CHRF(), "target")]

    def sample(self) -> dict[str, Any]:
        """Return the sample: everyday phrases in English, French and Chinese."""
        for language in (self.source_lang, self.target_lang):
            if language_code(language) not in ("en", "fr", "zh"):
                raise UserError(
                    f"the bundled sample has en, fr and zh, not '{language}'; use data=files for other languages"
                )
        columns = {"source": language_code(self.source_lang), "target": language_code(self.target_lang)}
        return sample("translation", columns=columns)
