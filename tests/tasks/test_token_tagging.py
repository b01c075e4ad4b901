"""The task token_tagging: spans against seqeval, metrics, windows over words, the head, a run on CoNLL files."""

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
from gptask.config.overrides import parse_override
from gptask.config.schemas import Files, Sample
from gptask.data.columns import Columns
from gptask.data.datamodule import PaddedBatch, collate, encode
from gptask.data.rows import Row
from gptask.plugins.metric import score_all
from gptask.plugins.types import IGNORED, Example
from gptask_tasks.token_tagging import Context, TokenTagging
from gptask_tasks.token_tagging.metrics import MicroScore
from gptask_tasks.token_tagging.spans import EntitySpan, are_plain, bio, decode_spans, spans
from gptask_tasks.token_tagging.windows import windows, word_ids
from seqeval.metrics.sequence_labeling import get_entities

from tests.support.configs import small_config

TYPES = ["LOC", "ORG", "PER"]
WORDS = ["the", "film", "is", "good", "in", "Paris", "电", "影", "refunds", "!"]


def tagged(generator: random.Random, prefixes: str, words: int | None = None) -> list[str]:
    """Random tags, consistent or not."""
    drawn = [generator.choice(["O", *(f"{p}-{t}" for p in prefixes for t in TYPES)]) for _ in range(words or 12)]
    return drawn if words else drawn[: generator.randint(1, 12)]


# --- tags and spans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES", "IES"])
def test_spans_equal_those_of_seqeval(prefixes: str) -> None:
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
    marked = spans(tags.split())
    assert marked == [EntitySpan("A", 0, 2), EntitySpan("A", 2, 3), EntitySpan("B", 4, 5)]
    assert bio(marked, 5) == ["B-A", "I-A", "B-A", "O", "B-B"]


def test_plain_tags_differ_from_tags_that_mark_spans() -> None:
    assert are_plain(["NOUN", "-LRB-", "PRP$", "O", "I"])
    assert not are_plain(["O", "I-PER"])
    assert spans(["NOUN", "NOUN"], plain=True) == [EntitySpan("NOUN", 0, 1), EntitySpan("NOUN", 1, 2)]
    assert spans(["B-R-ARG0", "I-R-ARG0"]) == [EntitySpan("R-ARG0", 0, 2)]
    with pytest.raises(DataError, match="tag 'PER' is neither O nor a type behind B-, I-"):
        spans(["O", "PER"])


@pytest.mark.parametrize("prefixes", ["BIO", "IO", "BIESO", "IESO"])
def test_tags_without_a_type_mark_the_spans_that_seqeval_sees(prefixes: str) -> None:
    generator = random.Random(prefixes)
    for _ in range(300):
        tags = generator.choices(prefixes, k=generator.randint(1, 12))
        assert spans(tags) == [(kind, start, end + 1) for kind, start, end in get_entities(tags)], tags


def test_tags_without_a_type_make_one_type_and_equal_seqevals_f1() -> None:
    true = [["B", "I", "O", "B", "B", "I", "O"], ["O", "I", "I", "O", "B"]]
    predicted = [["B", "I", "O", "B", "I", "I", "O"], ["O", "I", "O", "O", "B"]]
    chosen = TokenTagging().prepare({"id": "", "tags": tags} for tags in true)
    assert chosen == {"types": ["_"], "plain": False}
    task = TokenTagging(**chosen)
    assert task.tags == ["O", "B-_", "I-_"]
    predictions = [Prediction([span._asdict() for span in spans(tags)]) for tags in predicted]
    scores, _ = score_all(task.metrics(), predictions, [{"tags": tags} for tags in true])
    values = {score.name: score.value for score in scores}
    assert values["f1"] == pytest.approx(100 * reference.f1_score(true, predicted))
    assert values["f1"] == pytest.approx(100 * 2 * 2 / (4 + 5))  # of 4 and 5 spans, 2 are the same
    assert reference.f1_score(true, predicted) < 1
    segments = TokenTagging().prepare([{"id": "", "tags": list("BMESBE")}])  # words of a Chinese text
    assert segments == {"types": ["_"], "plain": False}


