"""A conversation with a model: what was said, what the model reads of it, and the commands that change it.

What   `Conversation.take(line)` takes a message or a command, and says what is to be shown and written;
       `answered` gives it what the model wrote.
Why    Without a terminal, so that a test can hold the whole conversation in its hand; `terminal` is the loop around it.
How    A list of exchanges. A model that was trained on turns reads them as turns, of which the oldest give way
       (`linnet.turns.layout`), and its prompt cache knows what it read before. Any other model writes on from the
       text so far, which is then the history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from linnet.errors import LinnetError, UsageError
from linnet.generate.engine import Model
from linnet.generate.sampling import Sampling, SamplingOptions
from linnet.generate.saving import save
from linnet.generate.writing import FinishReason, Writing
from linnet.turns.template import ANSWERER, Turn

# What /set changes: name -> the word for what is not a number, and what it stands for.
WORDS: dict[str, tuple[str, object]] = {"top_k": ("off", None), "seed": ("random", "random")}
SETTINGS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")

INPUT_HELP = '''\
A line that ends with \\ goes on in the next one; a block of lines stands between """ and """.
A message that begins with / is typed with two of them. Ctrl-C stops an answer, Ctrl-D leaves.'''
CONTINUES_HELP = "An empty line lets the model write on."


@dataclass
class Exchange:
    """What was said, and the answer; one that has not `ended` was stopped, or was as long as it may be."""

    said: str
    answer: str = ""
    ended: bool = False

    @property
    def is_cut(self) -> bool:
        """Something was written, but not its end."""
        return bool(self.answer.strip()) and not self.ended


@dataclass(frozen=True)
class Reaction:
    """What comes of a line: something to say, a text that is to be written and given to `answered`, the end."""

    said: str = ""
    writing: Writing | None = None
    ends: bool = False


class Conversation:
    """Attributes: `exchanges`, the oldest first; `system`, the turn before them; `options`, how answers are drawn."""

    def __init__(self, model: Model, options: SamplingOptions, *, system: str = "") -> None:
        """Raises UsageError where a model knows no system text, or an option is out of range."""
        Sampling(**options)
        self.model = model
        self.options = options
        self.exchanges: list[Exchange] = []
        self.system = system
        self._asked = 0
        if system:
            self._check_turns()

    @property
    def has_turns(self) -> bool:
        """Whether the model answers turns; else it writes on from a text."""
        return self.model.layout is not None

    @property
    def turns(self) -> list[Turn]:
        """All of it, with the system text."""
        turns = [Turn("system", self.system)]
        for exchange in self.exchanges:
            turns += [Turn("user", exchange.said), Turn(ANSWERER, exchange.answer)]
        return [turn for turn in turns if turn.text.strip()]

    @property
    def texts(self) -> list[str]:
        """The same for a model without turns: where it ended a text, another one began."""
        texts = [""]
        for exchange in self.exchanges:
            texts[-1] = _go_on(texts[-1], exchange.said) + exchange.answer
            if exchange.ended:
                texts.append("")
        return texts

    def take(self, line: str) -> Reaction:
        """A message or, where it begins with /, a command. What is wrong with it is said, and changes nothing."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                return self._command(line)
            line = line.removeprefix("/")
            if self.has_turns and not line.strip():
                return Reaction()
            return self._ask(Exchange(line))
        except LinnetError as error:
            return Reaction(str(error))

    def answered(self, text: str, reason: FinishReason | str) -> None:
        """What the model wrote; `reason` as in `Writing`: "" where it was stopped."""
        self.exchanges[-1].answer = text
        self.exchanges[-1].ended = reason == "stop"

    def _ask(self, exchange: Exchange) -> Reaction:
        """With each question another `choice`: a seed gives the same conversation again, and no answer twice."""
        self.exchanges.append(exchange)
        try:
            text, messages = self.texts[-1], []
            if self.has_turns:
                text, messages = "", [{"role": role, "content": said} for role, said in self.turns]
            writing = self.model.start(text, messages=messages, choice=self._asked, **self.options)
        except BaseException:
            self.exchanges.pop()
            raise
        self._asked += 1
        return Reaction(writing=writing)

    # -- commands ------------------------------------------------------------------------------------------------

    def _command(self, line: str) -> Reaction:
        name, _, rest = line.partition(" ")
        if name not in COMMANDS:
            raise UsageError(
                f"There is no command {name}; /help lists them, and /{name} sends it as a message."
            )
        return COMMANDS[name].act(self, rest.strip())

    def _help(self, rest: str) -> Reaction:
        usages = {name: f"{name} {command.takes}".strip() for name, command in COMMANDS.items()}
        width = max(map(len, usages.values()))
        lines = [f"{usage:{width}}  {COMMANDS[name].does}" for name, usage in usages.items()]
        return Reaction("\n".join([*lines, INPUT_HELP, *([] if self.has_turns else [CONTINUES_HELP])]))

    def _reset(self, rest: str) -> Reaction:
        self.exchanges, self._asked = [], 0
        return Reaction("All is forgotten" + (", but for the system text." if self.system else "."))

    def _undo(self, rest: str) -> Reaction:
        self._last()
        self.exchanges.pop()
        left = len(self.exchanges)
        return Reaction(f"The last exchange is forgotten; {left} {'is' if left == 1 else 'are'} left.")

    def _retry(self, rest: str) -> Reaction:
        last = self._last()
        self.exchanges.pop()
        try:
            asked = self._ask(Exchange(last.said))
        except LinnetError:
            self.exchanges.append(last)
            raise
        same = self.options.get("temperature") == 0
        return Reaction("At temperature 0 the answer is always the same." if same else "", asked.writing)

    def _last(self) -> Exchange:
        if not self.exchanges:
            raise UsageError("Nothing was said yet.")
        return self.exchanges[-1]

    def _temperature(self, rest: str) -> Reaction:
        return self._set(f"temperature {rest}")

    def _set(self, rest: str) -> Reaction:
        name, _, value = rest.partition(" ")
        if not name:
            return Reaction("\n".join(map(self._setting, SETTINGS)))
        if name not in SETTINGS:
            raise UsageError(f"There is no setting {name!r}; there are {', '.join(SETTINGS)}.")
        if value:
            changed: SamplingOptions = {**self.options, name: _value(name, value.strip())}  # type: ignore[misc]
            Sampling(**changed)
            self.options = changed
        return Reaction(self._setting(name))

    def _setting(self, name: str) -> str:
        value = getattr(Sampling(**self.options), name)
        word, meaning = WORDS.get(name, ("", ...))
        return f"{name} {word if value == meaning else value}"

    def _set_system(self, rest: str) -> Reaction:
        self._check_turns()
        if rest:
            self.system = "" if rest == "off" else rest
        return Reaction(f"The system text is: {self.system}" if self.system else "There is no system text.")

    def _check_turns(self) -> None:
        if not self.has_turns:
            raise UsageError("This model was not trained on turns, so it knows no system text.")

    def _save(self, rest: str) -> Reaction:
        return Reaction(save(self, rest, replace=False))

    def _replace(self, rest: str) -> Reaction:
        return Reaction(save(self, rest, replace=True))

    def _quit(self, rest: str) -> Reaction:
        return Reaction(ends=True)


