"""`linnet chat` as it is typed: messages of several lines, in a pipe, and on a pseudo terminal."""

import inspect
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from struct import pack
from typing import BinaryIO

import pytest
import torch

import linnet
from linnet import cli
from linnet.device import Choice, choose_writing_precision
from linnet.generate.terminal import read_message
from linnet.turns.template import CHAT
from tests.commands import Command, Result, runner
from tests.generate.networks import scripted
from tests.generate.talks import NEVER, answer, never_ending, saved, talking

ROOT = Path(__file__).parents[2]
LONGEST = 100  # seconds that a terminal is waited for


# --- lines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["Hi", "there"], ["Hi", "there"]),
        (["one\\", "two\\", "three", "four"], ["one\ntwo\nthree", "four"]),
        (["one\\"], ["one\n"]),
        (['"""', "one", "", 'two"""', "three"], ["one\n\ntwo", "three"]),
        (['"""one"""', '"""', '"""'], ["one", ""]),
        (['"""', "one"], ["one"]),
        (['"""/quit', '"""'], ["//quit"]),
        (["a\nb\nc"], ["a\nb\nc"]),  # pasted
        (['"""a\nb"""'], ["a\nb"]),
    ],
)
def test_messages_of_several_lines(typed: list[str], read: list[str]) -> None:
    lines = iter(typed)

    def line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    assert [read_message(line) for _ in read] == read
    with pytest.raises(EOFError):
        read_message(line)


# --- in a pipe ----------------------------------------------------------------------------------------------


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    command: Command = runner(monkeypatch, capfd, "chat")

    def run(typed: str | bytes, *words: str) -> Result:
        data = typed if isinstance(typed, bytes) else typed.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return command(*words, "--precision", "fp32")

    return run


def test_each_line_of_a_pipe_is_a_message(piped, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending())
    conversation = talking(linnet.load(folder), system="Be short.")
    wanted = [answer(conversation, line) for line in ("Hi", "Who?\nYou?", "Grüße")]
    words = (folder, "--system", "Be short.", "--seed", "1", "--max-new-tokens", "8")
    for typed in (
        "Hi\nWho?\\\nYou?\n\nGrüße",
        '\ufeffHi\r\n"""\r\nWho?\r\nYou?"""\r\nGrüße\r\n/quit\r\nno\r\n',
    ):
        code, out, err = piped(typed, *words)
        assert (code, out) == (0, "".join(f"{text}\n" for text in wanted))
        assert err.count("Cut after 8 tokens") == err.count("\n") == 3
    assert piped("", folder) == (0, "", "")


def test_an_answer_in_a_pipe_is_its_text_and_nothing_else(piped, tmp_path: Path) -> None:
    text = "日本🐦 “naïve”."  # characters of several tokens
    folder = saved(tmp_path / "model", scripted(" " + text, prompt="Hi", template=CHAT))
    assert piped("Hi\n", folder, "--temperature", "0") == (0, text + "\n", "")


