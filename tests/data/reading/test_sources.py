"""Finding and reading files: what is accepted, and the one sentence for what is not."""

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.data.reading import compressed
from linnet.data.reading.compressed import content_size
from linnet.data.reading.encoding import guess_encoding
from linnet.data.reading.sources import find_files
from linnet.data.reading.text import character_boundary, read_text
from linnet.errors import LinnetError

WILD = Path(__file__).parents[4] / "shared" / "data" / "wild" / "encodings"


def text_of(path: Path) -> str:
    return "".join(read_text(path))


def test_files_of_a_folder_are_sorted_and_binary_hidden_and_empty_ones_left_out(tmp_path: Path) -> None:
    for name, data in {
        "b.txt": b"b",
        "a.md": b"a",
        "deep/down/c": b"c",
        ".hidden": b"h",
        ".git/config": b"g",
        "picture.png": b"\x89PNG\0\0\0\x01",
        "empty.txt": b"",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    said: list[str] = []
    found = find_files(str(tmp_path), say=said.append)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.md", "b.txt", "deep/down/c"]
    assert "2 empty or binary files are left out (empty.txt, picture.png)" in said[0]
    assert "left out are .git (hidden)" in said[1]
    assert find_files(str(tmp_path / "**" / "*.txt"), say=said.append) == [tmp_path / "b.txt"]
    assert find_files([str(tmp_path / "b.txt"), str(tmp_path)]) == [
        tmp_path / n for n in ("b.txt", "a.md", "deep/down/c")
    ]


def test_a_project_folder_is_read_without_what_we_write_into_it(tmp_path: Path) -> None:
    store = '{"kind": "token store", "files": {}}'
    for name, text in {
        "notes/a.txt": "a",
        "manifest.json": '{"kind": "web extension"}',
        "recipes/recipe.toml": 'name = "soup"',
        "lock": "a poem on locks",
        "prepared/text-1/manifest.json": store,
        "prepared/text-1/validation/manifest.json": store,
        "runs/one/recipe.toml": "",
        "runs/one/metrics.jsonl": "{}",
        "runs/two/recipe.toml": "",
        "runs/two/checkpoints/step-00000001/state.json": "{}",
        "runs/begun/lock": '{"host": "here", "pid": 7}',
        "env/pyvenv.cfg": "home = /usr/bin",
        ".venv/lib/x.py": "pass",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    said: list[str] = []
    expected = ["lock", "manifest.json", "notes/a.txt", "recipes/recipe.toml"]
    found = find_files(str(tmp_path), say=said.append)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == expected
    assert said == [
        f"The folder {tmp_path}: left out are .venv (hidden), env (a Python environment), "
        "prepared/text-1 (prepared data) and 3 more."
    ]
    assert find_files(str(tmp_path / "**" / "*"), say=said.append) == found
    # What is named is taken: only folders below it are looked at.
    assert find_files(str(tmp_path / "runs" / "one")) == [tmp_path / "runs" / "one" / "metrics.jsonl"]
    with pytest.raises(LinnetError, match=r"no files \(left out are begun \(a run\), one"):
        find_files(str(tmp_path / "runs"))


def test_the_second_start_in_a_project_folder_finds_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The linnet sings in the hedge. " * 40)
    model = ("model.n_layer=1", "model.n_head=1", "model.n_embd=8", "tokenizer.name=char")
    command = [sys.executable, "-m", "linnet", "train", "text", "data.source=.", "model.init_from=scratch"]
    command += [*model, "train.block_size=16", "--run", "runs/here"]
    for steps in ("2", "3"):
        done = subprocess.run(
            [*command, f"train.steps={steps}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "prepared").glob("*/"))) == 1


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert find_files(str(tmp_path)) == [tmp_path / "a.txt"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "data.source is not set"),
        ("missing.txt", "There is no .*missing.txt"),
        ("empty.txt", "is empty"),
        ("folder", "holds no files"),
        ("binaries", r"only empty or binary files \(a.bin\)"),
        ("*.nothing", "holds no files"),
    ],
)
def test_a_source_without_text_is_one_sentence(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "binaries").mkdir()
    (tmp_path / "binaries" / "a.bin").write_bytes(b"\0\1\2\3\0\0")
    where = str(tmp_path / source) if source else ""
    with pytest.raises(LinnetError, match=words):
        find_files(where)


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LinnetError, match="not a regular file"):
        find_files(str(tmp_path / "pipe"))


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("aé中😀\r\n\u2028 \ufeff"), max_size=40),
    block=st.integers(1, 7),
    bom=st.booleans(),
    cut=st.integers(0, 100),
)
def test_blocks_of_any_size_and_a_cut_anywhere_give_the_same_text(
    text: str, block: int, bom: bool, cut: int
) -> None:
    expected = text.replace("\r\n", "\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
        if not bom:
            expected = expected.removeprefix("\ufeff")
        before, compressed.BLOCK = compressed.BLOCK, block
        try:
            size = path.stat().st_size
            middle = character_boundary(path, min(cut, size))
            whole = text_of(path)
            halves = [*read_text(path, stop=middle), *read_text(path, start=middle, stop=size)]
        finally:
            compressed.BLOCK = before
    if block >= 3:  # a smaller block cannot hold a byte order mark, and real ones have 256 KB
        assert whole == expected
        if not 0 < middle < 3:
            assert "".join(halves) == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"one\ntwo \xff three\n", r"a.txt:2: byte 8 \(0xFF\) is not UTF-8"),
        (
            b"caf\xe9 au lait, d\xe9j\xe0 vu\n" * 3,
            r"a.txt:1: byte 3 .* looks like WINDOWS-1252. Convert it: iconv",
        ),
        ("déjà vu à Noël\n".encode() * 9 + b"caf\xe9\n", r"a.txt:10: byte 174 .* damaged there.*iconv -c"),
        (b"cut in \xe4\xb8", r"a.txt:1: byte 7 \(0xE4\)"),
        (b"one\ntwo\0three\n", "a.txt:2: byte 7 is NUL, so this is no text file"),
        ("héllo\n".encode("utf-16"), "looks like UTF-16. Convert it: iconv -f UTF-16 -t UTF-8"),
        ("hello there\n".encode("utf-16-be"), "looks like UTF-16BE"),
    ],
)
def test_what_is_not_utf8_is_named_with_line_byte_and_remedy(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(LinnetError, match=words):
        text_of(path)


def test_the_command_in_the_message_converts_the_file(tmp_path: Path) -> None:
    path = tmp_path / "with space.txt"
    path.write_bytes("Où est l’été, garçon ? Déjà à Noël.\n".encode("cp1252"))
    with pytest.raises(LinnetError) as caught:
        text_of(path)
    subprocess.run(str(caught.value).split("Convert it: ")[1], shell=True, check=True)
    assert text_of(tmp_path / "with space.utf8.txt").startswith("Où est l’été")


def test_a_bad_byte_far_into_a_file_is_found_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("née\n".encode() * 200_000 + b"\x80\n")
    with pytest.raises(LinnetError, match=r"a.txt:200001: byte 1000000 \(0x80\)"):
        text_of(path)


def test_a_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    with pytest.raises(LinnetError, match="became shorter"):
        list(read_text(path, stop=10))
    path = pack(path)
    with pytest.raises(LinnetError, match="became shorter"):
        list(read_text(path, stop=10))


def pack(path: Path, suffix: str = ".gz") -> Path:
    """The same file as .gz or .zst."""
    data = path.read_bytes()
    packed = path.with_name(path.name + suffix)
    packed.write_bytes(gzip.compress(data) if suffix == ".gz" else zstandard.compress(data))
    return packed


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_text_is_read_like_the_text_itself(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "Où est l'été ?\r\nIci.\r".encode() * 50_000)
    packed = pack(path, suffix)
    size = path.stat().st_size
    seen: list[bytes] = []
    assert "".join(read_text(packed, observe=seen.append)) == text_of(path)
    assert b"".join(seen) == packed.read_bytes()
    assert content_size(packed) == size == content_size(path)
    for offset in (0, 5, size // 2, size // 2 + 1, size):
        cut = character_boundary(path, offset)
        assert character_boundary(packed, offset) == cut
        halves = [*read_text(packed, stop=cut), *read_text(packed, start=cut, stop=size)]
        assert "".join(halves) == text_of(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_wrong_byte_in_a_packed_text_is_found_at_its_place_and_the_remedy_works(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "with space.txt"
    path.write_bytes(b"plain\n" * 100_000 + "Où est l’été, garçon ? Déjà à Noël.\n".encode("cp1252"))
    packed = pack(path, suffix)
    with pytest.raises(LinnetError, match=r"txt.\w+:100001: byte 600001 \(0xF9\).*WINDOWS-1252") as caught:
        text_of(packed)
    command = str(caught.value).split("Convert it: ")[1]
    if suffix == ".gz" or shutil.which("zstd"):
        subprocess.run(command, shell=True, check=True)
        assert text_of(tmp_path / "with space.utf8.txt").endswith("Déjà à Noël.\n")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_text_that_is_cut_short_or_no_pack_at_all_is_refused_after_what_is_whole(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {number}\n" for number in range(100_000)))
    packed = pack(path, suffix)
    packed.write_bytes(packed.read_bytes()[:-20])
    read: list[str] = []
    with pytest.raises(LinnetError, match=r"ends early \(after byte [0-9,]+ of its content"):
        read.extend(read_text(packed))
    assert len("".join(read)) > 0.5 * path.stat().st_size
    assert text_of(path).startswith("".join(read))
    packed.write_text("This is no archive.")
    with pytest.raises(LinnetError, match="is damaged"):
        text_of(packed)


def test_members_and_frames_that_follow_each_other_are_one_file(tmp_path: Path) -> None:
    members = [f"{number} ".encode() * 30_000 for number in range(5)]
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    (tmp_path / "a.txt.gz").write_bytes(b"".join(map(gzip.compress, members)) + bytes(512))
    (tmp_path / "a.txt.zst").write_bytes(skippable.join(map(zstandard.compress, members)))
    for name in ("a.txt.gz", "a.txt.zst"):
        assert text_of(tmp_path / name).encode() == b"".join(members)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"whole") + b"tail")
    with pytest.raises(LinnetError, match="after byte 5 of"):
        text_of(tmp_path / "a.txt.gz")


def test_packed_files_and_parquet_are_found_and_packed_binaries_are_not(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl", "c.json", "d.csv", "e.tsv", "notes"):
        (tmp_path / name).write_text("a,b")
        pack(tmp_path / name)
        pack(tmp_path / name, ".zst")
    (tmp_path / "f.parquet").write_bytes(b"PAR1\0\0")
    (tmp_path / "g.txt.gz").write_bytes(b"not a gzip file")
    (tmp_path / "photos.tar").write_bytes(bytes(10_000))
    pack(tmp_path / "photos.tar")
    (tmp_path / "empty").touch()
    pack(tmp_path / "empty", ".zst")
    said: list[str] = []
    names = {path.name for path in find_files(str(tmp_path), say=said.append)}
    assert len(names) == 6 * 3 + 2
    assert "4 empty or binary files are left out (empty, empty.zst, photos.tar and 1 more)" in said[0]
    assert {path.name for path in find_files(str(tmp_path / "*.gz"))} == {n for n in names if n[-2:] == "gz"}
    with pytest.raises(LinnetError, match=r"only empty or binary files \(photos.tar.gz\)"):
        find_files(str(tmp_path / "*.tar.gz"))


@pytest.mark.skipif(not WILD.is_dir(), reason=f"{WILD} is missing")
@pytest.mark.parametrize(
    ("name", "encoding", "place"),
    [
        ("Chinese_Mandarin-GB2312", "GB18030", ":1: byte 0 "),
        ("Hungarian_Magyar-Unicode", "UTF-16", ": byte 3 "),
        ("Japanese_Nihongo-SJIS", "SHIFT_JIS", ":1: byte 0 "),
        ("Russian_Russky-Cyrillic", "WINDOWS-1251", ":1: byte 0 "),
        ("french.txt", "WINDOWS-1252", ":1: byte 24 "),
        ("swedish.txt", "CP850", ":2: byte 58 "),
    ],
)
def test_files_of_real_people(name: str, encoding: str, place: str) -> None:
    with pytest.raises(
        LinnetError, match=f"looks like {encoding}. Convert it: iconv -f {encoding} "
    ) as caught:
        text_of(WILD / name)
    assert f"{name}{place}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "encoding", "guess"),
    [
        (
            "Le cœur a ses raisons que la raison ne connaît point : « été », déjà vu à Noël.",
            "mac_roman",
            "MACINTOSH",
        ),
        ("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.", "cp1252", "WINDOWS-1252"),
        ("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.", "cp850", "CP850"),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю.", "koi8_r", "KOI8-R"),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю.", "cp866", "CP866"),
        ("Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.", "cp1253", "WINDOWS-1253"),
        ("Pchnąć w tę łódź jeża lub ośm skrzyń fig.", "cp1250", "WINDOWS-1250"),
        ("人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心。", "big5", "BIG5"),
        ("すべての人間は、生れながらにして自由であり、平等である。", "euc_jp", "EUC-JP"),
        ("모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.", "cp949", "EUC-KR"),
    ],
)
def test_guess_of_an_encoding(text: str, encoding: str, guess: str) -> None:
    assert guess_encoding(text.encode(encoding) * 4) == guess
