"""`gptask explain` on files: what it reads and writes, where it goes on, what it says of bad rows."""

import io
import json

import pytest
from gptask import DataError, UserError
from gptask.analysis.explain import explain_file as module
from gptask.analysis.explain.explain_file import explain_file
from gptask.analysis.explain.explanation import Explanation, Faithfulness, read_lines
from gptask.config.explain_options import Explain, ExplainMethod
from gptask.config.schemas import BadRowPolicy, Files, Lora
from gptask_tasks.sentiment import Sentiment

TEXTS = ["a good film", "the lazy dog is bad", "is it good or bad?", "it is very good"]


@pytest.fixture(scope="module")
def folder(random_run):
    return random_run(Sentiment(labels=["bad", "good"]), "llama", Lora(rank=2, top=1.0)).folder


@pytest.fixture
def options(folder, tmp_path, monkeypatch):
    """``options(output=...)``: those of a call on texts.txt in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")

    def make(**changes):
        values = {"run": str(folder), "input": "texts.txt", "output": "why.jsonl", "method": ExplainMethod.occlusion}
        return Explain(**values | {"data": Files(max_tokens=96)} | changes)

    return make


def lines_of(path):
    with open(path, encoding="utf-8") as lines:
        return list(read_lines(lines))


def test_a_line_for_each_row_and_one_for_the_method(options):
    summary = explain_file(options())
    *explanations, last = lines_of("why.jsonl")
    assert [explanation.fields["text"] for explanation in explanations] == TEXTS
    assert isinstance(last, Faithfulness)
    assert (last.method, last.n, last.sentence) == ("occlusion", 4, summary.sentence)
    assert ("no better than random" in last.sentence) == (not last.is_better)


def test_every_format_that_predict_reads(options, tmp_path):
    (tmp_path / "rows.csv").write_text("review,stars\n" + "".join(f"{text},5\n" for text in TEXTS[:2]))
    explain_file(options(input="rows.csv", data=Files(columns={"text": "review"}, max_tokens=96)))
    assert [line.fields["text"] for line in lines_of("why.jsonl")[:-1]] == TEXTS[:2]


def test_standard_input_and_output(options, capsys, monkeypatch):
    monkeypatch.setattr(module, "stdin", lambda: io.BytesIO(f"{TEXTS[0]}\n\n{TEXTS[1]}\n".encode()))
    explain_file(options(input="-", output="-"))
    *explanations, last = read_lines(capsys.readouterr().out.splitlines())
    assert [explanation.fields["text"] for explanation in explanations] == TEXTS[:2]
    assert last.n == 2


def test_a_stopped_command_goes_on_where_it_ended(options, monkeypatch):
    from gptask.analysis.explain.explainer import Explainer
    from gptask.runs import part_file

    explain_file(options(output="whole.jsonl"))
    explain, seen = Explainer.explain, []

    def stopped(explainer, entry, reference=None):
        seen.append(entry.row.number)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return explain(explainer, entry, reference)

    monkeypatch.setattr(Explainer, "explain", stopped)
    monkeypatch.setattr(part_file, "COMMIT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        explain_file(options())
    explain_file(options())
    assert seen == [1, 2, 3, 3, 4]
    with open("why.jsonl") as resumed, open("whole.jsonl") as whole:
        assert resumed.read() == whole.read()


def test_other_options_do_not_go_on(options, monkeypatch):
    from gptask.analysis.explain.explainer import Explainer

    explain, seen = Explainer.explain, []

    def stopped(explainer, entry, reference=None):
        seen.append(entry.row.number)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return explain(explainer, entry, reference)

    monkeypatch.setattr(Explainer, "explain", stopped)
    with pytest.raises(KeyboardInterrupt):
        explain_file(options())
    explain_file(options(against="good"))
    assert seen == [1, 2, 1, 2, 3, 4]
    assert {entry.against for line in lines_of("why.jsonl")[:-1] for entry in line.maps} == {"good"}


def test_a_bad_row_is_named_or_left_out(options, tmp_path, caplog):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ({"text": TEXTS[0]}, {"txt": "no"}, {"text": ""}, {"text": TEXTS[1]}))
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*text.*data\.on_bad=skip leaves such rows out"):
        explain_file(options(input="rows.jsonl"))
    caplog.set_level("INFO")
    explain_file(options(input="rows.jsonl", data=Files(max_tokens=96, on_bad=BadRowPolicy.skip)))
    assert [line.fields["text"] for line in lines_of("why.jsonl")[:-1]] == TEXTS[:2]
    assert "2 rows are explained in why.jsonl (1 bad, 1 blank left out)" in caplog.text
    assert "left out: rows.jsonl:2" in caplog.text


def test_attention_is_called_no_reason(options, caplog):
    explain_file(options(method=ExplainMethod.attention))
    assert "it is no reason for a prediction" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "why.csv"}, r"output=why\.csv: explain writes \.html and \.jsonl"),
        ({"input": "texts.jsonl", "output": "texts.jsonl"}, "is the input"),
        ({"input": "text.txt"}, r"text\.txt"),
        ({"steps": 32}, "steps=32 is for method=ig, not for method=occlusion"),
        ({"steps": "many", "method": ExplainMethod.ig}, "steps=many must be auto or a whole number from 2 on"),
        ({"steps": True, "method": ExplainMethod.ig}, "steps=True must be auto"),
        ({"places": 0}, "places=0 must be at least 1"),
        ({"other_classes": -1}, "other_classes=-1 must be at least 0"),
        ({"against": "goood"}, "against=goood is none of the run's classes: bad, good"),
    ],
)
def test_wrong_options_are_refused(changes, message, options, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "good"}\n')
    with pytest.raises(UserError, match=message):
        explain_file(options(**changes))
    assert not (tmp_path / "why.jsonl").exists()


def test_a_line_is_read_back_as_it_was_written(options):
    explain_file(options(attention_maps=True, output="why.jsonl"))
    with open("why.jsonl", encoding="utf-8") as lines:
        texts = lines.readlines()
    for text in texts[:-1]:
        explanation = Explanation.from_json(text)
        assert explanation.to_json() + "\n" == text
        assert explanation.attention.weights.shape[2:] == (len(explanation.words),) * 2
