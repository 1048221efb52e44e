"""The demo's corpus: large enough, in pydoc's look, the same each time, and nothing is run to get it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from linnet.data import pydocs
from linnet.data.pydocs import CorpusReport, Entry, render, write_corpus
from linnet.errors import LinnetError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusReport:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def text_of(report: CorpusReport, name: str) -> str:
    return (report.folder / name).read_text(encoding="utf-8")


def test_the_report_says_what_was_found(corpus: CorpusReport) -> None:
    files = sorted(corpus.folder.glob("*.txt"))
    assert corpus.bytes == sum(path.stat().st_size for path in files)
    assert corpus.bytes > 2_000_000
    assert corpus.topics > 70
    assert len(files) == corpus.topics + corpus.modules
    assert corpus.docstrings > 5_000
    assert f"{corpus.docstrings:,} docstrings" in str(corpus)


def test_it_looks_like_pydoc(corpus: CorpusReport) -> None:
    text = text_of(corpus, "module-textwrap.txt")
    assert text.startswith("Help on module textwrap:\n\nNAME\n    textwrap - Text wrapping and filling.\n")
    assert (
        "\n    dedent(text)\n        Remove any common leading whitespace from every line in `text`.\n"
        in text
    )
    assert "\nCLASSES\n    class TextWrapper\n        Object for wrapping/filling text." in text
    assert "\n        fill(self, text)\n            fill(text : string) -> string\n" in text
    assert text_of(corpus, "topic-for.txt").startswith('The "for" statement\n')


def test_what_is_written_in_c_is_there_under_its_public_name(corpus: CorpusReport) -> None:
    builtins = text_of(corpus, "module-builtins.txt")
    assert "\n        join(self, iterable, /)\n            Concatenate any number of strings.\n" in builtins
    assert "\n    len(obj, /)\n        Return the number of items in a container.\n" in builtins
    assert "sqrt(x, /)\n        Return the square root of x.\n" in text_of(corpus, "module-math.txt")
    assert "    getcwd()\n        Return a unicode string" in text_of(corpus, "module-os.txt")
    assert "Struct" in text_of(corpus, "module-struct.txt")
    for private in ("struct", "json", "io", "decimal", "datetime"):
        assert not (corpus.folder / f"module-_{private}.txt").exists()


def test_the_text_is_clean(corpus: CorpusReport) -> None:
    for path in sorted(corpus.folder.glob("*.txt")):
        text = path.read_bytes().decode("utf-8")
        assert text.endswith("\n")
        assert not any(bad in text for bad in ("\t", "\r", " \n", "\n\n\n", "\0")), path.name
        assert str(Path.home()) not in text


def test_the_same_python_writes_the_same_bytes_in_another_process(
    corpus: CorpusReport, tmp_path: Path
) -> None:
    """Also: no module of the library is run, no word is printed, and it takes seconds (2.2 of processor time here)."""
    program = (
        "import sys, time; from pathlib import Path; from linnet.data.pydocs import write_corpus\n"
        "started = time.process_time(); before = set(sys.modules)\n"
        "write_corpus(Path(sys.argv[1]))\n"
        "assert time.process_time() - started < 10, 'slow'\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'this', 'antigravity', 'tkinter', 'turtle', 'idlelib', 'readline', 'torch'}, new\n"
        "assert len(new) < 60, sorted(new)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONOPTIMIZE": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ours = {path.name: path.read_bytes() for path in corpus.folder.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ours


def test_a_second_time_changes_only_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library, folder = tmp_path / "library", tmp_path / "corpus"
    library.mkdir()
    for name in ("json", "csv"):
        (library / f"{name}.py").write_text('"""The module."""')
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(library))
    monkeypatch.setattr(pydocs, "IN_C", set())
    first = write_corpus(folder)
    good, cut, stale = (folder / f"module-{name}.txt" for name in ("json", "csv", "gone"))
    before, whole = good.stat().st_mtime_ns, cut.read_bytes()
    cut.write_bytes(whole[:10])
    stale.write_text("from another Python")
    time.sleep(0.01)
    assert write_corpus(folder) == first
    assert good.stat().st_mtime_ns == before
    assert cut.read_bytes() == whole
    assert not stale.exists()


def test_rendering_of_nested_classes_and_modules_without_a_title() -> None:
    text = render(
        [
            Entry("m", "", "", "This begins with a\nparagraph."),
            Entry("m", "A", "(Base)", "A class.", is_class=True),
            Entry("m", "A.B", "", "Inner.", is_class=True),
            Entry("m", "A.B.f", "(self)", "Does it.\n\nMore."),
            Entry("m", "Bare.g", "()", "The class has no docstring."),
            Entry("m", "h", "(x=1) -> int", "A function."),
        ]
    )
    assert text.splitlines() == [
        *("Help on module m:", "", "NAME", "    m", ""),
        *("DESCRIPTION", "    This begins with a", "    paragraph.", ""),
        *("CLASSES", "    class A(Base)", "        A class.", ""),
        *("        class B", "            Inner.", ""),
        *("            f(self)", "                Does it.", "", "                More.", ""),
        *("    Bare.g()", "        The class has no docstring.", ""),
        *("FUNCTIONS", "    h(x=1) -> int", "        A function."),
    ]


def test_a_python_without_documentation_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in an embedded Python: the sources lie in a zip and the topics are missing."""
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr(pydocs, "IN_C", {"math"})
    with pytest.raises(LinnetError, match=r"carries only [\d,]+ bytes of documentation.*data\.source=FILE"):
        write_corpus(tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_sources_come_by_name_and_broken_ones_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("zipapp", "abc", "token", "bisect"):
        (tmp_path / f"{name}.py").write_text(f'"""{name}"""')
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text('"""Good."""\nif True:\n    def f(a, *, b=1): "Does."\n')
    for name, content in {
        "csv": b'"""x',
        "ast": b"\xff\xfe\x00",
        "this": b"(" * 500,
        "foreign": b'"x"',
    }.items():
        (tmp_path / f"{name}.py").write_bytes(content)
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(pydocs, "IN_C", set())
    assert list(pydocs.entries()) == [
        Entry("abc", "", "", "abc"),
        Entry("bisect", "", "", "bisect"),
        Entry("json", "", "", "Good."),
        Entry("json", "f", "(a, *, b=1)", "Does."),
        Entry("token", "", "", "token"),
        Entry("zipapp", "", "", "zipapp"),
    ]
