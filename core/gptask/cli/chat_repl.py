"""The read-eval loop of `gptask chat`, on a terminal or over a pipe: a text in, an answer out as it is generated."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.cli.output import write_error, write_out
from gptask.data.rows import stdin
from gptask.errors import UserError, listing, nearest, real_path, user_path
from gptask.runs.atomic_write import write_text

if TYPE_CHECKING:
    from gptask.model.generation.chat import Chat

COMMANDS = """/reset          forget the conversation
/system [TEXT]  show the system message, or set another
/save FILE      write the conversation as a line of JSON ({"messages": [...]})
/exit           leave (so does Ctrl-D)
\"\"\"             begins a text of several lines, and ends it
Ctrl-C stops an answer; pressed again, or where there is none, it leaves."""
FENCE = '"""'
COMMAND = re.compile(r"/(?P<name>[a-z]*)(?:\s+(?P<argument>.*))?", re.DOTALL)


class ChatRepl:
    """Reads texts and commands until the input ends or /exit.

    A `UserError` is shown on a terminal, where the user can try again; over a pipe it is raised.
    """

    def __init__(self, chat: Chat, terminal: bool) -> None:
        self.chat, self.terminal = chat, terminal
        self.saved: set[Path] = set()  # files of this conversation, which /save may overwrite
        self.commands = {"reset": self.reset, "system": self.system, "save": self.save, "help": self.help}

    def run(self) -> int:
        """Answer text by text; return the exit code."""
        for text in _read_texts(_terminal_lines() if self.terminal else _pipe_lines()):
            try:
                command = COMMAND.fullmatch(text)
                if command and command["name"] == "exit":
                    break
                if command:
                    self.run_command(command["name"], (command["argument"] or "").strip())
                else:
                    self.answer(text)
            except UserError as error:
                if not self.terminal:
                    raise
                note(str(error))
        return 0

    def run_command(self, name: str, argument: str) -> None:
        """Run the command of a line that begins with a slash."""
        if name not in self.commands:
            available = [f"/{command}" for command in (*self.commands, "exit")]
            hint = nearest(f"/{name}", available)
            raise UserError(f"unknown command /{name}; available: {listing(available)}.{hint}")
        self.commands[name](argument)

    def answer(self, text: str) -> None:
        """Write the answer as it is generated; Ctrl-C stops it, and the part so far stays in the conversation."""
        with DeferredInterrupt() as interrupt, closing(self.chat.say(text)) as pieces:
            for number, piece in enumerate(pieces):
                if not number and self.chat.dropped_messages:
                    count = self.chat.dropped_messages
                    note(f"the conversation exceeds the model's context: its {count} oldest messages are forgotten")
                write_out(piece)
                sys.stdout.flush()
                if interrupt.pressed:
                    break
        write_out("\n")
        sys.stdout.flush()
        if interrupt.pressed:
            note("stopped")
        elif self.chat.reached_limit:
            note(f"the answer is cut after max_new_tokens={self.chat.options.max_new_tokens} or at the context's end")

    def reset(self, argument: str) -> None:
        """Forget the conversation."""
        self.chat.reset()

    def system(self, argument: str) -> None:
        """Show the system message, or set another."""
        if argument:
            self.chat.system = argument
        else:
            note(f"system: {self.chat.system}" if self.chat.system else "there is no system message")

    def save(self, argument: str) -> None:
        """Write the conversation in the chat format, which `gptask train` reads; other files are not overwritten."""
        path = user_path(argument)
        if not argument:
            raise UserError("/save needs a file: /save talk.jsonl")
        if not any(message["role"] == "assistant" for message in self.chat.messages):
            raise UserError("the conversation is empty: there is nothing to save")
        if path.exists() and real_path(path) not in self.saved:
            raise UserError(f"{path} exists; choose another file")
        try:
            write_text(path, json.dumps({"messages": self.chat.messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}") from error
        self.saved.add(real_path(path))
        note(f"saved to {path}")

    def help(self, argument: str) -> None:
        """List the commands."""
        write_error(f"{COMMANDS}\n")


class DeferredInterrupt:
    """A context in which the first Ctrl-C only sets ``pressed``; the second one interrupts as usual."""

    def __enter__(self) -> DeferredInterrupt:
        self.pressed = False
        self.usual_handler: Any = signal.signal(signal.SIGINT, self._press)
        return self

    def _press(self, *_: Any) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, self.usual_handler)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.usual_handler)


def note(text: str) -> None:
    """Write a remark to standard error, in brackets, so that it is no part of an answer."""
    write_error(f"[{text}]\n")


def _read_texts(lines: Iterator[str]) -> Iterator[str]:
    """The texts in lines: each line that is not blank, or the lines between two fences."""
    for line in lines:
        text = line.strip()
        if text.startswith(FENCE):
            parts = [text.removeprefix(FENCE)]
            while not parts[-1].rstrip().endswith(FENCE) and (next_line := next(lines, None)) is not None:
                parts.append(next_line)
            text = "\n".join(parts).strip().removesuffix(FENCE).strip()
        if text:
            yield text


def _terminal_lines() -> Iterator[str]:
    """Lines from the keyboard, with editing and history."""
    with suppress(ImportError):  # Windows lacks it
        import readline  # noqa: F401 (input() uses it)
    try:
        while True:
            yield input("> " if sys.stdout.isatty() else "")
    except EOFError:
        write_out("\n")


def _pipe_lines() -> Iterator[str]:
    for number, line in enumerate(stdin(), 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"<stdin>:{number}: byte {line[error.start]:#04x} is not valid utf-8") from error