def test_escape_codes_of_a_model_are_harmless(piped, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", scripted(" a\x1b[31mb\x07\r\x9b1m\tc\nd", prompt="Hi", template=CHAT))
    code, out, _ = piped("Hi\n/\x1b[31m\n", folder, "--temperature", "0")
    assert (code, out) == (0, "a�[31mb���1m\tc\nd\n")
    assert "\x1b" not in piped("/\x1b[31m\n", folder).err


def test_what_gives_way_is_said_once_for_each_answer(piped, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending(n_positions=96))
    typed = "".join(f"Bird number {number} sings.\n" for number in range(5))
    code, _, err = piped(typed, folder, "--max-new-tokens", "30", "--seed", "1")
    assert code == 0
    lines = [line for line in err.splitlines() if "turns are left out" in line]
    assert len(lines) == 4  # all but the first
    assert "of 9 turns are left out" in lines[-1]


def test_a_model_without_turns_says_so(piped, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", never_ending(None))
    words = (folder, "--seed", "1", "--max-new-tokens", "8")
    code, out, err = piped("Once\n", *words)
    assert (code, out) == (0, linnet.load(folder).generate("Once", max_new_tokens=8, seed=1) + "\n")
    assert err == "This model was not trained on turns: it writes on from what you type.\n"
    code, out, err = piped("Once\n", *words, "--system", "Be short.")
    assert (code, out) == (2, "")
    assert "knows no system text" in err


@pytest.mark.parametrize(
    ("typed", "words", "code", "said"),
    [
        (b"Hi\n\xff\n", (), 1, "Line 2 of stdin is not UTF-8 (byte 0)"),
        (b"Hi\n", ("--top-p", "0"), 2, "top_p is 0.0"),
        (b"/top\nHi\n", (), 0, "There is no command /top"),
    ],
)
def test_mistakes_get_one_sentence(
    piped, tmp_path: Path, typed: bytes, words: tuple[str, ...], code: int, said: str
) -> None:
    folder = saved(tmp_path / "model", never_ending())
    result = piped(typed, folder, "--max-new-tokens", "3", *words)
    assert result.code == code
    assert said in result.err
    assert "Traceback" not in result.err


def test_the_defaults_of_chat_are_those_of_generate() -> None:
    ours, theirs = (inspect.signature(verb).parameters for verb in (cli.chat, cli.generate))
    for name in ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed"):
        assert ours[name].default == theirs[name].default, name


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16", "int8"])
def test_every_precision_answers(piped, tmp_path: Path, precision: str) -> None:
    folder = saved(tmp_path / "model", never_ending())
    code, out, err = piped("Hi\n", folder, "--max-new-tokens", "3", "--seed", "1", "--precision", precision)
    assert (code, bool(out.strip())) == (0, True), err


SMALL = "fp16" if "fbgemm" in torch.backends.quantized.supported_engines else "int8"


@pytest.mark.parametrize(
    ("card", "cpu", "chosen"),
    [((8, 0), False, "bf16"), ((7, 5), True, "fp32"), (None, True, "bf16"), (None, False, SMALL)],
)
def test_auto_is_the_fastest_that_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, card: tuple[int, int] | None, cpu: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": cpu})
    assert choose_writing_precision("auto").value == chosen
    assert choose_writing_precision("fp32") == Choice("fp32", "asked for")


# --- on a terminal ------------------------------------------------------------------------------------------

CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


def enter() -> None:
    """In the new process: the terminal is its own, and Ctrl-C counts, which a shell's background job ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.isatty(0):
        ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """`linnet chat` on a pseudo terminal of its own, as a person sees it."""

    def __init__(
        self, *words: str, folder: Path, columns: int = 80, out: BinaryIO | None = None, **environ: str
    ):
        self.master, own = pty.openpty()
        ioctl(own, termios.TIOCSWINSZ, pack("HHHH", 24, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        home = {"HOME": str(folder), "TERM": "xterm", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "linnet", "chat", *words, "--precision", "fp32"],
            cwd=folder,
            stdin=own,
            stdout=out or own,
            stderr=own,
            start_new_session=True,
            preexec_fn=enter,
            env=kept | home | environ,
        )
        os.close(own)
        self.seen = b""

    def type(self, text: str) -> None:
        time.sleep(0.2)  # Python's readline misses a signal that comes just before it waits.
        os.write(self.master, text.encode())

    def until(self, text: str) -> str:
        """What appeared up to and with `text`."""
        wanted, ends = text.encode(), time.monotonic() + LONGEST
        while wanted not in self.seen:
            assert time.monotonic() < ends, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.master, 1 << 16)
                except OSError:  # Linux says so where the other end is closed.
                    raise AssertionError(f"ended without {text!r}: {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(wanted)
        return (before + wanted).decode()

    def wait(self) -> int:
        return self.process.wait(LONGEST)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*words: str, **options) -> Terminal:
        opened.append(Terminal(*words, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def saved_messages(terminal: Terminal, folder: Path, name: str) -> list[dict[str, object]]:
    terminal.type(f"/save {name}\r")
    terminal.until(f"{name}: ")
    return json.loads((folder / name).read_text())["messages"]


def test_a_session_on_a_terminal(terminal, tmp_path: Path) -> None:
    model, home = saved(tmp_path / "model", never_ending()), tmp_path / "home"
    home.mkdir()
    shown = terminal(model, "--max-new-tokens", str(NEVER), folder=home)
    greeting = shown.until("> ")
    assert "Ctrl-D leaves." in greeting
    assert "\x1b[?2004h" in greeting  # asks the terminal to mark what is pasted
    shown.type("not sent" + CTRL_C)
    shown.until("/quit leaves.")
    shown.until("> ")
    shown.type("Hi\r")
    shown.until("Hi")
    while not re.search(r"[a-h ]{200}", shown.seen.decode()):  # It is writing.
        shown.seen += os.read(shown.master, 1 << 16)
    shown.type(CTRL_C)
    shown.until("Stopped; ")
    shown.until("> ")
    said = saved_messages(shown, home, "one.jsonl")
    assert [message["role"] for message in said] == ["user", "assistant"]
    assert (said[0]["content"], said[1]["cut"]) == ("Hi", True)
    assert len(str(said[1]["content"])) >= 200

    shown.type("/set max_new_tokens 5\r")
    shown.until("max_new_tokens 5")
    shown.type("one\\\r")
    shown.until("... ")
    shown.type("two\r")
    shown.until("Cut after 5 tokens")
    shown.type('"""\rthree\r\rfour"""\r')
    shown.until("Cut after 5 tokens")
    shown.type("\x1b[200~five\nsix\n\nseven\x1b[201~")  # pasted, as terminals mark it
    shown.type("\r")
    shown.until("Cut after 5 tokens")
    shown.type(UP + " more\r")  # the last message, as readline remembers it
    shown.until("Cut after 5 tokens")
    said = saved_messages(shown, home, "two.jsonl")
    texts = [message["content"] for message in said if message["role"] == "user"]
    assert texts[1:] == ["one\ntwo", "three\n\nfour", "five\nsix\n\nseven", "five\nsix\n\nseven more"]
    shown.type(CTRL_D)
    assert shown.wait() == 0
    assert sorted(path.name for path in home.iterdir()) == ["one.jsonl", "two.jsonl"]  # and no history


def test_a_narrow_terminal_without_colour(terminal, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", never_ending())
    shown = terminal(model, "--max-new-tokens", "90", folder=tmp_path, columns=20, NO_COLOR="1")
    greeting = shown.until("> ")
    assert "\x1b[2m" not in greeting
    shown.type("A message that is longer than a line is.\r")
    shown.until("Cut after 90 tokens")
    shown.until("> ")
    shown.type("/quit\r")
    assert shown.wait() == 0
    assert "\x1b[2m" not in shown.seen.decode()
    coloured = terminal(model, folder=tmp_path)
    assert "\x1b[2m" in coloured.until("> ")


def test_answers_in_a_file_and_the_rest_on_the_terminal(terminal, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", never_ending())
    with (tmp_path / "out.txt").open("wb") as out:
        shown = terminal(model, "--max-new-tokens", "8", "--seed", "1", folder=tmp_path, out=out)
    shown.until("> ")
    shown.type("Hi\n")
    shown.until("Cut after 8 tokens")
    shown.until("> ")
    shown.type(CTRL_C)
    shown.until("/quit leaves.")
    shown.type(CTRL_D)
    assert shown.wait() == 0
    assert (tmp_path / "out.txt").read_text() == never_ending().generate(
        "Hi", max_new_tokens=8, seed=1
    ) + "\n"


def test_ctrl_c_ends_a_chat_in_a_pipe(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", never_ending())
    words = [
        sys.executable,
        "-m",
        "linnet",
        "chat",
        model,
        "--max-new-tokens",
        str(NEVER),
        "--precision",
        "fp32",
    ]
    with subprocess.Popen(words, cwd=ROOT, stdin=-1, stdout=-1, stderr=-1, preexec_fn=enter) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Hi\n")
        process.stdin.flush()
        assert process.stdout.read(50)  # It is writing, piece by piece.
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONGEST)
    assert process.returncode == 130
    assert b"Traceback" not in err
