"""What is particular to each type of file: CSV, JSON, Parquet, encodings; rows that are written are read back."""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.data.reading import compressed
from linnet.data.reading.records import RecordReader, Span, spans_of
from linnet.data.rows import BadRecord, Record
from linnet.errors import LinnetError
from tests.data.reading.test_records import PACK, read, values, write

# -- tables ---------------------------------------------------------------------------------------------------------


def test_csv_files_of_real_people(shared_data: Path) -> None:
    folder = shared_data / "wild" / "csv"
    rows = {path.stem: values(path) for path in sorted(folder.glob("*.csv"))}
    assert rows["comma_in_quotes"][0]["address"] == "120 any st."
    assert rows["comma_in_quotes"][0]["city"] == "Anytown, WW"
    assert rows["escaped_quotes"] == [{"a": "1", "b": 'ha "ha" ha'}, {"a": "3", "b": "4"}]
    assert rows["json"] == [{"key": "1", "val": '{"type": "Point", "coordinates": [102.0, 0.5]}'}]
    assert rows["newlines"] == rows["newlines_crlf"]
    assert rows["newlines"][1] == {"a": "Once upon \na time", "b": "5", "c": "6"}
    assert (
        rows["empty"] == rows["empty_crlf"] == [{"a": "1", "b": "", "c": ""}, {"a": "2", "b": "3", "c": "4"}]
    )
    assert rows["utf8"][1]["c"] == "ʤ"
    for path in folder.glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            expected = [
                {key: value.replace("\r\n", "\n") for key, value in row.items()}
                for row in csv.DictReader(file)
            ]
        assert rows[path.stem] == expected, path.name


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("\n\n a ;b\n1;2,5\n", [{"a": "1", "b": "2,5"}]),
        ("a\tb\n1\t2\n", [{"a": "1", "b": "2"}]),
        (
            "a,b\n1\n1,2,3\n1,2\n",
            ["1 fields where the header has 2", "3 fields where the header has 2", ("1", "2")],
        ),
        ('a,b\n1,"open\n3,4\n5,6\n', ["not valid CSV: unexpected end of data", ("3", "4"), ("5", "6")]),
        ('a,b\n1,"open\n3,"4"\n5,6\n', ["not valid CSV: ',' expected after '\"'", ("3", "4"), ("5", "6")]),
        ('a,b\n1,5" pipe\n3,4\n', [("1", '5" pipe'), ("3", "4")]),
        ("a,b\n", []),
        ("\n\n", []),
    ],
)
def test_csv(tmp_path: Path, data: str, expected: list[Any]) -> None:
    pairs = [{"a": e[0], "b": e[1]} if isinstance(e, tuple) else e for e in expected]
    assert values(write(tmp_path, "a.csv", data)) == pairs


def test_a_tsv_line_with_stray_quotes_is_taken_as_it_stands(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'a\tb\n"Hello," he said.\t1\n"x\ty"\tz\n"quo""ted"\t2\n"open\t3\n')
    assert values(path) == [
        {"a": '"Hello," he said.', "b": "1"},
        {"a": "x\ty", "b": "z"},
        {"a": 'quo"ted', "b": "2"},
        {"a": '"open', "b": "3"},
    ]


@pytest.mark.parametrize("data", [b"a\x00,b\n1,2\n", b"caf\xe9,b\n1,2\n", b'"a"x,b\n1,2\n', b'"a,b\n1,2\n'])
def test_a_header_that_cannot_be_read_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(LinnetError, match=r"a.csv:1: the header line cannot be read .*must name the columns"):
        read(write(tmp_path, "a.csv", data))


# -- JSON -----------------------------------------------------------------------------------------------------------


def test_json_corner_cases_as_a_row_and_as_a_file(shared_data: Path, tmp_path: Path) -> None:
    """Of these files only y_object... are an object; of some others a part is one, which counts in a .json file."""
    found: dict[str, set[str]] = {"a.json": set(), "a.jsonl": set(), "a.json.gz": set(), "a.jsonl.zst": set()}
    for path in sorted((shared_data / "wild" / "json").glob("*.json")):
        for name, holding_rows in found.items():
            file = write(tmp_path, name, path.read_bytes())
            if "UTF-16" in path.name or "utf16" in path.name:
                with pytest.raises(LinnetError, match="UTF-16"):
                    read(file)
                continue
            rows, reader = read(file)
            assert all(row.reason for row in rows if isinstance(row, BadRecord))
            if any(isinstance(row, Record) for row in rows):
                holding_rows.add(path.stem)
            if path.name.startswith("n_") and "jsonl" in name:
                assert rows or reader.empty or not path.stat().st_size
    whole = {path.stem for path in (shared_data / "wild" / "json").glob("y_object*")}
    assert found["a.jsonl"] == found["a.jsonl.zst"] == whole
    behind = {"object_trailing_comment", "object_trailing_comment_slash_open", "object_with_trailing_garbage"}
    behind |= {"structure_object_with_trailing_garbage", "structure_trailing_#"}
    assert found["a.json"] == found["a.json.gz"] == whole | {f"n_{name}" for name in behind}


