"""Which examples are listed, and what their cards hold."""

from gptask.analysis.compare.records import read
from gptask.analysis.report import example_lists as examples
from gptask.analysis.report.disagreements import flips
from gptask.analysis.report.example_cards import HEAD, LENGTH, card, passage
from gptask.analysis.report.report_run import entries

from tests.support.run_folders import THREE_LABELS, hotel_reviews, write_chinese_run, write_review_run


def good(*folders):
    return entries([read(folder) for folder in folders])[0]


def test_wrong_examples_are_listed_the_most_confident_first(tmp_path):
    worst, every = examples.listings(good(write_review_run(tmp_path / "run", hotel_reviews(60))))
    assert {card.answers[0].state for card in worst.cards} == {"wrong"}
    sure = [card.answers[0].confidence for card in worst.cards]
    assert sure == sorted(sure, reverse=True)
    assert len(every.cards) == 60
    assert every.title == "All examples"
    assert every.states == ["right", "wrong"]
    assert every.labels == THREE_LABELS


def test_lists_are_capped_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "CAP", 20)
    two = [write_review_run(tmp_path / name, hotel_reviews(80), seed=k) for k, name in enumerate("ab")]
    worst, sample = examples.listings(good(*two))
    assert len(sample.cards) == 20
    assert {card.answers[0].entry.tag for card in sample.cards} == {"A", "B"}
    assert sample.note == "20 of 160 examples; the others are in predictions.jsonl."
    assert sample.title == "A sample of all, evenly spaced"
    assert len(worst.cards) == 20


def test_a_task_without_right_and_wrong_lists_the_worst_and_the_surprising(tmp_path):
    worst, surprising, every = examples.listings(good(write_chinese_run(tmp_path / "run", 40)))
    values = [card.answers[0].value for card in worst.cards]
    assert values == sorted(values)
    assert len(worst.cards) == 20
    assert len(surprising.cards) == 10
    assert max(card.answers[0].value for card in surprising.cards) <= worst.cards[9].answers[0].value
    sure = [card.answers[0].confidence for card in surprising.cards]
    assert sure == sorted(sure, reverse=True)
    assert len(every.cards) == 40


def test_flips_share_a_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "FLIPS", 24)
    reviews = hotel_reviews(100)
    runs = good(*[write_review_run(tmp_path / f"{k}", reviews, seed=k) for k in range(3)])
    lists = examples.flipped(flips(runs[0], other) for other in runs[1:])
    assert [len(listing.cards) for _, listing in lists] == [12, 12]
    first = lists[0][1].cards[0]
    assert [answer.entry.tag for answer in first.answers] == ["A", "B"]
    assert {answer.state for answer in first.answers} == {"right", "wrong"}
    assert first.change == ("better" if first.answers[1].state == "right" else "worse")


def test_a_card_shows_fields_as_they_come(tmp_path):
    (entry,) = good(write_review_run(tmp_path / "run"))
    found = card([(entry, 3)])
    assert [name for name, _ in found.fields] == ["text"]
    assert [(name, text.head) for name, text in found.references] == [("label", entry.rows[3]["references"]["label"])]
    (answer,) = found.answers
    assert answer.said.head == entry.rows[3]["prediction"]
    chances = [chance for _, chance in answer.probabilities]
    assert chances == sorted(chances, reverse=True)
    assert len(chances) == 3


def test_long_texts_are_folded_and_cut():
    assert passage("short").rest == ""
    folded = passage("x" * (HEAD + 100))
    assert (len(folded.head), len(folded.rest), folded.cut) == (HEAD, 100, 0)
    cut = passage("x" * 5000)
    assert (len(cut.head + cut.rest), cut.cut) == (LENGTH, 5000)


def test_values_of_every_kind_become_text():
    assert passage(["a", "b"]).head == "a, b"
    assert passage(["a" * 50, "b"]).head == "a" * 50 + "\nb"
    assert passage({"start": 3}).head == '{"start": 3}'
    assert passage([]).head == ""
    assert passage(3.5).head == "3.5"
