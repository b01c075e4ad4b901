"""The task translation: its metrics against sacreBLEU, prompts, options, the sample."""

import random
from typing import Any

import numpy as np
import pytest
import sacrebleu
from gptask import DataError, Prediction, UserError
from gptask.plugins.metric import score_all
from gptask_tasks.translation import Translation

WORDS = {
    "fr": ["le", "chat", "noir", "dort", "sur", "l'arbre", ".", "et", "mange,", "beaucoup", "(vite)"],
    "zh": ["我", "们", "今天", "去", "北京", "。", "好吗", "？", "NBA"],
}


def corpus(language: str, max_references: int) -> tuple[list[str], list[list[str]]]:
    """Random hypotheses, empty ones among them, and one to ``max_references`` references that share words with them."""
    generator = random.Random(max_references)
    separator = "" if language == "zh" else " "

    def text() -> str:
        return separator.join(generator.choices(WORDS[language], k=generator.randint(1, 12)))

    hypotheses = [text() for _ in range(40)]
    hypotheses[3] = hypotheses[17] = ""
    references = [[text() for _ in range(generator.randint(1, max_references))] for _ in hypotheses]
    for number in range(0, 40, 4):  # some equal their last reference
        references[number][-1] = hypotheses[number] or "rien"
    return hypotheses, references


@pytest.mark.parametrize("max_references", [1, 3])
@pytest.mark.parametrize(("language", "tokenizer"), [("fr", "13a"), ("zh", "zh")])
def test_scores_and_signatures_equal_sacrebleu(language: str, tokenizer: str, max_references: int) -> None:
    hypotheses, references = corpus(language, max_references)
    streams = [[r[k] if k < len(r) else None for r in references] for k in range(max_references)]
    scores, _ = score_all(
        Translation(target_lang=language).metrics(),
        [Prediction(text) for text in hypotheses],
        [{"target": r} for r in references],
    )
    for score, scorer in zip(scores, (sacrebleu.BLEU(tokenize=tokenizer), sacrebleu.CHRF()), strict=True):
        expected = scorer.corpus_score(hypotheses, streams)  # type: ignore[arg-type]
        assert score.value == pytest.approx(expected.score)
        assert score.signature == str(scorer.get_signature())
        assert score.interval is not None
        assert score.interval[0] < score.value < score.interval[1]


def test_empty_translations_score_zero() -> None:
    scores, _ = score_all(Translation().metrics(), [Prediction("")] * 3, [{"target": ["le chat dort ici"]}] * 3)
    assert [score.value for score in scores] == [0.0, 0.0]
    assert [score.interval for score in scores] == [None, None]


@pytest.mark.parametrize("blank", ["", " ", "\u200b", None])
def test_a_blank_reference_does_not_shorten_the_closest_reference(blank: Any) -> None:
    text, long = "the cat sat on the mat", "the cat sat on the mat and then it looked at the dog"
    for metric, scorer in zip(Translation().metrics(), (sacrebleu.BLEU(), sacrebleu.CHRF()), strict=True):
        value = metric.aggregate(np.array([metric.statistics(Prediction(text), {"target": [long, blank]})]))
        assert value == pytest.approx(scorer.corpus_score([text], [[long]]).score)
        assert metric.signature.startswith("nrefs:1|")
    bleu = Translation().metrics()[0]
    assert bleu.aggregate(np.array([bleu.statistics(Prediction(text), {"target": [long, blank]})])) == pytest.approx(
        31.14, abs=0.005
    )


@pytest.mark.parametrize(
    ("target", "tokenizer"),
    [
        ("fr", "13a"),
        ("zh", "zh"),
        ("zh-CN", "zh"),
        ("Chinese", "zh"),
        ("中文", "zh"),
        ("ja", "char"),
        ("Khmer", "char"),
        ("lo", "char"),
        ("Klingon", "13a"),
    ],
)
def test_the_tokenizer_follows_the_target_language(target: str, tokenizer: str) -> None:
    assert f"tok:{tokenizer}" in Translation(target_lang=target).metrics()[0].signature


def test_prompts_name_the_languages() -> None:
    example = {"source": "Good morning", "target": ["Bonjour", "Salut"]}
    assert Translation().render(example) == ("Translate English to French.\nEnglish: Good morning\nFrench:", " Bonjour")
    chinese = Translation(language="zh", target_lang="zh")
    assert chinese.render(example | {"target": ["早上好"]}) == (
        "把英语翻译成中文。\n英语：Good morning\n中文：",
        "早上好",
    )
    assert Translation(target_lang="zh").render(example | {"target": ["早上好"]})[1] == "早上好"
    assert Translation(target_lang="Klingon").render(example)[0].endswith("\nKlingon:")
    assert Translation(prompt="{source} = ({target_language})").format_prompt(example) == "Good morning = (French)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "{source_language}: "}, r"uses no field; put \{source\} into it"),
        ({"prompt": "{source} {target}"}, r"names \{target\}, which is what the model has to predict"),
        ({"language": "fr"}, "has no preset prompt"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Translation(**options).validate()


def test_an_empty_translation_is_refused() -> None:
    with pytest.raises(DataError, match="the target is empty"):
        Translation().check({"source": "Good morning", "target": [" ", "Bonjour"]})


def test_the_sample_translates_between_three_languages(sample_rows: Any, assert_fit_for_use: Any) -> None:
    for source, target in (("en", "fr"), ("English", "Chinese"), ("zh", "fr")):
        rows = sample_rows(Translation(source_lang=source, target_lang=target))
        assert_fit_for_use(rows)
        if target == "Chinese":
            assert all(any("\u4e00" <= c <= "\u9fff" for c in e["target"][0]) for split in rows.values() for e in split)
    with pytest.raises(UserError, match="the bundled sample has en, fr and zh, not 'de'"):
        Translation(target_lang="de").sample()