@pytest.mark.parametrize(
    ("tags", "labels"),
    [
        ("O PER-B PER-I LOC-B", {"O": "O", "PER-B": "B-PER", "PER-I": "I-PER", "LOC-B": "B-LOC"}),
        ("O B_PER I_PER", {"O": "O", "B_PER": "B-PER", "I_PER": "I-PER"}),
        ("o b-PER i-PER", {"o": "O", "b-PER": "B-PER", "i-PER": "I-PER"}),
        ("O per_b per_i", {"O": "O", "per_b": "B-per", "per_i": "I-per"}),
        ("o b i", {"o": "O", "b": "B", "i": "I"}),
        ("O B_R-ARG0 B_V", {"O": "O", "B_R-ARG0": "B-R-ARG0", "B_V": "B-V"}),
    ],
)
def test_spans_in_another_form_are_refused_with_the_option_that_reads_them(tags: str, labels: dict[str, str]) -> None:
    rows = [{"id": "", "tags": tags.split()}]
    with pytest.raises(
        DataError, match=r"mark spans, but not as B-TYPE, I-TYPE and O: map them, 'data\.labels="
    ) as caught:
        TokenTagging().prepare(rows)
    command = str(caught.value).split("'")[1]
    assert parse_override(command).value() == labels
    mapped = TokenTagging().prepare([{"id": "", "tags": [labels[tag] for tag in tags.split()]}])
    assert mapped["plain"] is False
    assert TokenTagging(plain=True).prepare(rows) == {"types": sorted(tags.split()), "plain": True}


@pytest.mark.parametrize("tags", ["0 1 2", "0 3 -100"])
def test_numbers_without_names_are_refused(tags: str) -> None:
    rows = [{"id": "", "tags": tags.split()}]
    with pytest.raises(
        DataError, match=r"the tags are numbers \(.*0.*data\.labels=\[O,B-PER,I-PER,\.\.\.\].*task\.plain=true"
    ):
        TokenTagging().prepare(rows)
    assert TokenTagging(plain=True).prepare(rows)["plain"] is True


@pytest.mark.parametrize(
    "tags",
    [
        "NN VBZ -LRB- PRP$ . `` O",
        "NOUN VERB ADP O",
        "NN-TL FW-IN O",  # Brown
        "A B O AB",  # blood groups
        "S M L XL",
        "N V I",
        "LOC PER O",  # a class a word, without prefixes: nothing to convert
        "X_B Y O",
    ],
)
def test_plain_tags_stay_plain(tags: str) -> None:
    assert TokenTagging().prepare([{"id": "", "tags": tags.split()}]) == {"types": sorted(tags.split()), "plain": True}


def test_tags_that_teach_nothing_or_differ_in_form_are_refused() -> None:
    with pytest.raises(DataError, match="marks no span: every tag is O"):
        TokenTagging().prepare([{"id": "", "tags": ["O", "O"]}])
    with pytest.raises(
        DataError, match=r"a\.conll:3: tag 'I' has no type, but others have one; data\.labels maps tags"
    ):
        TokenTagging().prepare([{"id": "a.conll:1", "tags": ["B-PER"]}, {"id": "a.conll:3", "tags": ["I"]}])
    with pytest.raises(DataError, match=r"tag 'I' has no type; data\.labels maps it: B to B-PER"):
        TokenTagging(types=["PER"], plain=False).check({"tokens": ["a"], "tags": ["I"]})


