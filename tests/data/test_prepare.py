"""Preparing: what lies in a store, what is held out, when it is built again, and what bad input gets."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from linnet.config import DataConfig, TokenizerConfig
from linnet.data.prepare import prepare
from linnet.data.store import Store
from linnet.errors import DiskError, LinnetError, RunLockedError
from linnet.files import Lock
from linnet.tokenizer import END_OF_TEXT, load_tokenizer, train_char
from tests import faults
from tests.data.stores import lines_store, make_store, text_store

SHARED = Path(__file__).parents[3] / "shared" / "data"
SHAKESPEARE = SHARED / "text" / "tinyshakespeare.txt"
GPT2 = SHARED / "gpt2-tokenizer"


def texts_of(store: Store) -> list[str]:
    """The text of each example."""
    tokenizer = store.tokenizer()
    return [tokenizer.decode(store.tokens[a:b].tolist()) for a, b in pairwise(store.examples.tolist())]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_line_is_an_example_with_end_of_text_on_both_sides(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n  two \n\t\nthree")
    store = make_store(tmp_path, source=str(path), format="lines", validation=0.0)
    end = store.end_of_text
    assert texts_of(store) == ["one", "  two ", "three"]
    for a, b in pairwise(store.examples.tolist()):
        assert store.tokens[a] == store.tokens[b - 1] == end
        assert store.learn[a:b].tolist() == [0] + [1] * (b - a - 1)
    counts = {"rows": 3, "examples": 3, "tokens": 20, "learned_tokens": 17, "bytes": 14}
    counts |= {"source_tokens": 14, "present_tokens": 14, "windowed": 0, "shortened": 0}
    assert store.manifest["counts"] == counts
    assert store.manifest["dropped"] == {"empty line": 2}
    assert (store.pairs, store.longest, store.tokens.dtype) == (17, 7, np.uint16)
    assert store.validation is None
    assert (store.folder / "quarantine.jsonl").read_bytes() == b""


def test_a_document_is_cut_where_the_held_out_share_begins(tmp_path: Path) -> None:
    store = text_store(tmp_path, "0123456789", "abcdeéfghi\r\nXY", validation=0.3)
    assert store.validation is not None
    end = store.end_of_text
    # The second text has 15 bytes, of which 10 are a to h (é has two); its CR LF is one newline.
    assert texts_of(store) == ["0123456", "abcdeéfgh"]
    assert texts_of(store.validation) == ["789", "i\nXY"]
    for part in (store, store.validation):
        for a, b in pairwise(part.examples.tolist()):
            assert (part.tokens[a] == end, part.tokens[b - 1] == end) == (part is store, part is not store)
            assert part.learn[a:b].tolist() == [0] + [1] * (b - a - 1)
    assert store.manifest["counts"]["bytes"] == 7 + 10
    assert store.validation.manifest["counts"]["bytes"] == 3 + 4
    assert store.manifest["sources"][1]["bytes"] == 15


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason=f"{SHAKESPEARE} is missing")
def test_tinyshakespeare_is_split_like_nanogpt(tmp_path: Path) -> None:
    """nanoGPT: data[:int(n * 0.9)] and the rest; 1,003,854 and 111,540 characters of 65 kinds."""
    store = make_store(tmp_path, source=str(SHAKESPEARE), format="text", validation=0.1)
    text = SHAKESPEARE.read_text(encoding="utf-8")
    assert store.validation is not None
    assert texts_of(store) == [text[: int(len(text) * 0.9)]]
    assert texts_of(store.validation) == [text[int(len(text) * 0.9) :]]
    assert (len(store.tokens), len(store.validation.tokens)) == (1_003_855, 111_541)
    kinds = sorted(set(text))
    assert store.vocab_size == 66
    assert store.tokens[1:100].tolist() == [kinds.index(c) for c in text[:99]]


@pytest.mark.skipif(not (SHAKESPEARE.is_file() and GPT2.is_dir()), reason=f"{SHARED} is missing")
def test_tinyshakespeare_in_gpt2s_tokens_has_nanogpts_counts(tmp_path: Path) -> None:
    """nanoGPT's README: "train has 301,966 tokens", "val has 36,059 tokens"."""
    store = make_store(tmp_path, source=str(SHAKESPEARE), format="text", validation=0.1, tokenizer=str(GPT2))
    assert store.validation is not None
    assert (len(store.tokens) - 1, len(store.validation.tokens) - 1) == (301_966, 36_059)


