import itertools
import json
import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics as reference
import torch
from gptask import Config, DataError, Prediction, UserError, train
from gptask.config.schemas import Files, Sample
from gptask.data.datamodule import PaddedBatch, collate, encode
from gptask.plugins.metric import score_all
from gptask.plugins.types import IGNORED, Example
from gptask_tasks.token_tagging import Context, TokenTagging
from gptask_tasks.token_tagging.metrics import Micro
from gptask_tasks.token_tagging.spans import EntitySpan, are_plain, bio, decode, spans
from gptask_tasks.token_tagging.windows import pieces, windows
from seqeval.metrics.sequence_labeling import get_entities

from tests.support.configs import small_config

TYPES = ["LOC", "ORG", "PER"]
WORDS = ["the", "film", "is", "good", "in", "Paris", "电", "影", "refunds", "!"]


def tagged(generator: random.Random, prefixes: str, words: int | None = None) -> list[str]:
    """Tags without any sense, sound or not."""
    drawn = [generator.choice(["O", *(f"{p}-{t}" for p in prefixes for t in TYPES)]) for _ in range(words or 12)]
    return drawn if words else drawn[: generator.randint(1, 12)]


# --- tags and spans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES", "IES"])
def test_spans_are_those_of_seqeval(prefixes: str) -> None:
    generator = random.Random(prefixes)
    for _ in range(300):
        tags = tagged(generator, prefixes)
        assert spans(tags) == [(kind, start, end + 1) for kind, start, end in get_entities(tags)], tags


@pytest.mark.parametrize(
    "tags",
    [
        "B-A I-A B-A O B-B",  # BIO
        "I-A I-A B-A O I-B",  # IOB1: B- only between neighbours of one type
        "B-A E-A S-A O S-B",  # BIOES
        "B-A L-A U-A O U-B",  # BILOU
    ],
)
def test_every_scheme_marks_the_same_spans(tags: str) -> None:
    found = spans(tags.split())
    assert found == [EntitySpan("A", 0, 2), EntitySpan("A", 2, 3), EntitySpan("B", 4, 5)]
    assert bio(found, 5) == ["B-A", "I-A", "B-A", "O", "B-B"]


def test_plain_tags_are_told_from_those_of_spans() -> None:
    assert are_plain(["NOUN", "-LRB-", "PRP$", "O", "I"])
    assert not are_plain(["O", "I-PER"])
    assert spans(["NOUN", "NOUN"], plain=True) == [EntitySpan("NOUN", 0, 1), EntitySpan("NOUN", 1, 2)]
    assert spans(["B-R-ARG0", "I-R-ARG0"]) == [EntitySpan("R-ARG0", 0, 2)]
    with pytest.raises(DataError, match="tag 'PER' is neither O nor a type behind B-, I-"):
        spans(["O", "PER"])


def test_decoding_finds_the_likeliest_of_all_sound_sequences() -> None:
    tags = TokenTagging(types=["A", "B"], plain=False).tags
    generator = np.random.default_rng(0)
    illegal = 0
    for words in (1, 2, 3, 4):
        for _ in range(15):
            scores = np.log(generator.dirichlet(np.full(len(tags), 0.5), words))
            every = itertools.product(range(len(tags)), repeat=words)
            sound = [path for path in every if bio(spans(named := [tags[k] for k in path]), words) == named]
            best = max(sound, key=lambda path: sum(row[k] for row, k in zip(scores, path, strict=True)))
            assert decode(scores, tags) == list(best)
            illegal += list(best) != scores.argmax(1).tolist()
    assert illegal > 5, "the constraint was never put to the test"


# --- metrics ------------------------------------------------------------------------------------------------------


def predicted(tags: list[str], plain: bool = False) -> Prediction:
    return Prediction([span._asdict() | {"score": 1.0} for span in spans(tags, plain)])


@pytest.fixture(params=[0, 1], ids=["bio", "as bad as iob1"])
def scored(request: Any) -> tuple[list[list[str]], list[list[str]]]:
    """True tags, as a file may have them, and said ones (sound, half of them right)."""
    generator = random.Random(request.param)
    true = [tagged(generator, "BI" if request.param else "I") for _ in range(80)]
    said = [t if generator.random() < 0.5 else tagged(generator, "BI", len(t)) for t in true]
    return true, [bio(spans(tags), len(tags)) for tags in said]