def test_a_word_a_row_without_a_column_that_tells_sentences_apart_is_refused() -> None:
    words = [{"id": "", "tags": [tag]} for tag in ["O", "B-PER"] * 5]
    with pytest.raises(DataError, match=r"each of the 10 rows .* one token.*data\.columns\.sentence=<column>"):
        TokenTagging().prepare(words)
    assert TokenTagging().prepare([*words, {"id": "", "tags": ["O", "O"]}])["types"] == ["PER"]
    assert TokenTagging().prepare(words[:9])["types"] == ["PER"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"text": "Ada met Bob", "entities": [[0, 3, "PER"]]}, {"tokens": "text"}),  # spaCy, doccano
        ({"text": "Ada met Bob", "spans": [{"start": 0, "end": 3, "label": "PER"}]}, {"tokens": "text"}),
        ({"text": "Ada met Bob", "entities": [[0, 3, "PER"]]}, {"tokens": "text", "tags": "entities"}),
        ({"text": "Ada", "tags": [{"start": 0, "end": 3, "label": "PER"}]}, {"tokens": "text"}),
        ({"text": "Ada", "tags": {"start": [0], "end": [3], "label": ["PER"]}}, {"tokens": "text"}),
    ],
)
def test_spans_of_characters_are_refused_with_the_way_to_convert_them(row: Any, columns: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"token; spans of characters are converted by spacy\.training") as caught:
        Columns(TokenTagging(), Files(columns=columns)).example(Row(1, row))
    assert "name one by a path" not in str(caught.value), "tags.start are no tags"


def test_decoding_finds_the_likeliest_of_all_consistent_sequences() -> None:
    tags = TokenTagging(types=["A", "B"], plain=False).tags
    generator = np.random.default_rng(0)
    inconsistent = 0  # sequences of the likeliest tags, word by word
    for words in (1, 2, 3, 4):
        for _ in range(15):
            scores = np.log(generator.dirichlet(np.full(len(tags), 0.5), words))
            paths = itertools.product(range(len(tags)), repeat=words)
            consistent = [path for path in paths if bio(spans(named := [tags[k] for k in path]), words) == named]
            best = max(consistent, key=lambda path: sum(row[k] for row, k in zip(scores, path, strict=True)))
            assert decode_spans(scores, tags) == list(best)
            inconsistent += list(best) != scores.argmax(1).tolist()
    assert inconsistent > 5, "the constraint is hardly tested"


# --- metrics ------------------------------------------------------------------------------------------------------


def prediction_of(tags: list[str], plain: bool = False) -> Prediction:
    return Prediction([span._asdict() | {"score": 1.0} for span in spans(tags, plain)])


@pytest.fixture(params=[0, 1], ids=["BIO", "IO"])
def scored(request: Any) -> tuple[list[list[str]], list[list[str]]]:
    """True tags, as a file may have them, and predicted ones (consistent, half of them right)."""
    generator = random.Random(request.param)
    true = [tagged(generator, "BI" if request.param else "I") for _ in range(80)]
    guesses = [t if generator.random() < 0.5 else tagged(generator, "BI", len(t)) for t in true]
    return true, [bio(spans(tags), len(tags)) for tags in guesses]


def test_aggregates_equal_seqeval(scored: Any) -> None:
    true, predicted = scored
    task = TokenTagging(types=TYPES, plain=False)
    predictions, examples = [prediction_of(tags) for tags in predicted], [{"tags": tags} for tags in true]
    scores, rows = score_all(task.metrics(), predictions, examples)
    values = {score.name: score.value for score in scores}
    for name in ("f1", "precision", "recall"):
        score = getattr(reference, f"{name}_score")
        assert values[name] == pytest.approx(100 * score(true, predicted, average="micro"))
    assert values["f1_macro"] == pytest.approx(100 * reference.f1_score(true, predicted, average="macro"))
    true_bio = [bio(spans(tags), len(tags)) for tags in true]
    assert values["accuracy"] == pytest.approx(100 * reference.accuracy_score(true_bio, predicted))
    assert 0 < values["f1"] < 100
    assert all(score.interval[0] < score.value < score.interval[1] for score in scores)
    assert len(rows[0]["f1"]) == 3
    assert len(rows[0]["f1_macro"]) == 9


