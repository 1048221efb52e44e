"""Rows of files of every type: what is read, what is set aside, and that the places are right."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard

from linnet.data.reading import compressed
from linnet.data.reading import lines as lines_module
from linnet.data.reading.records import RecordReader, Span, file_kind, spans_of
from linnet.data.rows import BadRecord, Record
from linnet.errors import LinnetError

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def read(path: Path) -> tuple[list[Record | BadRecord], RecordReader]:
    reader = RecordReader(Span(path, 0, path.stat().st_size))
    return list(reader), reader


def values(path: Path) -> list[Any]:
    """The columns of each row; for a bad one its reason."""
    whole = [reader for span in spans_of(path, size=1 << 30) for reader in RecordReader(span)]
    return [row.reason if isinstance(row, BadRecord) else row.values for row in whole]


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    packing = PACK[path.suffix if path.suffix in PACK else ""]
    path.write_bytes(packing(data.encode() if isinstance(data, str) else data))
    return path


def test_the_kind_is_told_by_the_suffix() -> None:
    kinds = {
        name: file_kind(Path(name)) for name in ("a.JSONL.GZ", "a.json.zst", "a.csv", "a.tsv.gz", "a.pq")
    }
    assert list(kinds.values()) == ["jsonl", "json", "csv", "tsv", "parquet"]
    assert {file_kind(Path(name)) for name in ("a", "a.txt", "a.md.gz", "a.gz", "a.parquet.txt")} == {"txt"}


# -- D1: 1,000 malformed inputs -------------------------------------------------------------------------------------


class Row(NamedTuple):
    data: bytes
    outcome: str
    """"record", "bad" or "empty"."""


def _text(rng: random.Random) -> str:
    return "".join(rng.choices("abc déà中😀\u2028\x85", k=rng.randint(1, 30))).strip() or "x"


def text_row(rng: random.Random) -> Row:
    kinds = [
        Row(_text(rng).encode(), "record"),
        Row(_text(rng).encode() + b" \x00\x01", "bad"),
        Row(_text(rng).encode() + b" \xff\xfe", "bad"),
        Row("café".encode("cp1252"), "bad"),
        Row(b"half a character \xe4\xb8", "bad"),
        Row(b"a surrogate \xed\xa0\x80", "bad"),
        Row(b"x" * (lines_module.LONGEST_LINE + 1), "bad"),
        Row(b" \t" * rng.randint(0, 3), "empty"),
    ]
    return rng.choices(kinds, weights=[20, 1, 1, 1, 1, 1, 0.5, 5])[0]


def json_row(rng: random.Random) -> Row:
    good = json.dumps({"question": _text(rng), "n": [1, {"deep": None}]}, ensure_ascii=rng.random() < 0.5)
    bad = [
        good.encode()[:-1] + b"\x00}",
        '{"question": "é"}'.encode("latin-1"),
        b'{"question": "\\ud800"}',
        b'{"question": NaN}',
        b'{"question": -Infinity}',
        b'{"question": 1e999}',
        b'{"question": "a" "b"}',
        b"{'question': 1}",
        b'{"question": 01}',
        b'{"question": "tab\there"}',
        b'["an", "array"]',
        b'{"question": "' + b"x" * lines_module.LONGEST_LINE + b'"}',
        b"[" * 1100 + b"]" * 1100,
    ]
    return Row(good.encode(), "record") if rng.random() < 0.7 else Row(rng.choice(bad), "bad")


def jsonl_row(rng: random.Random) -> Row:
    bad = [b'{"question": "half a r', b"plain text", b"3", b"null", b'"text"', b"}", b'{"a": 1}{"a": 2}']
    chance = rng.random()
    if chance < 0.1:
        return Row(b" " * rng.randint(0, 2), "empty")
    return Row(rng.choice(bad), "bad") if chance < 0.2 else json_row(rng)


def table_row(rng: random.Random, separator: str) -> Row:
    def fields(count: int) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out, delimiter=separator, lineterminator="", quoting=csv.QUOTE_ALL)
        writer.writerow([rng.choice(['say "hi"', "two\nlines", _text(rng), ""]) for _ in range(count)])
        return out.getvalue().encode()

    tab = separator.encode()
    bad = [
        fields(2),
        fields(4),
        b"1" + tab + b'"a\xff"' + tab + b"3",
        b"1" + tab + b"a\x00" + tab + b"3",
        b'"a"b' + tab + b"2",
        b"x" * (lines_module.LONGEST_LINE + 1),
    ]
    chance = rng.random()
    if chance < 0.1:
        return Row(b" " * rng.randint(0, 2), "empty")
    return Row(fields(3), "record") if chance < 0.8 else Row(rng.choice(bad), "bad")


class Case(NamedTuple):
    name: str
    data: bytes
    outcomes: list[tuple[str, int, int]]
    """Outcome, line and byte of each row."""


def make_case(rng: random.Random) -> Case:
    """A file of up to 40 rows of which some are malformed, and what is to come of each."""
    kind = rng.choice(["txt", "jsonl", "json", "csv", "tsv"])
    end = rng.choice([b"\n", b"\r\n"])
    data = rng.choice([b"", b"\xef\xbb\xbf"])
    separator, between, last, line = "\t" if kind == "tsv" else ",", end, b"", 1
    if kind in ("csv", "tsv"):
        data += separator.join(["one", "two", "three"]).encode() + end
        line = 2
    if kind == "json":
        sequence = rng.random() < 0.3
        data += b"" if sequence else b"["
        between = end if sequence else rng.choice([b",", b", ", b"," + end + b"  "])
        last = b"" if sequence else b"]"
    makers: dict[str, Callable[[], Row]] = {
        "txt": lambda: text_row(rng),
        "jsonl": lambda: jsonl_row(rng),
        "json": lambda: json_row(rng),
    }
    outcomes = []
    count = rng.randint(0, 40)
    for number in range(count):
        row = makers.get(kind, lambda: table_row(rng, separator))()
        if kind == "json" and number == 0 and row.data.startswith(b"["):
            row = Row(b'{"question": 1}', "record")  # a file that begins with a bracket is an array
        if (
            kind == "json"
            and len(data) - (outcomes or [("", 0, len(data))])[-1][2] > lines_module.LONGEST_LINE
        ):
            row = Row(
                b'{"question": 1}', "record"
            )  # behind a row that is too long, the next is known by its key
        outcomes.append((row.outcome, line, len(data)))
        ends = number + 1 < count or (kind != "json" and rng.random() < 0.5)
        more = row.data + (between if ends else b"")
        if number + 1 == count and not row.data and more == b"":
            outcomes.pop()  # nothing at the end is no line
        data += more
        line += more.count(b"\n")
    return Case(f"a.{kind}", data + last, outcomes)


def numbered(rows: list[Record | BadRecord]) -> list[tuple[str, int, int]]:
    return [("bad" if isinstance(row, BadRecord) else "record", row.line, row.byte) for row in rows]


def check_case(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    compressed.BLOCK = rng.choice([64, 1000, 4000])
    case = make_case(rng)
    expected = [outcome for outcome in case.outcomes if outcome[0] != "empty"]
    empty = len(case.outcomes) - len(expected)
    for suffix in PACK:
        path = write(folder, case.name + suffix, case.data)
        rows, reader = read(path)
        assert numbered(rows) == expected, (seed, suffix, [r for r in rows if isinstance(r, BadRecord)])
        assert reader.empty == empty
        assert all(row.reason for row in rows if isinstance(row, BadRecord))
        if suffix:
            check_cut_short(path, rng, rows)
    check_spans(folder / case.name, rng, numbered(rows))


def check_spans(path: Path, rng: random.Random, expected: list[tuple[str, int, int]]) -> None:
    """Small spans together give the same rows."""
    lines, rows = 0, []
    spans = spans_of(path, size=rng.randint(1, 500))
    assert [span.start for span in spans] == [0, *(span.stop for span in spans)][:-1]
    assert spans[-1].stop == path.stat().st_size
    for span in spans:
        reader = RecordReader(span)
        rows += [(kind, line + lines, byte) for kind, line, byte in numbered(list(reader))]
        lines += reader.lines
    assert rows == expected


def check_cut_short(path: Path, rng: random.Random, whole: list[Record | BadRecord]) -> None:
    """A packed file that is cut: what could be read, and one bad row."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randint(1, len(data) - 1)])
    rows, _ = read(path)
    assert isinstance(rows[-1], BadRecord)
    assert "ends early" in rows[-1].reason or "damaged" in rows[-1].reason
    assert rows[:-1] == whole[: len(rows) - 1]


def _many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: range) -> None:
    monkeypatch.setattr(compressed, "BLOCK", compressed.BLOCK)
    monkeypatch.setattr(lines_module, "LONGEST_LINE", 4000)
    for seed in seeds:
        check_case(tmp_path, seed)


def test_200_malformed_files_are_read_or_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _many(tmp_path, monkeypatch, range(200))


@pytest.mark.torture
def test_1000_malformed_files_are_read_or_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _many(tmp_path, monkeypatch, range(1000, 2000))


def test_random_bytes_are_never_a_traceback(tmp_path: Path) -> None:
    rng = random.Random(7)
    for number in range(300):
        name = f"a.{rng.choice(['txt', 'jsonl', 'json', 'csv', 'tsv', 'parquet'])}{rng.choice(list(PACK))}"
        alphabet = rng.choice([list(range(256)), list(b'{}[]",:\n a1\\')])
        path = tmp_path / name
        data = bytes(rng.choices(alphabet, k=rng.randint(1, 300)))
        path.write_bytes(data if number % 2 else PACK[path.suffix if path.suffix in PACK else ""](data))
        try:
            list(RecordReader(spans_of(path, size=100)[0]))
        except LinnetError:
            continue
