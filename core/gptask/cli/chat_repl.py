"""A conversation in the terminal, or over a pipe: a line in, an answer out as it is written."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.data.rows import stdin
from gptask.errors import UserError, listing, nearest
from gptask.runs.atomic_write import write_text

if TYPE_CHECKING:
    from gptask.model.generation.chat import Chat

FENCE = '"""'
COMMAND = re.compile(r"/(?P<name>[a-z]*)(?:\s+(?P<rest>.*))?", re.DOTALL)


def talk(chat: Chat) -> int:
    """Talk until the input ends or /exit; a mistake on a terminal is told and forgiven, in a pipe it ends the talk."""
    return Talk(chat, sys.stdin.isatty()).run()


class Talk:
    """The loop over what is typed, and its commands."""

    def __init__(self, chat: Chat, terminal: bool) -> None:
        self.chat, self.terminal = chat, terminal
        self.saved: set[Path] = set()  # files this conversation was written to, which may be written again
        self.commands = {"reset": self.reset, "system": self.system, "save": self.save, "help": self.help}

    def run(self) -> int:
        """Answer line by line."""
        for text in _texts(_typed() if self.terminal else _piped()):
            try:
                found = COMMAND.fullmatch(text)
                if found and found["name"] == "exit":
                    break
                if found:
                    self.command(found["name"], (found["rest"] or "").strip())
                else:
                    self.answer(text)
            except UserError as error:
                if not self.terminal:
                    raise
                note(str(error))
        return 0

    def command(self, name: str, rest: str) -> None:
        """Do what a line that begins with a slash asks for."""
        if name not in self.commands:
            known = [f"/{command}" for command in (*self.commands, "exit")]
            raise UserError(f"there is no command /{name}; there are {listing(known)}.{nearest(f'/{name}', known)}")
        self.commands[name](rest)

    def answer(self, text: str) -> None:
        """Write the answer as it comes; Ctrl-C stops it and keeps what was said."""
        with Interrupt() as interrupt, closing(self.chat.say(text)) as pieces:
            for number, piece in enumerate(pieces):
                if not number and self.chat.dropped:
                    note(f"the conversation is longer than the model's context: its {self.chat.dropped} oldest "
                         "messages are forgotten")  # fmt: skip
                sys.stdout.write(piece)
                sys.stdout.flush()
                if interrupt.pressed:
                    break
        sys.stdout.write("\n")
        sys.stdout.flush()
        if interrupt.pressed:
            note("stopped")
        elif self.chat.full:
            note(f"cut after {self.chat.options.max_new_tokens} tokens (max_new_tokens), or where the context ended")

    def reset(self, rest: str) -> None:
        """Forget what was said."""
        self.chat.reset()

    def system(self, rest: str) -> None:
        """Show the system message, or set another."""
        if rest:
            self.chat.system = rest
        else:
            note(f"system: {self.chat.system}" if self.chat.system else "there is no system message of yours")

    def save(self, rest: str) -> None:
        """Write what was said in the chat format, which `gptask train` reads; no file of others is overwritten."""
        path = Path(rest).expanduser()
        if not rest:
            raise UserError("/save needs a file: /save talk.jsonl")
        if not any(message["role"] == "assistant" for message in self.chat.messages):
            raise UserError("nothing was said yet, so there is nothing to save")
        if path.exists() and path.resolve() not in self.saved:
            raise UserError(f"{path} exists; choose another file")
        try:
            write_text(path, json.dumps({"messages": self.chat.messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}") from error
        self.saved.add(path.resolve())
        note(f"saved to {path}")

    def help(self, rest: str) -> None:
        """List the commands."""
        from gptask.cli.commands.chat import COMMANDS

        sys.stderr.write(f"{COMMANDS}\n")


class Interrupt:
    """While it is entered, the first Ctrl-C is only noted; the second one does what it always does."""

    def __enter__(self) -> Interrupt:
        self.pressed = False
        self.before: Any = signal.signal(signal.SIGINT, self._press)
        return self

    def _press(self, *_: Any) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, self.before)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.before)


def note(text: str) -> None:
    """Say something that is no answer."""
    sys.stderr.write(f"[{text}]\n")


def _texts(lines: Iterator[str]) -> Iterator[str]:
    """What is said, blank lines left out; fences hold several lines together."""
    for line in lines:
        text = line.strip()
        if text.startswith(FENCE):
            parts = [text.removeprefix(FENCE)]
            while not parts[-1].rstrip().endswith(FENCE) and (more := next(lines, None)) is not None:
                parts.append(more)
            text = "\n".join(parts).strip().removesuffix(FENCE).strip()
        if text:
            yield text


def _typed() -> Iterator[str]:
    """Lines from the keyboard, which can be edited and called back."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (input() uses it)
    try:
        while True:
            yield input("> " if sys.stdout.isatty() else "")
    except EOFError:
        sys.stdout.write("\n")


def _piped() -> Iterator[str]:
    for number, line in enumerate(stdin(), 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"<stdin>:{number}: byte {line[error.start]:#04x} is not valid utf-8") from error