def test_naughty_strings_go_through_every_type(shared_data: Path, tmp_path: Path) -> None:
    strings = json.loads((shared_data / "wild" / "blns.json").read_text(encoding="utf-8"))
    assert values(shared_data / "wild" / "blns.json")[0].startswith("a string where an object")
    for name, rows in round_trips([{"a": text, "b": "x"} for text in strings], tmp_path):
        assert rows == [{"a": text, "b": "x"} for text in strings], name
    lines = values(shared_data / "wild" / "blns.txt")
    assert {"text": "Ω≈ç√∫˜µ≤≥÷"} in lines
    assert not [line for line in lines if isinstance(line, str)]


@pytest.mark.parametrize("layout", [",", ", ", ",\n", ",\n  ", "\n"])
@pytest.mark.parametrize(
    "broken", ['{"a": 1', '{"a": "open}', '{"a": [1}', '{"a": {"b": 2}', '{"a": "open\n"}', '{"a": 1}}']
)
def test_reading_goes_on_behind_a_json_row_whose_brackets_do_not_match(
    tmp_path: Path, layout: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "BLOCK", 50)
    rows = [f'{{"a": {number}, "c": [{{"d": "{"x" * number}"}}]}}' for number in range(60)]
    rows[30] = broken
    for brackets in ("[]", "  "):
        data = brackets[0] + layout.join(rows) + brackets[1]
        found = values(write(tmp_path, "a.json", data))
        numbers = [row["a"] for row in found if isinstance(row, dict)]
        # With a bracket too many the row itself is whole, and the bracket is what is bad.
        assert numbers == [*range(30), *([1] if broken == '{"a": 1}}' else []), *range(31, 60)]
        assert len(found) - len(numbers) == 1


def test_the_reasons_name_what_is_wrong(tmp_path: Path) -> None:
    rows = {
        b'{"a": 1}': {"a": 1},
        b'{"a": 1, "a": 2}': {"a": 2},
        b'{"a": 123456789012345678901}': {"a": 123456789012345678901.0},
        b'{"a": "\\u0000"}': {"a": "\0"},
        b'{"a": ': "not valid JSON: unexpected end of data (character 7 of the row)",
        b'{"a": NaN}': "not valid JSON: unexpected character, expected a JSON value (character 7 of the row)",
        b'{"a": "\\udead"}': "not valid JSON: invalid high surrogate in string (character 8 of the row)",
        b'{"a": "nul \0"}': "byte 11 of the row is NUL",
        b'{"a": "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9 \xff"}': (
            "byte 18 of the row (0xFF) is not UTF-8, though most of the row is"
        ),
        '{"a": "Le garçon est très fatigué"}'.encode("cp1252"): (
            "byte 13 of the row (0xE7) is not UTF-8; it looks like WINDOWS-1252"
        ),
        b"null": "null where an object with columns is needed",
        b"[1]": "an array where an object with columns is needed",
        b"1.5": "a number where an object with columns is needed",
    }
    found = values(write(tmp_path, "a.jsonl", b"\n".join(rows)))
    assert dict(zip(rows, found, strict=True)) == rows


# -- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", list(PACK))
@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("Chinese_Mandarin-GB2312", "GB18030"),
        ("Hungarian_Magyar-Unicode", "UTF-16"),
        ("Japanese_Nihongo-SJIS", "SHIFT_JIS"),
        ("Russian_Russky-Cyrillic", "WINDOWS-1251"),
        ("french.txt", "WINDOWS-1252"),
        ("swedish.txt", "CP850"),
    ],
)
def test_a_file_in_another_encoding_is_refused_as_a_whole(
    shared_data: Path, tmp_path: Path, name: str, encoding: str, suffix: str
) -> None:
    data = (shared_data / "wild" / "encodings" / name).read_bytes()
    path = write(tmp_path, f"a.txt{suffix}", data)
    with pytest.raises(LinnetError, match=f"looks like {encoding}. Convert it: .*iconv -f {encoding} "):
        read(path)


