"""Finding and reading files: what is accepted, and the one sentence for what is not."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.data import sources
from linnet.data.encoding import guess_encoding
from linnet.data.sources import character_boundary, find_files, read_lines, read_text
from linnet.errors import LinnetError

WILD = Path(__file__).parents[3] / "shared" / "data" / "wild" / "encodings"


def text_of(path: Path) -> str:
    return "".join(read_text(path, stop=path.stat().st_size))


def lines_of(path: Path) -> list[tuple[int, str]]:
    return list(read_lines(path, stop=path.stat().st_size))


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
    import os

    (tmp_path / "notes.txt").write_text("The linnet sings in the hedge. " * 40)
    model = ("model.n_layer=1", "model.n_head=1", "model.n_embd=8", "tokenizer.name=char")
    command = [sys.executable, "-m", "linnet", "train", "text", "data.source=.", "model.init_from=scratch"]
    command += [*model, "train.block_size=16", "--run", "runs/here"]
    for steps in ("2", "3"):
        done = subprocess.run(
            [*command, f"train.steps={steps}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
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
        ("hf:owner/name", "cannot be read yet"),
    ],
)
def test_a_source_without_text_is_one_sentence(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "binaries").mkdir()
    (tmp_path / "binaries" / "a.bin").write_bytes(b"\0\1\2\3\0\0")
    where = source if not source or source.startswith("hf:") else str(tmp_path / source)
    with pytest.raises(LinnetError, match=words):
        find_files(where)


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    import os

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
    import tempfile

    expected = text.replace("\r\n", "\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
        if not bom:
            expected = expected.removeprefix("\ufeff")
        before, sources.BLOCK = sources.BLOCK, block
        try:
            size = path.stat().st_size
            middle = character_boundary(path, min(cut, size))
            whole = text_of(path)
            halves = [*read_text(path, stop=middle), *read_text(path, start=middle, stop=size)]
            numbered = lines_of(path)
        finally:
            sources.BLOCK = before
    if block >= 3:  # a smaller block cannot hold a byte order mark, and real ones have 256 KB
        assert whole == expected
        if not 0 < middle < 3:
            assert "".join(halves) == expected
        assert (
            [line for _, line in numbered] == expected.removesuffix("\n").split("\n")
            if expected
            else not numbered
        )
        assert [number for number, _ in numbered] == list(range(1, len(numbered) + 1))


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
    with pytest.raises(LinnetError, match=words):
        lines_of(path)


def test_the_command_in_the_message_converts_the_file(tmp_path: Path) -> None:
    import subprocess

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


def test_a_file_that_shrinks_or_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    with pytest.raises(LinnetError, match="became shorter"):
        list(read_text(path, stop=10))
    path.write_text("a" * (sources.LONGEST_LINE + sources.BLOCK))
    with pytest.raises(LinnetError, match=r"a.txt:1: the line is longer"):
        lines_of(path)


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
