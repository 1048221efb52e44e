"""From tokens to text that may be shown: gates in a row, each holding back what could still change.

Why: a token can end in the middle of a character, a stop text can be spread over tokens, and a sentence is known
to be one only when the next begins. What a stream has shown cannot be taken back.
How: ids -> `Characters` -> `Beginning` -> `Stops` -> `Sentences` -> text. Each has `feed`, which returns what is
certain by now, and `finish`, which returns the rest (`Beginning` has none). The text that is not streamed is the same
pieces, joined.
"""

from collections.abc import Sequence

from linnet.tokenizer import Tokenizer
from linnet.turns.sentences import last_sentence_end

REPLACEMENT = "\ufffd"  # what decoding gives for bytes that are no UTF-8, or not yet


class Characters:
    """Ids to whole characters.

    An unfinished character at the end decodes to one U+FFFD, so that one is held back: it is right (the bytes
    never make a character) or becomes another. Everything before it stands. Ids are decoded after those of the
    last piece, since some tokenizers drop a space at the start of a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.before: list[int] = []
        self.pending: list[int] = []
        self.shown = 0  # characters of the pending ids that are out already

    def feed(self, token: int) -> str:
        """The characters that are certain with this token."""
        self.pending.append(token)
        text = self._text()
        if text.endswith(REPLACEMENT):
            piece = text[self.shown : -1]
            self.shown = max(self.shown, len(text) - 1)
            return piece
        piece = text[self.shown :]
        if text:
            self.before, self.pending, self.shown = self.pending, [], 0
        return piece

    def finish(self) -> str:
        """What was held back."""
        return self._text()[self.shown :]

    def _text(self) -> str:
        start = len(self.tokenizer.decode(self.before))
        return self.tokenizer.decode(self.before + self.pending)[start:]


class Beginning:
    """Leaves out the white space that an answer begins with: a template puts the space at the seam into the answer."""

    def __init__(self, *, strip: bool) -> None:
        self.strip = strip

    def feed(self, piece: str) -> str:
        """`piece` from the first character on that is no white space."""
        if not self.strip:
            return piece
        rest = piece.lstrip()
        self.strip = not rest
        return rest


class Stops:
    """Ends the text before the first stop text that is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """The text that no stop text can begin in; `found` is set when one was there."""
        if not self.stops:
            return piece
        text, self.held = self.held + piece, ""
        # The first to be complete wins, however the text was cut into pieces; of two, the longer.
        ends = [(text.find(stop) + len(stop), -len(stop)) for stop in self.stops if stop in text]
        if ends:
            self.found = True
            end, length = min(ends)
            return text[: end + length]
        keep = max(_overlap(text, stop) for stop in self.stops)
        cut = len(text) - keep
        self.held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """The beginning of a stop text that did not come."""
        return self.held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`: ("a\\n", "\\n\\n") -> 1."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[len(text) - n :])), 0)


class Sentences:
    """Ends the text after its last whole sentence, if asked to; a text without one stays as it is."""

    def __init__(self, *, cut: bool) -> None:
        self.cut = cut
        self.text = ""
        self.shown = 0

    def feed(self, piece: str) -> str:
        """The sentences that are whole by now."""
        if not self.cut:
            return piece
        self.text += piece
        return self._until(last_sentence_end(self.text, start=self.shown, growing=True))

    def finish(self) -> str:
        """The last whole sentences, or all of a text that has none."""
        return self._until(last_sentence_end(self.text, start=self.shown) or len(self.text))

    def _until(self, end: int) -> str:
        piece = self.text[self.shown : end]
        self.shown = max(self.shown, end)
        return piece