def test_a_table_in_utf16_is_refused_as_a_whole_and_a_binary_file_too(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl", "a.json", "a.csv.zst"):
        with pytest.raises(LinnetError, match="looks like UTF-16"):
            read(write(tmp_path, name, "a,b\n1,2\n".encode("utf-16")))
    with pytest.raises(LinnetError, match="this is no text file"):
        read(write(tmp_path, "a.jsonl", b"\x89PNG\0\n\0" * 100))
    mostly_good = b"good\n" * 200 + b"caf\xe9\n" * 15
    assert len([row for row in values(write(tmp_path, "a.txt", mostly_good)) if isinstance(row, str)]) == 15


# -- Parquet --------------------------------------------------------------------------------------------------------


def test_parquet_is_cut_at_row_groups_and_its_bytes_are_observed(tmp_path: Path) -> None:
    rows = [{"n": n, "messages": [{"role": "user", "content": "é" * n}], "none": None} for n in range(1000)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=64)
    spans = spans_of(path, size=3000)
    assert len(spans) > 3
    assert [span.start for span in spans] == [0, *(span.stop for span in spans)][:-1]
    found: list[Any] = []
    seen: list[int] = []
    for span in spans:
        reader = RecordReader(span, observe=seen.append)
        part = list(reader)
        assert [row.line for row in part] == list(range(1, len(part) + 1))
        assert reader.lines == len(part)
        found += [row.values for row in part if isinstance(row, Record)]
    assert found == rows
    assert 0.6 * path.stat().st_size < sum(seen) <= path.stat().st_size


def test_damaged_parquet_counts_every_row_that_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {n} " * 20 for n in range(300)]})
    pq.write_table(table, path, row_group_size=100, use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)
    rows, reader = read_groups(path)
    assert [isinstance(row, BadRecord) for row in rows] == [False] * 100 + [True] * 100 + [False] * 100
    assert reader.lines == 300
    path.write_bytes(data[:-100])
    rows, _ = read_groups(path)
    assert len(rows) == 1
    assert isinstance(rows[0], BadRecord)
    assert rows[0].reason.startswith("not a whole Parquet file: ")
    path.rename(tmp_path / "a.parquet.gz")
    with pytest.raises(LinnetError, match="unpack it first"):
        read(tmp_path / "a.parquet.gz")


def test_a_string_in_parquet_that_is_no_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"caf\xe9", "été".encode(), None])
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 4, raw.buffers())})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, _ = read_groups(tmp_path / "a.parquet")
    assert isinstance(rows[1], BadRecord)
    assert rows[1].line == 2
    assert "byte 3 of the row (0xE9) is not UTF-8" in rows[1].reason
    assert [row.values["text"] for row in rows if isinstance(row, Record)] == ["good", "été", None]


def read_groups(path: Path) -> tuple[list[Record | BadRecord], RecordReader]:
    [span] = spans_of(path, size=1 << 30)
    reader = RecordReader(Span(*span))
    return list(reader), reader


# -- what is written is read back -----------------------------------------------------------------------------------


def round_trips(rows: list[dict[str, str]], folder: Path) -> list[tuple[str, list[Any]]]:
    """The rows written as each type, packed and not, and read."""
    columns = list(rows[0])
    files: dict[str, bytes] = {
        "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
        "b.jsonl": "\r\n".join(json.dumps(row) for row in rows).encode(),
        "a.json": json.dumps(rows, ensure_ascii=False).encode(),
        "b.json": json.dumps(rows, indent=1).encode(),
    }
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
            writer.writerows([columns, *([row[column] for column in columns] for row in rows)])
        files[name] = (folder / name).read_bytes()
    result = []
    for name, data in files.items():
        for suffix in PACK:
            result.append((name + suffix, values(write(folder, name + suffix, data))))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return [*result, ("a.parquet", values(folder / "a.parquet"))]


TEXT = st.text(
    st.one_of(st.sampled_from('",;\t\n{}[]\\ab é😀\u2028'), st.characters(codec="utf-8")), max_size=20
)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), block=st.integers(3, 50))
def test_rows_come_back_from_every_type(pairs: list[tuple[str, str]], block: int) -> None:
    # Tables have no NUL, and CR LF inside a field becomes LF as it does everywhere.
    rows = [
        {"a": a.replace("\0", "").replace("\r", ""), "b": b.replace("\0", "").replace("\r", "")}
        for a, b in pairs
    ]
    before, compressed.BLOCK = compressed.BLOCK, block
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, found in round_trips(rows, Path(folder)):
                assert found == rows, name
    finally:
        compressed.BLOCK = before


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(TEXT.map(lambda text: "".join(text.split("\n"))), max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_lines_come_back(lines: list[str], end: str) -> None:
    lines = [line.replace("\0", "").replace("\r", "") for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), "a.txt", "\ufeff" + end.join(lines) + end)
        rows, reader = read(path)
        assert [row.values["text"] for row in rows if isinstance(row, Record)] == [
            x for x in lines if x.strip()
        ]
        assert reader.empty == len([line for line in lines or [""] if not line.strip()])
        assert reader.lines == max(1, len(lines))
