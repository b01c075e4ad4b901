"""`gptask chat`: its command line, a conversation over a pipe, its commands, Ctrl-C."""

import io
import json
import os
import signal
from types import SimpleNamespace

import pytest
from gptask import Fast, Reference
from gptask.cli import chat_repl
from gptask.cli.chat_repl import ChatRepl, DeferredInterrupt
from gptask.config.schemas import Full, Lora
from gptask.errors import UserError
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation


@pytest.fixture
def piped(monkeypatch):
    def feed(*lines):
        monkeypatch.setattr(chat_repl, "stdin", lambda: io.BytesIO("\n".join(lines).encode()))
        monkeypatch.setattr("sys.stdin", io.StringIO())

    return feed


def test_a_model_folder_answers_a_pipe(run_command, piped, tiny_model, tmp_path):
    options = ("max_new_tokens=4", "temperature=0")
    piped("good film?", "", "/system be good", "/save talk.jsonl", "again", "/save talk.jsonl", "/reset", "/exit", "no")
    ended = run_command("chat", str(tiny_model("llama")), *options)
    assert ended.code == 0
    assert len(ended.out.splitlines()) >= 2
    assert "has no chat template: turns are written as 'User: ...'" in ended.err
    saved = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert saved[0] == {"role": "system", "content": "be good"}
    assert [m["content"] for m in saved if m["role"] == "user"] == ["good film?", "again"]
    piped("good film?")
    assert run_command("chat", str(tiny_model("llama")), *options).out.strip() == saved[2]["content"]


def test_control_characters_of_an_answer_are_visible_on_a_terminal_alone(monkeypatch, capsys):
    pieces = ["a\x1b", "[31mred", "\x9b2J\r\n"]
    chat = SimpleNamespace(say=lambda text: (piece for piece in pieces), dropped_messages=0, reached_limit=False)
    ChatRepl(chat, terminal=False).answer("hi")
    assert capsys.readouterr().out == "".join(pieces) + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    ChatRepl(chat, terminal=True).answer("hi")
    assert capsys.readouterr().out == "a\\u001b[31mred\\u009b2J\\u000d\n\n"


def test_the_lines_between_fences_are_one_text(chat, piped):
    piped('"""one', "two", "", 'three"""', "four")
    assert list(chat_repl._read_texts(chat_repl._pipe_lines())) == ["one\ntwo\n\nthree", "four"]


def test_the_answers_of_a_run_end_at_the_stop_texts_of_its_task(run_command, random_run, piped, monkeypatch):
    options = []
    monkeypatch.setattr(ChatRepl, "run", lambda repl: options.append(repl.chat.options) or 0)
    folder = str(random_run(Translation(), "llama", Full()).folder)
    assert run_command("chat", folder).code == run_command("chat", folder, "stop=[x]", "seed=4").code == 0
    assert [o.stop for o in options] == [["\n", "\nUser:"], ["x", "\nUser:"]]
    assert options[1].seed == 4


