"""Memory and time of reading: compression bombs, a line of 2 GB, 100 million empty lines."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from linnet.data.reading.records import RecordReader, spans_of
from linnet.data.reading.text import read_text
from linnet.errors import LinnetError

READ = """
import json, sys, time
from collections import Counter
from pathlib import Path
from linnet.data.reading.records import RecordReader, spans_of
from linnet.data.rows import Record
from linnet.data.reading.text import read_text
from linnet.errors import LinnetError

path, start, counts, seen, error = Path(sys.argv[1]), time.perf_counter(), Counter(), [0], ""
def observe(count):
    seen[0] += count
try:
    if sys.argv[2] == "text":
        counts["characters"] = sum(len(text) for text in read_text(path))
    else:
        for span in spans_of(path, size=8 << 20):
            reader = RecordReader(span, observe=observe)
            for row in reader:
                counts["records" if isinstance(row, Record) else "bad"] += 1
            counts["empty"] += reader.empty
except LinnetError as problem:
    error = str(problem)
# Not ru_maxrss: a child begins with its parent's.
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
seconds = time.perf_counter() - start
print(json.dumps({**counts, "error": error, "seconds": seconds, "peak_mb": peak, "seen": seen[0]}))
"""


def read_apart(path: Path, how: str = "rows") -> dict[str, Any]:
    """What a process of its own found in a file, with its seconds of reading and its peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), how],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def repeated(path: Path, unit: bytes, size: int) -> Path:
    """A packed file of `size` bytes of content: many members or frames of 16 MB, each of one unit again and again."""
    member = unit * ((16 << 20) // len(unit))
    packed = gzip.compress(member, 9) if path.suffix == ".gz" else zstandard.compress(member, 19)
    with path.open("wb") as file:
        for _ in range(size // len(member)):
            file.write(packed)
    return path


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("a.txt", b"\0"),
        ("a.txt", b"\n"),
        ("a.jsonl", b"{}\n"),
        ("a.json", b"["),
        ("a.csv", b'"'),
    ],
    ids=["nul", "empty lines", "objects", "brackets", "quotes"],
)
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compression_bomb_is_stopped_at_the_cap(
    tmp_path: Path, name: str, unit: bytes, suffix: str
) -> None:
    path = repeated(tmp_path / (name + suffix), unit, 10 << 30)
    assert path.stat().st_size < 20 << 20  # gzip cannot do better than 1 to 1,032; zstd packs 10 GB into 1 MB
    found = read_apart(path)
    assert "looks like a compression bomb" in found["error"]
    assert found["seconds"] < 5
    assert found["peak_mb"] < 256


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_bomb_behind_ordinary_text_is_stopped_too(tmp_path: Path, suffix: str) -> None:
    path = repeated(tmp_path / f"bomb.txt{suffix}", b"word ", 10 << 30)
    text = "".join(random.Random(1).choices("abcdefgh \n", k=100_000)).encode()
    before = gzip.compress(text) if suffix == ".gz" else zstandard.compress(text)
    path.write_bytes(before + path.read_bytes())
    found = read_apart(path, "text")
    assert "looks like a compression bomb" in found["error"]
    assert found["seconds"] < 5
    assert found["peak_mb"] < 256


def test_a_bomb_of_parquet_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [("x" * (1 << 20)) + str(n) for n in range(64)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    with pytest.raises(LinnetError, match="looks like a compression bomb"):
        list(RecordReader(spans_of(path, size=1 << 30)[0]))


def test_text_that_packs_very_well_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "log.txt.zst"
    content = "".join(
        f"2026-01-01 00:00:00 INFO request {number} served in 12 ms\n" for number in range(800_000)
    )
    path.write_bytes(zstandard.compress(content.encode(), 3))
    assert len(content) > 40 << 20
    assert len(content) > 10 * path.stat().st_size
    assert sum(len(text) for text in read_text(path)) == len(content)


@pytest.mark.torture
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
def test_a_line_of_2_gb_is_passed_over_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    good = {"a.txt": b"good", "a.jsonl": b'{"a": 1}', "a.json": b'{"a": 1}', "a.csv": b"1"}[name]
    begin, end = (b'{"a": "', b'"}') if "json" in name else (b"", b"")
    with path.open("wb") as file:
        file.write(good + b"\n" + good + b"\n" + begin)
        for _ in range(2048):
            file.write(b"x" * (1 << 20))
        file.write(end + b"\n" + good + b"\n")
    found = read_apart(path)
    assert (found["records"], found["bad"]) == (2 if name == "a.csv" else 3, 1)
    assert found["seen"] == path.stat().st_size
    assert found["peak_mb"] < 256


@pytest.mark.torture
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_hundred_million_empty_lines_are_counted_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\n" * 100_000_000)
    found = read_apart(path)
    assert found["empty"] == 100_000_000
    assert found["peak_mb"] < 256


@pytest.mark.torture
def test_a_folder_of_100_000_tiny_files_is_listed_and_read(tmp_path: Path) -> None:
    from linnet.data.reading.sources import find_files

    for number in range(100_000):
        (tmp_path / f"{number}.txt").write_bytes(b"line\n")
    files = find_files(str(tmp_path))
    assert len(files) == 100_000
    assert sum(len(list(RecordReader(spans_of(path, size=1 << 23)[0]))) for path in files) == 100_000
