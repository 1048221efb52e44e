"""The demo's text: English that every Python brings along.

What: `write_corpus(folder)` writes the language reference's topics (`help("for")`) and the docstrings of the
      standard library as text files in the look of pydoc; about 2.3 MB.
Why:  the demo needs a real text where there is no network and no data. Documentation has such a plain look that
      a tiny model visibly learns it within minutes.
How:  docstrings come from the library's source files through `ast`: nothing is imported or run. What is written
      in C has no such source: those modules are looked at with `inspect`, and only ones that are known to do
      nothing on import. The order is by name, so the same Python gives the same files.

    Help on module textwrap:

    NAME
        textwrap - Text wrapping and filling.

    FUNCTIONS
        dedent(text)
            Remove any common leading whitespace from every line in `text`.
"""

import ast
import importlib
import inspect
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from linnet.errors import LinnetError
from linnet.files import disk_errors, make_folder

# Tests, grammars, games, packages of others, tables: no documentation of the library.
SKIPPED = {
    *(
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "pydoc_data",
        "_bundled",
        "encodings",
    ),
    *("site-packages", "dist-packages", "lib-dynload", "__pycache__", "__phello__"),
}
# Written in C, without effects on import (readline, tkinter and curses have some).
IN_C = set(
    """
    builtins sys time math cmath array itertools gc marshal errno atexit faulthandler posix nt pwd grp
    select fcntl mmap resource syslog termios unicodedata zlib binascii pyexpat _bisect _bz2 _codecs _collections
    _contextvars _csv _datetime _decimal _elementtree _functools _heapq _io _json _locale _lzma _operator _pickle
    _queue _random _signal _socket _sqlite3 _sre _stat _statistics _string _struct _symtable _thread _tracemalloc
    _warnings _weakref
    """.split()  # noqa: SIM905
)
LEAST_BYTES = 200_000  # less is a crippled Python: the demo would learn nothing from it
REPEATED = 40  # characters from which a docstring is taken once only; shorter ones may well be alike


@dataclass(frozen=True)
class Entry:
    """The documentation of one module, class, function or method."""

    module: str
    """By its public name: what `_struct` documents belongs to `struct`."""
    name: str
    """Within the module, "TextWrapper.fill"; empty for the module itself."""
    signature: str
    """"(text, width=70)"; for a class its bases; empty where it is not known."""
    doc: str
    """Without indentation, as inspect.cleandoc leaves it."""
    is_class: bool = False


@dataclass(frozen=True)
class CorpusReport:
    """What was found in this Python."""

    folder: Path
    topics: int
    modules: int
    docstrings: int
    bytes: int
    python: str

    def __str__(self) -> str:
        return (
            f"{self.topics} topics of the language reference and {self.docstrings:,} docstrings of {self.modules} "
            f"modules, {self.bytes / 1e6:.1f} MB, all from Python {self.python}"
        )


def write_corpus(folder: Path) -> CorpusReport:
    """Write a .txt file for each topic and each module into `folder`; takes 2 to 4 s, and no network.

    A file that is there already with the same text is left alone, so that prepared data stays valid; other .txt
    files are removed, since the folder is ours.

    Raises LinnetError where this Python carries hardly any documentation.
    """
    found = list(entries())
    modules = sorted({entry.module for entry in found})
    topics = language_topics()
    texts = {f"topic-{name}.txt": text for name, text in topics.items()}
    for module in modules:
        texts[f"module-{module}.txt"] = render([entry for entry in found if entry.module == module])
    contents = {name: text.encode() for name, text in sorted(texts.items())}
    size = sum(map(len, contents.values()))
    if size < LEAST_BYTES:
        raise LinnetError(
            f"This Python ({sys.prefix}) carries only {size:,} bytes of documentation; use another Python, "
            "or a text of yours: linnet train scratch data.source=FILE."
        )
    make_folder(folder)
    for path in folder.glob("*.txt"):
        if path.name not in contents:
            path.unlink()
    for name, content in contents.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:  # so a file cut off by a crash is mended
            with disk_errors(path, needed=len(content)):
                path.write_bytes(content)
    return CorpusReport(
        folder, len(topics), len(modules), len(found), size, ".".join(map(str, sys.version_info[:3]))
    )