def test_models_that_cant_chat_are_refused(refused, random_run, tmp_path):
    assert "which generates no text" in refused(
        "chat", str(random_run(Sentiment(labels=["a", "b"]), "llama", Full()).folder)
    )
    assert "trained from scratch: train it first" in refused("chat", "nano")
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
        ("engine=fsat", "engine=fsat: unknown engine 'fsat'"),
        ("engine.pakcing=off", "Did you mean 'packing'?"),
        ("engin=fast", "Did you mean 'engine'?"),
        ("dtype=int8", "dtype=int8: expected auto, float32, bfloat16, int4, null. Did you mean 'int4'?"),
        ("--temperature", "unrecognized arguments"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(option, message, refused, monkeypatch):
    monkeypatch.setattr("gptask.cli.commands.chat._load_backbone", lambda *_: pytest.fail("loaded"))
    assert message in refused("chat", option)


def test_a_system_message_needs_no_quotes_of_hydras(run_command, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "gptask.cli.commands.chat._load_backbone", lambda model, options, *_: loaded.append(options) or exit(0)
    )
    run_command("chat", "system=You are terse, yes: [very]", "stop=[a,b c]", "temperature=0")
    assert loaded[0].system == "You are terse, yes: [very]"
    assert loaded[0].stop == ["a", "b c"]


def test_an_engine_is_chosen_by_option_or_environment(run_command, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "gptask.cli.commands.chat._load_backbone", lambda model, options, engine, _: loaded.append(engine) or exit(0)
    )
    monkeypatch.setenv("GPTASK_ENGINE", "fast,norm=off")
    for options in ([], ["engine=reference"], ["temperature=1", "engine.packing=off"]):
        run_command("chat", *options)
    assert loaded == [Fast(norm=False), Reference(), Fast(norm=False, packing=False)]


def test_a_run_and_a_bare_backbone_answer_in_int4(run_command, piped, tiny_model, random_run, needs_int4):
    for model in (random_run(Translation(), "llama", Lora(rank=2)).folder, tiny_model("gpt2")):
        piped("good film?")
        ended = run_command("chat", str(model), "max_new_tokens=4", "temperature=0", "dtype=int4")
        assert (ended.code, ended.configs) == (0, [])
        assert "; weights in int4" in ended.err
        assert ended.out.strip()


def test_help_lists_options_and_commands(run_command):
    out = run_command("chat", "--help").out
    assert "temperature=0.7" in out
    assert "engine.packing=off" in out
    assert "/save FILE" in out


# --- the terminal -----------------------------------------------------------------------------------------------


class Scripted:
    """A chat with fixed answers; Ctrl-C comes after ``press`` pieces."""

    def __init__(self, press=0, dropped=0, full=False):
        self.press, self.dropped_messages, self.reached_limit, self.closed = press, dropped, full, False
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


def test_ctrl_c_stops_an_answer_and_a_second_one_leaves(capsys):
    chat, handler = Scripted(press=2), signal.getsignal(signal.SIGINT)
    ChatRepl(chat, terminal=True).answer("hi")
    assert capsys.readouterr() == ("1 2 3 \n", "[stopped]\n")
    assert chat.closed
    assert signal.getsignal(signal.SIGINT) is handler
    with DeferredInterrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.pressed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


def test_dropped_messages_and_a_cut_answer_are_noted(capsys):
    ChatRepl(Scripted(dropped=2, full=True), terminal=False).answer("hi")
    err = capsys.readouterr().err
    assert "2 oldest messages are forgotten" in err
    assert "cut after max_new_tokens=5" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sve x", "unknown command /sve.*Did you mean '/save'"),
        ("/save", "needs a file"),
        ("/save x.jsonl", "there is nothing to save"),
    ],
)
def test_an_invalid_command_is_noted_on_a_terminal_and_ends_a_pipe(line, message, monkeypatch, capsys):
    monkeypatch.setattr(chat_repl, "_terminal_lines", lambda: iter([line, "hi"]))
    assert ChatRepl(Scripted(), terminal=True).run() == 0
    assert capsys.readouterr().out == "1 2 3 4 \n"
    monkeypatch.setattr(chat_repl, "_pipe_lines", lambda: iter([line, "hi"]))
    with pytest.raises(UserError, match=message):
        ChatRepl(Scripted(), terminal=False).run()


def test_only_files_of_the_same_conversation_are_overwritten(tmp_path):
    talk = ChatRepl(Scripted(), terminal=True)
    talk.chat.messages = [{"role": "assistant", "content": "x"}]
    (tmp_path / "other").write_text("mine")
    with pytest.raises(UserError, match="exists; choose another"):
        talk.save(str(tmp_path / "other"))
    with pytest.raises(UserError, match="can't be written"):
        talk.save(str(tmp_path / "no" / "folder"))
    for _ in range(2):
        talk.save(str(tmp_path / "saved.jsonl"))


def test_invalid_utf8_from_a_pipe_is_refused(monkeypatch):
    monkeypatch.setattr(chat_repl, "stdin", lambda: io.BytesIO(b"ok\n\xff\n"))
    with pytest.raises(UserError, match="<stdin>:2: byte 0xff"):
        list(chat_repl._pipe_lines())