def test_rows_are_held_out_by_their_hash(tmp_path: Path) -> None:
    rows = [f"row {i}" for i in range(400)]
    some = lines_store(tmp_path / "some", rows[:300], validation=0.2)
    more = lines_store(tmp_path / "more", [*rows, *rows[:50]], validation=0.2)
    assert some.validation is not None
    assert more.validation is not None
    held_out = set(texts_of(some.validation))
    assert 30 <= len(held_out) <= 90
    assert held_out == set(texts_of(more.validation)) & set(rows[:300])  # adding rows moves none
    assert not set(texts_of(more.validation)) & set(texts_of(more))  # nor do copies fall on the other side
    assert sorted(texts_of(more) + texts_of(more.validation)) == sorted([*rows, *rows[:50]])


def test_too_few_rows_hold_nothing_out_and_that_is_said(tmp_path: Path) -> None:
    few = lines_store(tmp_path / "few", ["a", "b", "c"], validation=0.5)
    assert few.validation is None
    assert any("3 rows are too few" in note for note in few.notes)
    equal = lines_store(tmp_path / "equal", ["all the same"] * 40, validation=0.999)
    assert len(texts_of(equal)) == 40
    assert any("nothing is held out" in note for note in equal.notes)
    tiny = text_store(tmp_path / "tiny", "x", validation=0.1)
    assert (texts_of(tiny), tiny.validation) == (["x"], None)
    assert tiny.notes
    none = lines_store(tmp_path / "none", ["a", "b", "c"], validation=0.0)
    assert none.notes == []


@pytest.mark.parametrize("form", ["text", "lines"])
def test_a_source_of_its_own_is_held_out_whole(tmp_path: Path, form: str) -> None:
    (tmp_path / "train.txt").write_text("training\nrows")
    (tmp_path / "test.txt").write_text("held out\nßymbols")
    store = make_store(
        tmp_path, source=str(tmp_path / "train.txt"), format=form, validation=str(tmp_path / "test.txt")
    )
    assert store.validation is not None
    end = "\n" if form == "text" else "|"
    assert end.join(texts_of(store)) == f"training{end}rows"
    assert (
        end.join(texts_of(store.validation)) == f"held out{end}ßymbols"
    )  # its characters are in the vocabulary
    assert store.validation.tokens[0] == store.validation.tokens[-1] == store.end_of_text


@pytest.mark.parametrize("source", ["notes", "notes/*.txt", ["notes/a.txt", "notes/val.txt"]])
def test_a_file_that_both_keys_name_is_held_out_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | list[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("training text")
    (tmp_path / "notes" / "val.txt").write_text("held out")
    (tmp_path / "link").symlink_to(tmp_path / "notes" / "val.txt")
    monkeypatch.chdir(tmp_path)
    for validation in ("notes/val.txt", "link"):
        store = make_store(tmp_path, source=source, format="text", validation=validation)
        assert store.validation is not None
        assert (texts_of(store), texts_of(store.validation)) == (["training text"], ["held out"])
        assert store.notes == [
            "1 file of data.source, named by data.validation as well, is held out and not trained on."
        ]
    with pytest.raises(LinnetError, match="holds out every file of"):
        make_store(tmp_path, source=source, format="text", validation="notes")


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_training_rows_that_are_equal_to_held_out_rows_are_dropped(tmp_path: Path, tokenizer: str) -> None:
    test = tmp_path / "test.txt"
    test.write_text("shared zzzz\r\n\nonly here\nshared zzzz\n")
    rows = ["one", "shared zzzz", "", "two", "shared zzzz ", "shared zzzz", "three"]
    store = lines_store(tmp_path, rows, validation=str(test), tokenizer=tokenizer)
    assert store.validation is not None
    assert texts_of(store) == ["one", "two", "three"]
    assert texts_of(store.validation) == ["shared zzzz", "only here", "shared zzzz"]
    assert store.manifest["dropped"] == {
        "empty line": 2,
        "equal to a held-out row": 2,
        "nearly equal to a held-out row": 1,  # a space at its end
    }
    assert "2 training rows are left out: each is equal to a held-out row." in store.notes
    with pytest.raises(LinnetError, match=r"no text to train on .1 empty lines, 1 equal to a held-out row"):
        lines_store(tmp_path, ["only here"], validation=str(test))
    test.write_text("\n \n")
    blank = lines_store(tmp_path, rows, validation=str(test))
    assert (blank.validation, len(texts_of(blank))) == (None, 6)
    assert any("holds no text" in note for note in blank.notes)


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        ("missing.txt", r"There is no missing.txt .*; check the path in data.validation\."),
        ("~nobody-here/x.txt", r"There is no ~nobody-here/x.txt .*; check the path in data.validation\."),
        ("10%", r"data.validation=10% is no file; .* data.validation=0.1\."),
        (" 2.5 %", r"data.validation=0.025\."),
        ("0,2", r"data.validation=0.2\."),
        ("100%", r"a number below 1, as in data.validation=0.1\."),
        ("hf:owner/name", "hf:owner/name: cannot be had"),
    ],
)
def test_a_wrong_held_out_source_is_named_by_its_key(tmp_path: Path, validation: str, words: str) -> None:
    with pytest.raises(LinnetError, match=words) as caught:
        lines_store(tmp_path, ["one", "two"], validation=validation)
    assert "data.source" not in str(caught.value)


