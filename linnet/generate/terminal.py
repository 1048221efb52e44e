"""The terminal around a conversation: lines in, pieces of answers out, Ctrl-C and Ctrl-D.

What   `talk` reads messages until the end of the input. Answers go to stdout, all else to stderr.
Why    A model is met by talking to it; and what talks in a terminal also has to serve in a pipe.
How    In a terminal Python's readline edits lines and knows the last ones, in memory only; what is pasted is one
       message. Ctrl-C during an answer is only remembered and asked for between two steps of the model, so that its
       caches are whole; at the prompt it is Python's KeyboardInterrupt. From a pipe each line is a message.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from linnet.errors import LinnetError
from linnet.generate.chat import Conversation
from linnet.generate.writing import Writing
from linnet.track.progress import printable

PROMPT, MORE = "> ", "... "
QUOTES = '"""'
LEAVE = "Ctrl-D or /quit leaves."
Read = Callable[[str], str]
"""The next line, for a prompt, without its end; EOFError where there is none."""


def talk(conversation: Conversation, *, greeting: str) -> None:
    """Until /quit or the end of stdin. `greeting` is said in a terminal only.

    Raises:
        LinnetError: what comes through a pipe is not UTF-8.
        KeyboardInterrupt: Ctrl-C, where stdin is no terminal.
    """
    live = sys.stdin.isatty()
    read = _from_terminal() if live else _from_pipe(sys.stdin.buffer)
    if live:
        note(greeting)
    while True:
        try:
            reaction = conversation.take(read_message(read))
            if reaction.said:
                note(reaction.said)
            if reaction.writing is not None:
                _answer(conversation, reaction.writing, live=live)
            if reaction.ends:
                return
        except EOFError:
            if live:
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if not live:
                raise
            print(file=sys.stderr)
            note(LEAVE)
        except UnicodeDecodeError:  # of what was typed
            note("That is not UTF-8; type it again.")


def note(text: str) -> None:
    """Say something that is no answer; dim where there is colour."""
    shown = printable(text)
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        shown = f"\033[2m{shown}\033[0m"
    print(shown, file=sys.stderr, flush=True)


def read_message(read: Read) -> str:
    """A line; several where they end with a backslash, or stand between triple quotes: those are never a command."""
    text = read(PROMPT)
    if not text.startswith(QUOTES):
        while text.endswith("\\"):
            text = text[:-1] + "\n"
            with contextlib.suppress(EOFError):
                text += read(MORE)
        return text
    text = text.removeprefix(QUOTES)
    with contextlib.suppress(EOFError):
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + read(MORE)
    text = text.rstrip().removesuffix(QUOTES).strip("\n")
    return "/" + text if text.startswith("/") else text


def _from_terminal() -> Read:
    with contextlib.suppress(ImportError):  # Windows has none.
        import readline

        if "libedit" not in (readline.__doc__ or ""):
            readline.parse_and_bind("set enable-bracketed-paste on")

    def read(prompt: str) -> str:
        if sys.stdout.isatty():
            line = input(prompt)
        else:  # Python would put the prompt into the file.
            print(prompt, end="", file=sys.stderr, flush=True)
            line = input()
        return line.encode(errors="replace").decode()  # Halves of characters are no text.

    return read


def _from_pipe(stream: BinaryIO) -> Read:
    number = 0

    def read(prompt: str) -> str:
        nonlocal number
        line = stream.readline()
        if not line:
            raise EOFError
        number += 1
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise LinnetError(
                f"Line {number} of stdin is not UTF-8 (byte {error.start}); convert it first."
            ) from error
        return text.rstrip("\r\n")

    return read


def _answer(conversation: Conversation, writing: Writing, *, live: bool) -> None:
    """Show the text while it is written, and give it to the conversation, whole or cut."""
    if said := writing.shortened:
        note(said)
    text = ""
    with _interrupts(remembered=live) as interrupted:
        for piece in writing.pieces(stop=interrupted):
            text += piece
            print(printable(piece), end="", flush=True)
        print(flush=True)
        conversation.answered(text, writing.finish_reason)
    if not writing.finish_reason:
        note("Stopped; the conversation has it as far as it goes. /undo takes it out, /retry asks again.")
    elif writing.finish_reason == "length" and conversation.has_turns:
        note(f"Cut after {len(writing.tokens)} tokens; /set max_new_tokens changes that.")


@contextlib.contextmanager
def _interrupts(*, remembered: bool) -> Iterator[Callable[[], bool]]:
    """A context in which Ctrl-C is remembered, not raised; it gives the question whether one has come."""
    came: list[int] = []
    if not remembered:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
