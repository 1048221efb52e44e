"""What `linnet inspect` found out, as plain data: the terminal, the page and `--json` show the same.

Why    Three faces of one thing must not compute it three times.
How    Frozen dataclasses of numbers and texts. What is not known (no tokenizer, no rows) is None or empty, and left
       out where people look.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from linnet.look.guess import Guess
from linnet.turns.template import Example


@dataclass(frozen=True)
class Sample:
    """A row that stands for others: what a rule removed, what could not be used, what is strange.

    Attributes:
        id: 16 hex digits, for the files of data.drop and data.keep; "" for a row that cannot be read.
        place: file:line.
        why: the reason, or the figure that makes it strange.
    """

    id: str
    place: str
    text: str
    why: str = ""


@dataclass(frozen=True)
class Edit:
    """A place in a row that a cleaning rule changed, with what is around it."""

    id: str
    place: str
    before: str
    after: str


@dataclass(frozen=True)
class LeftOut:
    """What is not learned, and what was changed: rule -> rows, with the first rows of each rule."""

    dropped: dict[str, int] = field(default_factory=dict)
    dropped_samples: dict[str, list[Sample]] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    changed_samples: dict[str, list[Edit]] = field(default_factory=dict)
    quarantined: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    quarantine: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class Lengths:
    """How long the examples are, in tokens.

    Attributes:
        edges: [B + 1]; bin i holds edges[i] to edges[i + 1] - 1 tokens, the last one also all that are longer.
        examples, learned: [B] examples whose tokens, or learned tokens, are so many.
        median, most: tokens (95 % of the examples have at most `usual`).
    """

    edges: list[int]
    examples: list[int]
    learned: list[int]
    median: int
    usual: int
    most: int


@dataclass(frozen=True)
class Packing:
    """How well the examples fill rows of `block_size` tokens; `fill` is the share that is no padding."""

    block_size: int
    reason: str
    rows: int
    fill: float


@dataclass(frozen=True)
class Duplicates:
    """Copies among the rows as they were read.

    Attributes:
        exact: rows that are equal to an earlier one. near: further ones that are nearly equal to one.
        pairs: the first of them, each with the row that it repeats.
    """

    exact: int
    near: int
    pairs: list[tuple[Sample, Sample]]


@dataclass(frozen=True)
class Strange:
    """The rows that stand out in one respect, the strangest first."""

    what: str
    rows: list[Sample]


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        subject: the recipe or the file, as it was typed.
        command: what trains on it; "" where that is not clear.
        data_format: as in data.format; "" where nothing fits.
        sources: for each file its path (or address), bytes and whether it is held out.
        prepared: the folder of the prepared data; "" where none stays.
        notes: sentences that preparing had to say.
        guess: what a bare file is taken for.
        counts: rows, examples, tokens, learned_tokens, bytes, windowed, shortened, of training and held-out part.
        estimated: which of the counts are bytes / 4.
        missing: a sentence on why counts are missing; "" where none are.
        kept_share: source tokens that are present in an example / source tokens.
        looked_at: rows that duplicates and strange rows were looked for in.
        whole: these are all.
        first: the first examples in file order, as segments.
    """

    subject: str
    command: str = ""
    data_format: str = ""
    sources: list[dict[str, Any]] = field(default_factory=list)
    prepared: str = ""
    notes: list[str] = field(default_factory=list)
    guess: Guess | None = None
    counts: dict[str, int] = field(default_factory=dict)
    training: dict[str, int] = field(default_factory=dict)
    validation: dict[str, int] = field(default_factory=dict)
    estimated: list[str] = field(default_factory=list)
    missing: str = ""
    kept_share: float | None = None
    left_out: LeftOut = LeftOut()
    packing: Packing | None = None
    lengths: Lengths | None = None
    looked_at: int = 0
    whole: bool = True
    duplicates: Duplicates | None = None
    strange: list[Strange] = field(default_factory=list)
    first: list[Example] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """One object. The keys that others may rely on are at its top: rows, examples, tokens, ..., first."""
        counts = {key: self.counts.get(key) for key in COUNTS}
        values = asdict(self)
        for key in ("counts", "left_out", "packing", "data_format"):
            del values[key]
        left_out = asdict(self.left_out)
        return {
            **counts,
            "kept_share": self.kept_share,
            "quarantined": left_out.pop("quarantined"),
            "dropped": left_out.pop("dropped"),
            "fill": self.packing.fill if self.packing else None,
            "block_size": self.packing.block_size if self.packing else None,
            "packed_rows": self.packing.rows if self.packing else None,
            "format": self.data_format,
            **values,
            **left_out,
            "guess": self.guess.to_json() if self.guess else None,
            "first": [[[segment.text, segment.learn] for segment in example] for example in self.first],
        }


COUNTS = ("rows", "examples", "tokens", "learned_tokens", "bytes", "windowed", "shortened")