def test_aggregates_equal_seqeval(scored: Any) -> None:
    true, said = scored
    task = TokenTagging(types=TYPES, plain=False)
    scores, rows = score_all(task.metrics(), [predicted(tags) for tags in said], [{"tags": tags} for tags in true])
    found = {score.name: score.value for score in scores}
    for name in ("f1", "precision", "recall"):
        score = getattr(reference, f"{name}_score")
        assert found[name] == pytest.approx(100 * score(true, said, average="micro"))
    assert found["f1_macro"] == pytest.approx(100 * reference.f1_score(true, said, average="macro"))
    sound = [bio(spans(tags), len(tags)) for tags in true]
    assert found["accuracy"] == pytest.approx(100 * reference.accuracy_score(sound, said))
    assert 0 < found["f1"] < 100
    assert all(score.low < score.value < score.high for score in scores)
    assert len(rows[0]["f1"]) == 3
    assert len(rows[0]["f1_macro"]) == 9


def test_details_equal_seqevals_report(scored: Any) -> None:
    true, said = scored
    task = TokenTagging(types=TYPES, plain=False)
    found = task.details([predicted(tags) for tags in said], [{"tags": tags} for tags in true])["per_type"]
    report = reference.classification_report(true, said, output_dict=True)
    for name in TYPES:
        expected = {k: 100 * report[name][k] for k in ("precision", "recall")} | {"f1": 100 * report[name]["f1-score"]}
        assert found[name] == {k: pytest.approx(v, abs=0.01) for k, v in expected.items()} | {
            "support": report[name]["support"]
        }
    json.dumps(found)