def test_details_equal_seqevals_report(scored: Any) -> None:
    true, predicted = scored
    task = TokenTagging(types=TYPES, plain=False)
    predictions, examples = [prediction_of(tags) for tags in predicted], [{"tags": tags} for tags in true]
    table = task.details(predictions, examples)["per_type"]
    report = reference.classification_report(true, predicted, output_dict=True)
    for name in TYPES:
        expected = {k: 100 * report[name][k] for k in ("precision", "recall")} | {"f1": 100 * report[name]["f1-score"]}
        assert table[name] == {k: pytest.approx(v, abs=0.01) for k, v in expected.items()} | {
            "support": report[name]["support"]
        }
    json.dumps(table)


def test_types_that_do_not_occur_are_left_out_of_the_mean() -> None:
    true, predicted = [["B-LOC", "O"], ["O", "O"]], [["B-LOC", "O"], ["B-PER", "O"]]
    predictions, examples = [prediction_of(tags) for tags in predicted], [{"tags": tags} for tags in true]
    scores, _ = score_all(TokenTagging(types=TYPES, plain=False).metrics(), predictions, examples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scores[3].value == pytest.approx(100 * reference.f1_score(true, predicted, average="macro"))
    f1 = MicroScore("f1", TYPES, False)
    assert f1.aggregate(np.array([f1.statistics(Prediction([]), {"tags": ["O"]})])) == 0


def test_plain_tags_are_scored_by_word() -> None:
    task = TokenTagging(types=["NOUN", "VERB"], plain=True)
    prediction, example = prediction_of(["NOUN", "NOUN", "VERB"], True), {"tags": ["NOUN", "VERB", "VERB"]}
    scores, _ = score_all(task.metrics(), [prediction], [example])
    assert [score.name for score in scores] == ["accuracy", "f1_macro"]
    assert [score.value for score in scores] == pytest.approx([200 / 3, 200 / 3])


# --- words to tokens ----------------------------------------------------------------------------------------------


def test_words_are_tokenized_apart(tokenizer: Any) -> None:
    texts = [tokenizer.decode(ids) for ids in word_ids(WORDS, [1], tokenizer)]
    assert texts == [" the", " * film", " is", " good", " in", " Paris", "电", "影", "refunds", " !"]
    assert sum(map(len, word_ids(["电", "影"], [], tokenizer))) >= 2, "no token belongs to two words"


@pytest.mark.parametrize(("words", "room", "copies"), [(1, 12, 1), (7, 64, 1), (90, 24, 1), (90, 48, 2), (200, 30, 1)])
def test_windows_predict_every_word_once(words: int, room: int, copies: int) -> None:
    ids = [[10 * k + n for n in range(1 + k % 3)] for k in range(words)]
    encoded, predicted_ids = windows(ids, 9999, copies, room), []
    for window in encoded:
        assert len(window.ids) <= room
        ends, first, stop = (window.extra[name] for name in ("ends", "first", "stop"))
        last_ids = [window.ids[end] for end in ends]
        half = len(window.ids) // copies
        assert window.ids[:half] * copies == window.ids
        assert all(end >= half * (copies - 1) for end in ends), "the last copy is read"
        predicted_ids += last_ids[first:stop]
        assert not window.truncated
    assert predicted_ids == [word[-1] for word in ids]
    for window in encoded[1:]:
        assert window.extra["first"] > 0, "a later window reads what stands before its words"
    for window in encoded[:-1]:
        assert window.extra["stop"] < len(window.extra["ends"])


def test_a_word_longer_than_a_window_is_cut_and_counted() -> None:
    encoded = windows([[1], list(range(100, 140)), [2]], 0, 1, 17)
    assert sum(w.extra["stop"] - w.extra["first"] for w in encoded) == 3
    assert sum(w.truncated for w in encoded) == 36
    assert 139 in encoded[0].ids
    with pytest.raises(DataError, match=r"data\.max_tokens=4 has no room"):
        windows([[1]], 0, 1, 4)


def labelled(words: int) -> Example:
    tags = bio([EntitySpan("LOC", k, k + 2) for k in range(0, words - 1, 3)], words)
    return {"tokens": (WORDS * words)[:words], "predicate": [], "tags": tags}


def test_a_window_has_labels_for_the_words_it_predicts(tokenizer: Any) -> None:
    task = TokenTagging(types=["LOC"], plain=False)
    example = labelled(60)
    encoded, indices = task.encode(example, tokenizer, 24), []
    assert len(encoded) > 2
    for window in encoded:
        first, stop = window.extra["first"], window.extra["stop"]
        assert isinstance(window.label, list)
        assert len(window.label) == len(window.extra["ends"])
        assert {*window.label[:first], *window.label[stop:]} <= {IGNORED}
        indices += window.label[first:stop]
    assert [task.tags[index] for index in indices] == example["tags"]
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


def outputs(head: Any, batch: PaddedBatch) -> list[Any]:
    return head.predict(head.backbone.hidden(batch.input_ids, batch.lengths), batch)


@pytest.mark.parametrize("context", list(Context))
def test_a_word_sees_what_follows_it_unless_the_context_is_none(context: Context, backbone: Any) -> None:
    torch.manual_seed(0)
    task = TokenTagging(types=["LOC"], plain=False, context=context)
    head = task.head(backbone).eval()
    examples = [labelled(6), labelled(6) | {"tokens": [*WORDS[:5], "weather"]}]
    with torch.inference_mode():
        one, other = (np.array(outputs(head, batch(task, backbone.tokenizer, [e]))[0]) for e in examples)
    changed = np.abs(one - other).max(1) > 1e-6
    assert changed[-1]
    assert changed[:-1].all() == (context is not Context.none), "the last word's change, seen by those before it"
    assert changed[:-1].any() == (context is not Context.none)


@pytest.mark.parametrize("context", list(Context))
def test_shorter_sequences_in_a_batch_change_nothing(context: Context, backbone: Any) -> None:
    task = TokenTagging(types=["LOC"], plain=False, context=context)
    head, examples = task.head(backbone).eval(), [labelled(2), labelled(9), labelled(5)]
    with torch.inference_mode():
        together = outputs(head, batch(task, backbone.tokenizer, examples))
        for example, in_batch in zip(examples, together, strict=True):
            (alone,) = outputs(head, batch(task, backbone.tokenizer, [example]))
            np.testing.assert_allclose(in_batch, alone, atol=1e-5)


# --- the task -----------------------------------------------------------------------------------------------------


def test_types_come_from_training_data_unless_given() -> None:
    rows = [{"id": "a.conll:1", "tags": ["I-PER", "O"]}, {"id": "a.conll:4", "tags": ["O", "S-LOC"]}]
    spans, plain = TokenTagging().prepare(rows), TokenTagging().prepare([{"id": "", "tags": ["VERB", "NOUN"]}])
    assert spans == {"types": ["LOC", "PER"], "plain": False}
    assert TokenTagging(**spans).tags == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert plain == {"types": ["NOUN", "VERB"], "plain": True}
    assert TokenTagging(**plain).tags == ["NOUN", "VERB"]
    assert TokenTagging(types=["PER", "LOC"]).prepare(rows) == {"types": ["PER", "LOC"], "plain": False}
    assert TokenTagging(types=["PER", "LOC"], plain=False).prepare([]) == {}
    with pytest.raises(DataError, match="marks no span"):
        TokenTagging(plain=False).prepare([{"id": "", "tags": ["O"]}])
    with pytest.raises(DataError, match=r"a\.conll:9: tag 'PER' is neither"):
        TokenTagging().prepare([*rows, {"id": "a.conll:9", "tags": ["O", "PER"]}])
    with pytest.raises(UserError, match="must be different names"):
        TokenTagging(types=["A", "A"]).validate()


def test_unknown_types_and_predicates_outside_the_sentence_are_refused() -> None:
    task = TokenTagging(types=["PER"], plain=False)
    with pytest.raises(DataError, match=r"'PRE' is not among the training data's types, PER\. Did you mean 'PER'\?"):
        task.check({"tokens": ["a"], "tags": ["B-PRE"], "predicate": []})
    with pytest.raises(DataError, match="predicate 1 is no position of its 1 tokens"):
        task.check({"tokens": ["a"], "tags": ["O"], "predicate": [1]})
    with pytest.raises(DataError, match="predicate 3 is no position of its 1 tokens") as caught:
        task.encode({"tokens": ["a"], "predicate": [3]}, None, 9)
    assert caught.value.field == "predicate"


def test_a_prediction_joins_the_spans_of_all_windows() -> None:
    task = TokenTagging(types=["LOC"], plain=False)
    scores = np.log(np.full((4, 3), 0.1) + 0.7 * np.eye(3)[[0, 1, 2, 2]])
    example = {"tokens": ["in", "New", "York", "City"]}
    prediction = task.prediction(example, [scores[:2].tolist(), scores[2:].tolist()])
    assert prediction.value == [{"type": "LOC", "start": 1, "end": 4, "text": "New York City", "score": 0.512}]
    assert prediction.score == pytest.approx(0.8)
    plain = TokenTagging(types=["N", "V"], plain=True)
    prediction = plain.prediction({"tokens": ["电", "影"]}, [np.log([[0.9, 0.1], [0.4, 0.6]]).tolist()])
    rows = [(row["text"], row["type"], row["score"]) for row in prediction.value]
    assert rows == [("电", "N", 0.9), ("影", "V", 0.6)]
    assert task.prediction({"tokens": ["电", "影"]}, [scores[1:3].tolist()]).value[0]["text"] == "电影"


def test_a_run_on_conll_files_predicts_texts_tokens_and_files(tmp_path: Path) -> None:
    sample = TokenTagging().sample()
    config = small_config(tmp_path, task=TokenTagging(), trainer={"max_epochs": 1, "accelerator": "cpu"})
    files = Files(**{name: sample[name] for name in ("train", "validation", "test")}, limit=config.data.limit)
    run = train(replace(config, data=replace(files, max_tokens=24, batch_size=8)))  # some sentences need two windows
    assert run.task.types == ["DATE", "LOC", "ORG", "PER"]
    assert set(run.metrics["metrics"]) == {"f1", "precision", "recall", "f1_macro", "accuracy"}
    assert set(run.metrics["details"]["per_type"]) == set(run.task.types)
    rows = [{"tokens": "It's in Paris."}, {"tokens": ["It", "'s", "in", "Paris", "."]}, {"tokens": "北京" * 30}]
    predictions = list(run.predict(rows))
    assert predictions[0].value == predictions[1].value
    assert predictions[0].score == pytest.approx(predictions[1].score, abs=1e-6)  # they may be in different batches
    for prediction in predictions:
        json.dumps(prediction.value)
        assert 0 < (prediction.score or 0) <= 1


def test_the_sample_has_all_types_and_a_sixth_of_it_is_chinese(sample_rows: Any, assert_fit_for_use: Any) -> None:
    rows = sample_rows(TokenTagging())
    assert_fit_for_use(rows)
    for split in rows.values():
        assert {span.type for e in split for span in spans(e["tags"])} == {"DATE", "LOC", "ORG", "PER"}
        assert sum("\u4e00" <= e["tokens"][0][0] <= "\u9fff" for e in split) >= len(split) / 6
    assert isinstance(Config(task=TokenTagging()).data, Sample)