def test_the_held_out_text_teaches_a_bpe_nothing(tmp_path: Path) -> None:
    store = text_store(tmp_path, "aaaa bbbb " * 90 + "zzzz " * 180, validation=0.5, tokenizer="bpe")
    tokenizer = store.tokenizer()
    assert len(tokenizer.encode(" aaaa")) == 1
    assert len(tokenizer.encode("zzzz")) == 4
    assert any("vocabulary" in note for note in store.notes)


def test_control_tokens_in_a_file_are_plain_characters(tmp_path: Path) -> None:
    """D4 for the data road: split, nested, escaped, alone, in text and in lines."""
    lines = [
        END_OF_TEXT,
        f"<|{END_OF_TEXT}|>",
        "<|endof",
        "text|>",
        f"a{END_OF_TEXT}b",
        "&lt;|endoftext|&gt;",
        "\\u003c|",
    ]
    for kind in ("bpe", "char", *([str(GPT2)] if GPT2.is_dir() else [])):
        name = "gpt2" if "/" in kind else kind
        by_line = lines_store(tmp_path / f"{name}-lines", lines * 30, tokenizer=kind)
        assert texts_of(by_line) == lines * 30
        assert np.count_nonzero(by_line.tokens == by_line.end_of_text) == 2 * len(lines) * 30
        whole = text_store(tmp_path / f"{name}-text", "\n".join(lines) * 30, tokenizer=kind)
        assert texts_of(whole) == ["\n".join(lines) * 30]
        assert np.count_nonzero(whole.tokens == whole.end_of_text) == 2


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [f"row {i} of the same input" for i in range(300)]
    first = lines_store(tmp_path, rows, tokenizer="bpe", validation=0.1)
    first_files = files_of(first.folder)
    assert lines_store(tmp_path, rows, tokenizer="bpe", validation=0.1).fingerprint == first.fingerprint
    again = make_store(
        tmp_path / "again",
        source=str(tmp_path / "lines.txt"),
        format="lines",
        validation=0.1,
        tokenizer="bpe",
    )
    second_files = files_of(again.folder)
    assert second_files.keys() == first_files.keys()
    # lines.txt was written twice, so its time, which the manifest holds, differs.
    assert [name for name in first_files if first_files[name] != second_files[name]] == ["manifest.json"]
    assert again.fingerprint == first.fingerprint


def test_a_store_that_fits_is_used_and_one_that_does_not_is_built_again(tmp_path: Path) -> None:
    store = text_store(tmp_path, "the first text " * 20, validation=0.1)
    source = tmp_path / "texts" / "000.txt"

    def inode(**data: object) -> int:
        text = {"source": str(tmp_path / "texts"), "format": "text", "validation": 0.1, **data}
        return make_store(tmp_path, **text).folder.stat().st_ino

    before = store.folder.stat().st_ino
    assert inode() == before
    os.utime(source)  # another time, the same content
    assert inode() == before
    moved = source.rename(source.with_name("renamed.txt"))
    assert inode() == before
    assert inode(validation=0.2) != before
    again = inode()
    moved.write_text("the First text " * 20)
    assert inode() not in (before, again)


