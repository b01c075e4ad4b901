"""`gptask chat`: its line, a talk over a pipe, its commands, Ctrl-C."""

import io
import json
import os
import signal
from types import SimpleNamespace

import pytest
from gptask.cli import chat_repl as talks
from gptask.config.schemas import Full
from gptask.errors import UserError
from gptask.model.generation.chat import Chat, ChatOptions
from gptask.model.generation.generate import generate
from gptask.plugins.generation_options import GenerationOptions
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation


@pytest.fixture
def piped(monkeypatch):
    def say(*lines):
        monkeypatch.setattr(talks, "stdin", lambda: io.BytesIO("\n".join(lines).encode()))
        monkeypatch.setattr("sys.stdin", io.StringIO())

    return say


@pytest.fixture
def chat(backbone_of):
    def make(family="llama", context=128, **options):
        settings = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0} | options
        return Chat(backbone_of(family, context), ChatOptions(**settings))

    return make


def said(chat, *texts):
    return ["".join(chat.say(text)) for text in texts]


# --- the conversation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_each_answer_is_that_of_the_whole_conversation_read_anew(family, chat):
    talk, read = chat(family), []
    forward = talk.stream.backbone.body.forward
    talk.stream.backbone.body.forward = lambda **options: (
        read.append(options["input_ids"].shape[1]) or forward(**options)
    )
    for text in ("good film?", "very, this", "好看"):
        before = [*talk.messages, {"role": "user", "content": text}]
        ids = talk.template.turns(before).ids
        read.clear()
        (answer,) = said(talk, text)
        assert read[0] < len(ids) or len(before) == 1
        (fresh,) = generate(talk.stream.backbone, [ids], GenerationOptions(max_new_tokens=6, stop=talk.options.stop))
        assert answer == fresh.text.rstrip("\ufffd").lstrip()


def test_the_oldest_turns_go_where_the_context_ends(chat):
    talk = chat(context=64, system="be good")
    counts = []
    for text in ("the quick fox", "is the dog lazy", "good", "bad", "very good"):
        said(talk, text)
        counts.append(talk.dropped)
        assert talk.messages[0] == {"role": "system", "content": "be good"}
    assert sum(counts) > 0
    assert len(talk.template.turns(talk.messages).ids) <= 64
    kept = list(talk.messages)
    with pytest.raises(UserError, match="the model reads 64: shorten it"):
        said(talk, "the quick brown fox " * 30)
    assert talk.messages == kept


def test_what_is_stopped_stays_said(chat):
    talk = chat()
    pieces = talk.say("good")
    some = next(pieces) + next(pieces)
    pieces.close()
    assert [m["content"] for m in talk.messages] == ["good", *([some.strip()] if some.strip() else [])]
    said(talk, "film")
    assert talk.messages[-2] == {"role": "user", "content": "film"}


def test_raw_texts_are_continued_each_for_itself(chat):
    talk = chat(raw=True)
    first, second = said(talk, "the quick brown", "the quick brown")
    assert first == second
    (fresh,) = generate(talk.stream.backbone, [talk.stream.backbone.tokenizer("the quick brown")["input_ids"]],
                        GenerationOptions(max_new_tokens=6))  # fmt: skip
    assert first == fresh.text.rstrip("\ufffd").lstrip()


# --- the command line -------------------------------------------------------------------------------------------


def test_a_folder_is_talked_to_over_a_pipe(run_command, piped, tiny_model, tmp_path):
    options = ("max_new_tokens=4", "temperature=0")
    piped("good film?", "", "/system be good", "/save talk.jsonl", "again", "/save talk.jsonl", "/reset", "/exit", "no")
    ended = run_command("chat", str(tiny_model("llama")), *options)
    assert ended.code == 0
    assert len(ended.out.splitlines()) >= 2
    assert "has no chat template: turns are put to it as 'User: ...'" in ended.err
    saved = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert saved[0] == {"role": "system", "content": "be good"}
    assert [m["content"] for m in saved if m["role"] == "user"] == ["good film?", "again"]
    piped("good film?")
    assert run_command("chat", str(tiny_model("llama")), *options).out.strip() == saved[2]["content"]


def test_several_lines_between_fences_are_one_text(chat, piped):
    piped('"""one', "two", "", 'three"""', "four")
    assert list(talks._texts(talks._piped())) == ["one\ntwo\n\nthree", "four"]


def test_a_run_ends_its_texts_as_its_task_says(run_command, random_run, piped, monkeypatch):
    options = []
    monkeypatch.setattr(talks, "talk", lambda chat: options.append(chat.options) or 0)
    folder = str(random_run(Translation(), "llama", Full()).folder)
    assert run_command("chat", folder).code == run_command("chat", folder, "stop=[x]", "seed=4").code == 0
    assert [o.stop for o in options] == [["\n", "\nUser:"], ["x", "\nUser:"]]
    assert options[1].seed == 4