@dataclass(frozen=True)
class Command:
    """`takes`: what stands behind its name, in /help."""

    takes: str
    does: str
    act: Callable[[Conversation, str], Reaction]


COMMANDS = {
    "/help": Command("", "this list", Conversation._help),
    "/reset": Command("", "begin anew", Conversation._reset),
    "/undo": Command("", "forget the last exchange", Conversation._undo),
    "/retry": Command("", "another answer to the same", Conversation._retry),
    "/temperature": Command("X", "0 is the likeliest, 1 is wild", Conversation._temperature),
    "/set": Command("NAME VALUE", "another setting; alone: all of them", Conversation._set),
    "/system": Command("TEXT", "how to behave; off: nothing", Conversation._set_system),
    "/save": Command("FILE", ".jsonl to train on, .txt to read", Conversation._save),
    "/save!": Command("FILE", "the same over a file that exists", Conversation._replace),
    "/quit": Command("", "leave", Conversation._quit),
}


def _go_on(text: str, more: str) -> str:
    """One space between what was written and what is typed, where neither has white space there."""
    seam = text and more and not text[-1].isspace() and not more[0].isspace()
    return f"{text} {more}" if seam else text + more


def _value(name: str, text: str) -> object:
    """A setting as it is typed; what is no number is left for `Sampling` to refuse."""
    word, meaning = WORDS.get(name, ("", None))
    if word and text == word:
        return meaning
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