def test_one_byte_of_data_or_tokenizer_changes_the_fingerprint(tmp_path: Path) -> None:
    base = text_store(tmp_path / "0", "some text, more text", validation=0.3)
    other = text_store(tmp_path / "1", "some text, more texu", validation=0.3)  # in the held-out part
    bpe = text_store(tmp_path / "2", "some text, more text", validation=0.3, tokenizer="bpe")
    same = text_store(tmp_path / "3", "some text, more text", validation=0.3)
    assert len({base.fingerprint, other.fingerprint, bpe.fingerprint}) == 3
    assert same.fingerprint == base.fingerprint


def test_a_damaged_store_is_refused_by_name_and_prepared_again(tmp_path: Path) -> None:
    store = text_store(tmp_path, "the linnet sings " * 20, validation=0.1)
    intact = files_of(store.folder)
    for name in (
        "tokens.bin",
        "learn.bin",
        "examples.npy",
        "validation/tokens.bin",
        "tokenizer/tokenizer.json",
    ):
        path = store.folder / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(LinnetError, match=path.name):
            Store.open(store.folder)
        mended = text_store(tmp_path, "the linnet sings " * 20, validation=0.1)
        assert "Prepared again" in mended.notes[-1]
        assert name.split("/")[-1] in mended.notes[-1]
        after = files_of(store.folder)
        assert {n for n in intact if after[n] != intact[n]} <= {"manifest.json"}  # the source's time


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("three years of work")
    with pytest.raises(LinnetError, match=r"set data\.prepared to another folder"):
        text_store(tmp_path, "some text")
    assert (tmp_path / "store" / "thesis.txt").read_text() == "three years of work"


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("some text")
    data = DataConfig(source=str(tmp_path / "a.txt"), validation=0.0)
    for name, words in (
        ("full", "not empty and holds no prepared data"),
        ("empty", "the folder that you are in"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / "full" / "thesis.txt").write_text("three years of work")
        monkeypatch.chdir(tmp_path / name)
        for folder in (Path(), Path("../empty/..") / name):
            with pytest.raises(LinnetError, match=words):
                prepare(data, TokenizerConfig(name="char"), folder=folder)
    assert {path.name for path in (tmp_path / "full").iterdir()} == {"thesis.txt"}
    with pytest.raises(LinnetError, match="is a file"):
        prepare(data, TokenizerConfig(name="char"), folder=tmp_path / "a.txt")
    made = prepare(data, TokenizerConfig(name="char"), folder=tmp_path / "store")
    monkeypatch.chdir(tmp_path / "store")
    assert prepare(data, TokenizerConfig(name="char"), folder=Path()).fingerprint == made.fingerprint


def test_a_given_tokenizer_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abba")
    given = train_char(iter(["abcdef"]))
    config = TokenizerConfig(name="auto")
    data = DataConfig(source=str(tmp_path / "a.txt"), validation=0.0)
    store = prepare(data, config, folder=tmp_path / "store", tokenizer_from=given)
    assert store.tokens.tolist() == [6, 0, 1, 1, 0, 6]
    assert store.manifest["tokenizer"] == given.fingerprint
    other = prepare(data, config, folder=tmp_path / "store", tokenizer_from=train_char(iter(["xab"])))
    assert other.tokens.tolist() == [3, 0, 1, 1, 0, 3]
    (tmp_path / "a.txt").write_text("abbey")
    with pytest.raises(LinnetError, match=r"'y' \(U\+0079\) is not in this character vocabulary"):
        prepare(data, config, folder=tmp_path / "store", tokenizer_from=given)
    assert Store.open(tmp_path / "store").fingerprint == other.fingerprint  # the old one is still there


@pytest.mark.parametrize("tokenizer", ["bpe", "char"])
def test_more_than_65_535_ids_take_four_bytes(tmp_path: Path, tokenizer: str) -> None:
    if tokenizer == "bpe":
        from linnet.data.store import token_type

        assert [token_type(n).itemsize for n in (257, 65_535, 65_536)] == [2, 2, 4]
        return
    text = "".join(chr(i) for i in range(0x10000, 0x10000 + 65_535))
    store = text_store(tmp_path, text)
    assert (store.vocab_size, store.tokens.dtype) == (65_536, np.uint32)
    assert texts_of(store) == [text]


@pytest.mark.parametrize(
    ("data", "form", "words"),
    [
        (b"\n \n\t\n", "lines", "no text to train on .3 empty lines"),
        (b"\xef\xbb\xbf", "text", "no text to train on"),
        (b"fine\nbad \xff\n", "lines", r"1 of 2 rows cannot .* \(0xFF\) is not UTF-8.*a.txt:2: byte 5\."),
        (b"fine\nbad \xff\n", "text", r"a.txt:2: byte 9 \(0xFF\) is not UTF-8"),
        (b"a\0b", "text", "is NUL"),
        (b"", "text", "is empty"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, data: bytes, form: str, words: str
) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    for tokenizer in ("char", "bpe", *([str(GPT2)] if GPT2.is_dir() else [])):
        with pytest.raises(LinnetError, match=words):
            make_store(tmp_path, source=str(tmp_path / "a.txt"), format=form, tokenizer=tokenizer)
        assert {path.name for path in tmp_path.iterdir()} == {"a.txt", ".store.lock"}


def test_progress_goes_up_to_the_total(tmp_path: Path) -> None:
    for tokenizer, passes in (("char", 2), ("bpe", 2), *([(str(GPT2), 1)] if GPT2.is_dir() else [])):
        for form in ("text", "lines"):
            seen: list[tuple[int, int]] = []
            folder = tmp_path / f"{passes}{form}{tokenizer[-4:]}"
            folder.mkdir()
            (folder / "a.txt").write_text("some text\n" * 30_000)
            make_store(
                folder,
                source=str(folder / "a.txt"),
                format=form,
                tokenizer=tokenizer,
                progress=lambda done, total, seen=seen: seen.append((done, total)),
            )
            assert seen[-1] == (300_000 * passes, 300_000 * passes)
            assert [done for done, _ in seen] == sorted(done for done, _ in seen)
            assert len(seen) >= 2


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    from linnet import files

    with files.Lock(tmp_path / ".store.lock"), pytest.raises(RunLockedError, match=f"pid {os.getpid()}"):
        text_store(tmp_path, "some text")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = text_store(tmp_path, "the first text " * 20)
    from linnet.files import operations

    real, calls = operations.write, []

    def write(descriptor: int, data: memoryview) -> int:
        calls.append(1)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(operations, "write", write)
    with pytest.raises(DiskError, match="store"):
        text_store(tmp_path, "the second text " * 20)
    monkeypatch.undo()
    assert Store.open(store.folder).fingerprint == store.fingerprint
    assert not (tmp_path / ".store.tmp").exists()


def test_killed_at_any_moment_the_next_start_gives_a_whole_store(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(20_000)))
    code = (
        "import os, sys; from pathlib import Path; from linnet.files import operations; calls = 0\n"
        "def hook(real):\n"
        "    def call(*arguments):\n"
        "        global calls\n"
        "        calls += 1\n"
        "        if calls == int(sys.argv[2]): os.kill(os.getpid(), 9)\n"
        "        return real(*arguments)\n"
        "    return call\n"
        "for name in operations.NAMES: setattr(operations, name, hook(getattr(operations, name)))\n"
        "from tests.data.stores import make_store\n"
        "folder = Path(sys.argv[1])\n"
        "store = make_store(folder, source=str(folder / 'a.txt'), format='lines', validation=0.1)\n"
        "print(store.fingerprint, calls)\n"
    )

    def start(kill_at: int) -> str:
        command = [sys.executable, "-c", code, str(tmp_path), str(kill_at)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == (0 if done.stdout else -9), done.stderr
        return done.stdout

    clean, calls = start(0).split()
    import shutil

    shutil.rmtree(tmp_path / "store")
    total = int(calls)
    for kill_at in (3, total // 3, total // 2, 12, 7):  # what is made before a kill is not made again
        assert start(kill_at) == ""
    assert start(0).split()[0] == clean
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "store", ".store.lock"}


MEASURE = """
import json, resource, sys, time
from pathlib import Path
from tests.data.stores import make_store
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
folder, source, form, tokenizer = sys.argv[1:]
make_store(Path(folder, "small"), source=source + ".small", format=form, tokenizer=tokenizer)
before, started = peak(), time.perf_counter()
make_store(Path(folder, "large"), source=source, format=form, tokenizer=tokenizer, vocab_size=2000)
print(json.dumps({"before": before, "growth": peak() - before, "seconds": time.perf_counter() - started}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (SHAKESPEARE.is_file() and GPT2.is_dir()), reason=f"{SHARED} is missing")
@pytest.mark.parametrize(
    ("form", "tokenizer", "copies"), [("text", "gpt2", 50), ("text", "char", 180), ("lines", "bpe", 50)]
)
def test_memory_stays_flat(tmp_path: Path, form: str, tokenizer: str, copies: int) -> None:
    """200 MB (characters) or 57 MB grow the peak of a 4 MB file by less than 100 MB."""
    text = SHAKESPEARE.read_bytes()
    source = tmp_path / "large.txt"
    with source.open("wb") as file:
        for number in range(copies):
            file.write(text.replace(b"the", b"the%d" % number))
    (tmp_path / "large.txt.small").write_bytes(text * 4)
    name = str(GPT2) if tokenizer == "gpt2" else tokenizer
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(source), form, name]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    size = source.stat().st_size / 1e6
    print(f"\n{form} {tokenizer}: {size:.0f} MB, {size / found['seconds']:.1f} MB/s, {found}")
    assert found["growth"] < 100
    stored = load_tokenizer(str(tmp_path / "large" / "store"))
    assert stored.vocab_size > 60


def test_old_parts_of_other_settings_are_cleared_unless_somebody_works_on_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("\n".join(f"The linnet sings song {i}." for i in range(100)))
    places = {name: tmp_path / f"lines-{name * 12}" for name in "abcde"}

    def make(name: str, size: int) -> Store:
        data = DataConfig(source=str(path), format="lines", max_rows=size)
        return prepare(data, TokenizerConfig(name="char"), folder=places[name])

    def left() -> set[str]:
        assert {found.name.split("-")[0] for found in tmp_path.glob(".*")} <= {".lines", ".linesman"}
        return {found.name[7] for found in tmp_path.glob(".lines-*.parts")}

    for name in "abc":
        with faults.crash_at(30):
            make(name, 50 + ord(name))
    assert left() == set("abc")
    other = tmp_path / ".linesman-aaaaaaaaaaaa.parts"
    other.mkdir()
    (other / "identity.json").write_text("{}")
    notes = make("d", 90).notes
    assert [note.split(" ")[0] for note in notes] == [
        str(tmp_path / f".{places[n].name}.parts") for n in "abc"
    ]
    assert "removed after 7 days" in notes[0]
    assert left() == set("abc")

    week = 7 * 24 * 3600 + 60
    for found in tmp_path.glob(".lines*.parts"):
        os.utime(found, (found.stat().st_atime - week, found.stat().st_mtime - week))
    with Lock(tmp_path / f".{places['b'].name}.lock"):  # somebody works on this one
        assert make("e", 91).notes == []
        assert left() == {"b"}
    make("b", 50 + ord("b"))
    assert left() == set()
    assert sorted(found.name[7] for found in tmp_path.glob(".lines-*") if found.suffix != ".lock") == []
    assert other.is_dir(), "of another recipe"


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_column_that_begins_late_is_read(tmp_path: Path, suffix: str) -> None:
    rows = [{"question": f"What sings {i}?", "answer": f"Bird {i}."} for i in range(1200)]
    rows += [{"system": "Be short.", "question": f"And {i}?", "answer": "It does."} for i in range(3)]
    path = tmp_path / f"rows.{suffix}"
    path.write_text("\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows))
    store = make_store(tmp_path, source=str(path), format="instruct", validation=0.0)
    texts = texts_of(store)
    assert len(texts) == 1203
    assert texts[-1] == "system: Be short.\nuser: And 2?\nassistant: It does."
    assert sum(text.startswith("system:") for text in texts) == 3


def test_a_tokenizer_is_not_trained_on_what_many_small_files_hold_out(tmp_path: Path) -> None:
    def make(count: int) -> Store:
        """Each row is in a file of its own, with a word of its own, twice."""
        source = tmp_path / str(count)
        source.mkdir()
        for i in range(count):
            word = "".join("bcdfghjklm"[int(digit)] for digit in f"{i:03}")
            (source / f"{i}.txt").write_text(f"a {word} {word}")
        data = DataConfig(source=str(source), format="lines", validation=0.3)
        return prepare(data, TokenizerConfig(name="bpe", vocab_size=2000), folder=tmp_path / f"{count}-store")

    def word_lengths(store: Store, part: Store) -> set[int]:
        """How many ids the words of the rows of `part` are."""
        tokenizer = store.tokenizer()
        return {len(tokenizer.encode(text[text.rindex(" ") :])) for text in texts_of(part)}

    store = make(100)
    assert store.validation is not None
    assert word_lengths(store, store) == {1}
    assert min(word_lengths(store, store.validation)) > 1
    few = make(15)  # too few to hold some out, so all are trained on
    assert few.validation is None
    assert word_lengths(few, few) == {1}