def test_what_can_not_be_talked_to_is_told(refused, random_run, tmp_path):
    assert "which writes no text" in refused(
        "chat", str(random_run(Sentiment(labels=["a", "b"]), "llama", Full()).folder)
    )
    assert "made from scratch: train it first" in refused("chat", "nano")
    assert "Did you mean 'smollm2'?" in refused("chat", "smolm2")
    assert "no run folder at" in refused("chat", str(tmp_path))
    assert "one model at a time" in refused("chat", "a", "b")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("temperatur=1", "Did you mean 'temperature'?"),
        ("temperature=hot", "temperature=hot: Value 'hot'"),
        ("temperature=-1", "temperature=-1.0 must be 0 or more"),
        ("top_p=2", "top_p=2.0 must be above 0"),
        ("num_beams=2", "no option 'num_beams'"),
        ("--temperature", "unrecognized arguments"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(option, message, refused, monkeypatch):
    monkeypatch.setattr("gptask.cli.commands.chat._backbone", lambda *_: pytest.fail("loaded"))
    assert message in refused("chat", option)


def test_a_system_message_needs_no_further_quotes(run_command, monkeypatch):
    seen = []
    monkeypatch.setattr("gptask.cli.commands.chat._backbone", lambda model, options: seen.append(options) or exit(0))
    run_command("chat", "system=You are terse, yes: [very]", "stop=[a,b c]", "temperature=0")
    assert seen[0].system == "You are terse, yes: [very]"
    assert seen[0].stop == ["a", "b c"]


def test_help_names_the_options(run_command):
    out = run_command("chat", "--help").out
    assert "temperature=0.7" in out
    assert "/save FILE" in out


# --- the terminal -----------------------------------------------------------------------------------------------


class Scripted:
    """A chat whose answers are given; ``press`` sends Ctrl-C behind so many pieces."""

    def __init__(self, press=0, dropped=0, full=False):
        self.press, self.dropped, self.full, self.closed = press, dropped, full, False
        self.options, self.messages, self.system = SimpleNamespace(max_new_tokens=5), [], None

    def say(self, text):
        try:
            for number in range(1, 5):
                yield f"{number} "
                if self.press and number >= self.press:
                    os.kill(os.getpid(), signal.SIGINT)
        finally:
            self.closed = True

    def reset(self):
        self.messages = []


def test_ctrl_c_stops_an_answer_and_the_next_one_leaves(capsys):
    chat, handler = Scripted(press=2), signal.getsignal(signal.SIGINT)
    talks.Talk(chat, terminal=True).answer("hi")
    assert capsys.readouterr() == ("1 2 3 \n", "[stopped]\n")
    assert chat.closed
    assert signal.getsignal(signal.SIGINT) is handler
    with talks.Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.pressed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_was_dropped_or_cut_is_said(capsys):
    talks.Talk(Scripted(dropped=2, full=True), terminal=False).answer("hi")
    err = capsys.readouterr().err
    assert "2 oldest messages are forgotten" in err
    assert "cut after 5 tokens" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sve x", "no command /sve.*Did you mean '/save'"),
        ("/save", "needs a file"),
        ("/save x.jsonl", "nothing was said yet"),
    ],
)
def test_a_wrong_command_is_forgiven_on_a_terminal_and_ends_a_pipe(line, message, monkeypatch, capsys):
    monkeypatch.setattr(talks, "_typed", lambda: iter([line, "hi"]))
    assert talks.Talk(Scripted(), terminal=True).run() == 0
    told = capsys.readouterr()
    assert told.out == "1 2 3 4 \n"
    monkeypatch.setattr(talks, "_piped", lambda: iter([line, "hi"]))
    with pytest.raises(UserError, match=message):
        talks.Talk(Scripted(), terminal=False).run()


def test_no_file_of_others_is_overwritten(tmp_path):
    talk = talks.Talk(Scripted(), terminal=True)
    talk.chat.messages = [{"role": "assistant", "content": "x"}]
    (tmp_path / "other").write_text("mine")
    with pytest.raises(UserError, match="exists; choose another"):
        talk.save(str(tmp_path / "other"))
    with pytest.raises(UserError, match="can't be written"):
        talk.save(str(tmp_path / "no" / "folder"))
    for _ in range(2):
        talk.save(str(tmp_path / "own"))


def test_broken_text_from_a_pipe_is_an_error(monkeypatch):
    monkeypatch.setattr(talks, "stdin", lambda: io.BytesIO(b"ok\n\xff\n"))
    with pytest.raises(UserError, match="<stdin>:2: byte 0xff"):
        list(talks._piped())