def language_topics() -> dict[str, str]:
    """Name -> text of what `help("for")` shows; empty for a Python without it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return {name: _tidy(text) + "\n" for name, text in sorted(topics.items())}


def entries() -> Iterator[Entry]:
    """All documentation of the standard library, module by module; the same order for the same Python.

    Where Python and C document the same name, the Python source counts.
    """
    seen: set[tuple[str, str]] = set()
    texts: set[str] = set()
    for entry in [*_entries_of_sources(), *_entries_in_c()]:
        alike = len(entry.doc) >= REPEATED or "__" in entry.name  # each type has __len__: "Return len(self)."
        repeated = alike and entry.doc in texts
        if (entry.module, entry.name) not in seen and not repeated:
            seen.add((entry.module, entry.name))
            texts.add(entry.doc)
            yield entry


def render(of_module: list[Entry]) -> str:
    """One module's entries as pydoc would show them, with plain indentation for a class's methods."""
    module = of_module[0].module
    own = next((entry.doc for entry in of_module if not entry.name), "")
    first, _, rest = own.partition("\n")
    if rest and not rest.startswith("\n"):  # the docstring begins with a paragraph, not with a title
        first, rest = "", own
    lines = [f"Help on module {module}:", "", "NAME", f"    {module}" + (f" - {first}" if first else ""), ""]
    if rest:
        lines += ["DESCRIPTION", textwrap.indent(rest.strip("\n"), "    "), ""]
    classes = [entry for entry in of_module if "." in entry.name or entry.is_class]
    functions = [entry for entry in of_module if entry.name and entry not in classes]
    for title, members in (("CLASSES", classes), ("FUNCTIONS", functions)):
        if members:
            lines.append(title)
        known: set[str] = set()
        for entry in members:
            known |= {entry.name}
            owner, _, short = entry.name.rpartition(".")
            depth = 1 + sum(entry.name[:at] in known for at in _dots(entry.name))
            if owner and owner not in known:
                short = entry.name  # the class itself has no docstring
            word = "class " if entry.is_class else ""
            lines.append("    " * depth + f"{word}{short}{entry.signature}")
            lines += [textwrap.indent(entry.doc, "    " * (depth + 1)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _dots(name: str) -> list[int]:
    return [at for at, character in enumerate(name) if character == "."]


def _entries_of_sources() -> Iterator[Entry]:
    library = Path(sysconfig.get_path("stdlib"))
    sources: list[tuple[str, Path]] = []
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names and SKIPPED.isdisjoint(parts):
            sources.append((".".join(parts).removesuffix(".__init__"), path))
    for module, path in sorted(sources):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "\d" in an old file is no concern of ours
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue  # a file for another Python, or cut off
        yield from _entries_of_node(tree, module=_public(module), name="")


def _entries_of_node(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, *, module: str, name: str
) -> Iterator[Entry]:
    doc = _tidy(ast.get_docstring(node) or "")
    if doc:
        yield Entry(module, name, _signature_of_node(node), doc, isinstance(node, ast.ClassDef))
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in _definitions(node.body):
            yield from _entries_of_node(child, module=module, name=f"{name}.{child.name}".lstrip("."))


def _definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Classes and functions of a body, those below its `if` and `try`, too."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement
        elif isinstance(statement, ast.If | ast.Try):
            yield from _definitions([*statement.body, *statement.orelse])


def _signature_of_node(node: ast.AST) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"({bases})" if bases else ""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"({ast.unparse(node.args)}){returns}"
    return ""


def _entries_in_c() -> Iterator[Entry]:
    for name in sorted(IN_C & sys.stdlib_module_names):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # not on this system
        public = _public(name)
        if module.__doc__:
            yield Entry(public, "", "", _tidy(inspect.cleandoc(module.__doc__)))
        for attribute, value in sorted(vars(module).items()):
            if inspect.isclass(value) and value.__module__ in (name, public):
                yield from _entries_of_class(value, module=public, name=attribute)
            elif inspect.isbuiltin(value):
                yield from _entry_of_object(value, module=public, name=attribute)


def _entries_of_class(cls: type, *, module: str, name: str) -> Iterator[Entry]:
    yield from _entry_of_object(cls, module=module, name=name)
    for attribute, value in sorted(vars(cls).items()):
        if inspect.isroutine(value) or inspect.isdatadescriptor(value):
            yield from _entry_of_object(value, module=module, name=f"{name}.{attribute}")


def _entry_of_object(value: object, *, module: str, name: str) -> Iterator[Entry]:
    doc = getattr(value, "__doc__", None)
    if not isinstance(doc, str) or not doc.strip():
        return
    # inspect.signature would evaluate the defaults.
    signature = getattr(value, "__text_signature__", None)
    signature = signature if isinstance(signature, str) else ""
    signature = re.sub(r"^\(\$(module|type)(, /)?(, )?", "(", signature).replace("$self", "self")
    doc = _tidy(inspect.cleandoc(doc))
    first, _, rest = doc.partition("\n")
    short = name.rpartition(".")[2]
    if not signature and first.startswith(f"{short}(") and rest.startswith("\n"):
        signature, doc = first.removeprefix(short), rest.strip("\n")  # an older docstring begins with it
    yield Entry(module, name, signature, doc, inspect.isclass(value))


def _public(module: str) -> str:
    """Where a user finds what a module documents: _struct -> struct, _pydecimal -> decimal, posix -> os."""
    if module in ("posix", "nt"):
        return "os"
    for prefix in ("_py", "_"):
        if module.startswith(prefix) and module.removeprefix(prefix) in sys.stdlib_module_names:
            return module.removeprefix(prefix)
    return module


def _tidy(text: str) -> str:
    """Without trailing spaces, tabs, form feeds and runs of empty lines."""
    text = re.sub(r"[ \f\r]+$", "", text.expandtabs(), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")