def test_types_that_do_not_occur_count_for_nothing() -> None:
    true, said = [["B-LOC", "O"], ["O", "O"]], [["B-LOC", "O"], ["B-PER", "O"]]
    scores, _ = score_all(
        TokenTagging(types=TYPES, plain=False).metrics(), [predicted(t) for t in said], [{"tags": t} for t in true]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scores[3].value == pytest.approx(100 * reference.f1_score(true, said, average="macro"))
    nothing = Micro("f1", TYPES, False)
    assert nothing.aggregate(np.array([nothing.statistics(Prediction([]), {"tags": ["O"]})])) == 0


def test_plain_tags_are_scored_by_word() -> None:
    task = TokenTagging(types=["NOUN", "VERB"], plain=True)
    said, true = predicted(["NOUN", "NOUN", "VERB"], True), {"tags": ["NOUN", "VERB", "VERB"]}
    scores, _ = score_all(task.metrics(), [said], [true])
    assert [score.name for score in scores] == ["accuracy", "f1_macro"]
    assert [score.value for score in scores] == pytest.approx([200 / 3, 200 / 3])


# --- words to tokens ----------------------------------------------------------------------------------------------


def test_words_are_tokenized_apart(tokenizer: Any) -> None:
    parts = pieces(WORDS, [1], tokenizer)
    read = [tokenizer.decode(ids) for ids in parts]
    assert read == [" the", " * film", " is", " good", " in", " Paris", "电", "影", "refunds", " !"]
    assert sum(map(len, pieces(["电", "影"], [], tokenizer))) >= 2, "no token belongs to two words"


@pytest.mark.parametrize(("words", "room", "copies"), [(1, 12, 1), (7, 64, 1), (90, 24, 1), (90, 48, 2), (200, 30, 1)])
def test_windows_predict_every_word_once(words: int, room: int, copies: int) -> None:
    parts = [[10 * k + n for n in range(1 + k % 3)] for k in range(words)]
    found, told = windows(parts, 9999, copies, room), []
    for window in found:
        assert len(window.ids) <= room
        ends, first, stop = (window.extra[name] for name in ("ends", "first", "stop"))
        own = [window.ids[end] for end in ends]
        half = len(window.ids) // copies
        assert window.ids[:half] * copies == window.ids
        assert all(end >= half * (copies - 1) for end in ends), "the last copy is read"
        told += own[first:stop]
        assert not window.truncated
    assert told == [part[-1] for part in parts]
    for window in found[1:]:
        assert window.extra["first"] > 0, "a later window reads what stands before its words"
    for window in found[:-1]:
        assert window.extra["stop"] < len(window.extra["ends"])


def test_a_word_longer_than_a_window_is_cut_and_counted() -> None:
    found = windows([[1], list(range(100, 140)), [2]], 0, 1, 17)
    assert sum(w.extra["stop"] - w.extra["first"] for w in found) == 3
    assert sum(w.truncated for w in found) == 36
    assert 139 in found[0].ids
    with pytest.raises(DataError, match=r"data\.max_tokens=4 has no room"):
        windows([[1]], 0, 1, 4)


def labelled(words: int) -> Example:
    tags = bio([EntitySpan("LOC", k, k + 2) for k in range(0, words - 1, 3)], words)
    return {"tokens": (WORDS * words)[:words], "predicate": [], "tags": tags}


def test_labels_stand_beside_the_words_of_their_window(tokenizer: Any) -> None:
    task = TokenTagging(types=["LOC"], plain=False)
    example = labelled(60)
    found, told = task.encode(example, tokenizer, 24), []
    assert len(found) > 2
    for window in found:
        first, stop = window.extra["first"], window.extra["stop"]
        assert isinstance(window.label, list)
        assert len(window.label) == len(window.extra["ends"])
        assert {*window.label[:first], *window.label[stop:]} <= {IGNORED}
        told += window.label[first:stop]
    assert [task.tags[number] for number in told] == example["tags"]
    assert all(window.label is None for window in task.encode(example | {"tags": None}, tokenizer, 24))


def test_a_predicate_is_marked_where_it_stands(tokenizer: Any) -> None:
    task = TokenTagging(types=["ARG0"], plain=False)
    example = {"tokens": ["is", "good", "is", "bad"], "tags": None, "predicate": [2]}
    (marked,), (plain,) = (task.encode(e, tokenizer, 64) for e in (example, example | {"predicate": []}))
    assert tokenizer.decode(marked.ids[1:]) == " is good * is bad"
    assert tokenizer.decode(plain.ids[1:]) == " is good is bad"
    assert [marked.ids[end] for end in marked.extra["ends"]] == [plain.ids[end] for end in plain.extra["ends"]]


# --- the head -----------------------------------------------------------------------------------------------------


def batch(task: TokenTagging, tokenizer: Any, examples: list[Example], room: int = 100) -> PaddedBatch:
    return collate([item for example in examples for item in encode(task, example, tokenizer, room)])


@pytest.mark.parametrize("context", list(Context))
def test_what_a_word_sees(context: Context, backbone: Any) -> None:
    torch.manual_seed(0)
    task = TokenTagging(types=["LOC"], plain=False, context=context)
    head = task.head(backbone).eval()
    examples = [labelled(6), labelled(6) | {"tokens": [*WORDS[:5], "weather"]}]
    with torch.inference_mode():
        one, other = (np.array(head.predict(backbone, batch(task, backbone.tokenizer, [e]))[0]) for e in examples)
    changed = np.abs(one - other).max(1) > 1e-6
    assert changed[-1]
    assert changed[:-1].all() == (context is not Context.none), "the last word's change, seen by those before it"
    assert changed[:-1].any() == (context is not Context.none)


@pytest.mark.parametrize("context", list(Context))
def test_shorter_neighbours_change_nothing(context: Context, backbone: Any) -> None:
    task = TokenTagging(types=["LOC"], plain=False, context=context)
    head, examples = task.head(backbone).eval(), [labelled(2), labelled(9), labelled(5)]
    with torch.inference_mode():
        together = head.predict(backbone, batch(task, backbone.tokenizer, examples))
        for example, said in zip(examples, together, strict=True):
            (alone,) = head.predict(backbone, batch(task, backbone.tokenizer, [example]))
            np.testing.assert_allclose(said, alone, atol=1e-5)


# --- the task -----------------------------------------------------------------------------------------------------


def test_types_come_from_training_data_unless_given() -> None:
    rows = [{"id": "a.conll:1", "tags": ["I-PER", "O"]}, {"id": "a.conll:4", "tags": ["O", "S-LOC"]}]
    task, plain, given = TokenTagging(), TokenTagging(), TokenTagging(types=["PER", "LOC"], plain=False)
    task.prepare(rows)
    plain.prepare([{"id": "", "tags": ["VERB", "NOUN"]}])
    given.prepare([])
    assert (task.types, task.plain, task.tags) == (["LOC", "PER"], False, ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"])
    assert (plain.types, plain.plain, plain.tags) == (["NOUN", "VERB"], True, ["NOUN", "VERB"])
    assert given.types == ["PER", "LOC"]
    with pytest.raises(DataError, match="marks no span"):
        TokenTagging(plain=False).prepare([{"id": "", "tags": ["O"]}])
    with pytest.raises(DataError, match=r"a\.conll:9: tag 'PER' is neither"):
        TokenTagging().prepare([*rows, {"id": "a.conll:9", "tags": ["O", "PER"]}])
    with pytest.raises(UserError, match="must be different names"):
        TokenTagging(types=["A", "A"]).validate()


def test_what_can_not_be_used_is_refused() -> None:
    task = TokenTagging(types=["PER"], plain=False)
    with pytest.raises(DataError, match=r"'PRE' is not among the training data's types, PER\. Did you mean 'PER'\?"):
        task.check({"tokens": ["a"], "tags": ["B-PRE"], "predicate": []})
    with pytest.raises(DataError, match="predicate 1 is no position of its 1 tokens"):
        task.check({"tokens": ["a"], "tags": ["O"], "predicate": [1]})
    with pytest.raises(DataError, match="predicate 3 is no position of its 1 tokens"):
        task.encode({"tokens": ["a"], "predicate": [3]}, None, 9)


def test_a_prediction_is_the_spans_of_all_windows() -> None:
    task = TokenTagging(types=["LOC"], plain=False)
    sure = np.log(np.full((4, 3), 0.1) + 0.7 * np.eye(3)[[0, 1, 2, 2]])
    example = {"tokens": ["in", "New", "York", "City"]}
    said = task.prediction(example, [sure[:2].tolist(), sure[2:].tolist()])
    assert said.value == [{"type": "LOC", "start": 1, "end": 4, "text": "New York City", "score": 0.512}]
    assert said.score == pytest.approx(0.8)
    plain = TokenTagging(types=["N", "V"], plain=True)
    said = plain.prediction({"tokens": ["电", "影"]}, [np.log([[0.9, 0.1], [0.4, 0.6]]).tolist()])
    assert [(row["text"], row["type"], row["score"]) for row in said.value] == [("电", "N", 0.9), ("影", "V", 0.6)]
    assert task.prediction({"tokens": ["电", "影"]}, [sure[1:3].tolist()]).value[0]["text"] == "电影"


def test_a_run_on_conll_files_predicts_texts_tokens_and_files(tmp_path: Path) -> None:
    sample = TokenTagging().sample()
    given = small_config(tmp_path, task=TokenTagging(), trainer={"max_epochs": 1, "accelerator": "cpu"})
    files = Files(**{name: sample[name] for name in ("train", "validation", "test")}, limit=given.data.limit)
    run = train(replace(given, data=replace(files, max_tokens=24, batch_size=8)))  # some sentences need two windows
    assert run.task.types == ["DATE", "LOC", "ORG", "PER"]
    assert set(run.metrics["metrics"]) == {"f1", "precision", "recall", "f1_macro", "accuracy"}
    assert set(run.metrics["details"]["per_type"]) == set(run.task.types)
    rows = [{"tokens": "It's in Paris."}, {"tokens": ["It", "'s", "in", "Paris", "."]}, {"tokens": "北京" * 30}]
    said = list(run.predict(rows))
    assert said[0] == said[1]
    for prediction in said:
        json.dumps(prediction.value)
        assert 0 < (prediction.score or 0) <= 1


def test_the_sample_speaks_chinese_and_has_all_types(sample_rows: Any, assert_fit_for_use: Any) -> None:
    rows = sample_rows(TokenTagging())
    assert_fit_for_use(rows)
    for split in rows.values():
        assert {span.type for e in split for span in spans(e["tags"])} == {"DATE", "LOC", "ORG", "PER"}
        assert sum("\u4e00" <= e["tokens"][0][0] <= "\u9fff" for e in split) >= len(split) / 6
    assert isinstance(Config(task=TokenTagging()).data, Sample)
