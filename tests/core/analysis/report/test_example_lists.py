"""Which examples are listed, and what their cards hold."""

from gptask.analysis.compare.records import read_run
from gptask.analysis.report import example_lists as lists
from gptask.analysis.report.disagreements import find_flips
from gptask.analysis.report.example_cards import MAX_CHARACTERS, SHOWN_CHARACTERS, example_card, passage
from gptask.analysis.report.report_run import report_runs

from tests.support.run_folders import THREE_LABELS, hotel_reviews, write_chinese_run, write_review_run


def runs_of(*folders):
    return report_runs([read_run(folder) for folder in folders])[0]


def test_wrong_examples_are_listed_the_most_confident_first(tmp_path):
    worst, every = lists.example_lists(runs_of(write_review_run(tmp_path / "run", hotel_reviews(60))))
    assert {card.answers[0].state for card in worst.cards} == {"wrong"}
    confidences = [card.answers[0].confidence for card in worst.cards]
    assert confidences == sorted(confidences, reverse=True)
    assert len(every.cards) == 60
    assert every.title == "All examples"
    assert every.states == ["right", "wrong"]
    assert every.labels == THREE_LABELS


def test_a_long_list_is_limited_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "MAX_CARDS", 20)
    two = [write_review_run(tmp_path / name, hotel_reviews(80), seed=k) for k, name in enumerate("ab")]
    worst, sample = lists.example_lists(runs_of(*two))
    assert len(sample.cards) == 20
    assert {card.answers[0].run.letter for card in sample.cards} == {"A", "B"}
    assert sample.note == "20 of 160 examples; the others are in predictions.jsonl."
    assert sample.title == "An evenly spaced sample of all examples"
    assert len(worst.cards) == 20


def test_a_task_without_right_and_wrong_lists_the_worst_and_the_surprising(tmp_path):
    worst, surprising, every = lists.example_lists(runs_of(write_chinese_run(tmp_path / "run", 40)))
    values = [card.answers[0].value for card in worst.cards]
    assert values == sorted(values)
    assert len(worst.cards) == 20
    assert len(surprising.cards) == 10
    assert max(card.answers[0].value for card in surprising.cards) <= worst.cards[9].answers[0].value
    confidences = [card.answers[0].confidence for card in surprising.cards]
    assert confidences == sorted(confidences, reverse=True)
    assert len(every.cards) == 40


def test_the_lists_of_flips_share_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "MAX_FLIPS", 24)
    reviews = hotel_reviews(100)
    runs = runs_of(*[write_review_run(tmp_path / f"{k}", reviews, seed=k) for k in range(3)])
    flip_lists = lists.flip_lists(find_flips(runs[0], other) for other in runs[1:])
    assert [len(example_list.cards) for _, example_list in flip_lists] == [12, 12]
    first = flip_lists[0][1].cards[0]
    assert [answer.run.letter for answer in first.answers] == ["A", "B"]
    assert {answer.state for answer in first.answers} == {"right", "wrong"}
    assert first.change == ("better" if first.answers[1].state == "right" else "worse")


def test_a_card_shows_fields_references_and_the_prediction(tmp_path):
    (run,) = runs_of(write_review_run(tmp_path / "run"))
    card = example_card([(run, 3)])
    assert [name for name, _ in card.fields] == ["text"]
    assert [(name, text.head) for name, text in card.references] == [("label", run.rows[3]["references"]["label"])]
    (answer,) = card.answers
    assert answer.prediction.head == run.rows[3]["prediction"]
    probabilities = [probability for _, probability in answer.probabilities]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(probabilities) == 3


def test_a_long_text_is_folded_and_shortened():
    assert passage("short").rest == ""
    folded = passage("x" * (SHOWN_CHARACTERS + 100))
    assert (len(folded.head), len(folded.rest), folded.full_length) == (SHOWN_CHARACTERS, 100, 0)
    shortened = passage("x" * 5000)
    assert (len(shortened.head + shortened.rest), shortened.full_length) == (MAX_CHARACTERS, 5000)


def test_values_of_every_kind_become_text():
    assert passage(["a", "b"]).head == "a, b"
    assert passage(["a" * 50, "b"]).head == "a" * 50 + "\nb"
    assert passage({"start": 3}).head == '{"start": 3}'
    assert passage([]).head == ""
    assert passage(3.5).head == "3.5"
