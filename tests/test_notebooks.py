"""The lesson: what is stored is whole and true of its own text, and it runs from top to bottom.

The rule for numbers in its prose: each that has a decimal point or at least three digits must stand in the code, or in
what the code shows, too. There `measured` and `assert` hold them, so a number cannot stay behind when the lesson
changes. Smaller whole numbers (3 blocks, 60 sentences) count things that one sees in the code.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import importlib.util
import json
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
LESSON = NOTEBOOKS / "gpt2_from_scratch.ipynb"
LARGEST_BYTES = 2_000_000
LONGEST_CPU_S = 480  # 4 minutes of two cores; of the processor, since the tests share the machine
MEASURED = re.compile(
    r"^(?P<name>.+): (?P<value>[\d.]+)   \(the text counts on (?P<low>[\d.]+) to (?P<high>[\d.]+)\)$"
)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def load_maker() -> ModuleType:
    """notebooks/make.py, which is no module of the package."""
    for needed in ("nbclient", "ipykernel"):
        pytest.importorskip(needed, reason=f"{needed} is missing: pip install 'linnet[notebook]'")
    spec = importlib.util.spec_from_file_location("notebooks_make", NOTEBOOKS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_lesson() -> Any:
    return json.loads(LESSON.read_text(encoding="utf-8"))


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_of(cell: Any) -> str:
    return "".join(cell["source"])


def shown_by(cell: Any) -> str:
    """All text of a code cell's outputs; pictures are left out."""
    texts = []
    for output in cell.get("outputs", []):
        texts.append("".join(output.get("text", "")))
        texts += ["".join(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(texts)


def pictures(notebook: Any) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def measured_in(notebook: Any) -> dict[str, tuple[float, float, float]]:
    """Name -> (value, low, high) of all results that the prose counts on."""
    found = {}
    for cell in code_cells(notebook):
        for line in shown_by(cell).splitlines():
            if match := MEASURED.match(line):
                found[match["name"]] = (float(match["value"]), float(match["low"]), float(match["high"]))
    return found


def numbers_without_a_check(notebook: Any) -> list[str]:
    """Numbers in the prose that break the rule above."""
    checked = "\n".join(f"{source_of(cell)}\n{shown_by(cell)}" for cell in code_cells(notebook))
    known = set(NUMBER.findall(checked.replace("_", "").replace(",", "")))
    prose = [source_of(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    numbers = [number.replace(",", "") for text in prose for number in NUMBER.findall(text)]
    return [n for n in numbers if ("." in n or len(n) >= 3) and n not in known]


def test_the_stored_lesson_is_whole() -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is missing: pip install 'linnet[notebook]'")
    nbformat.validate(nbformat.read(LESSON, as_version=4))
    lesson = read_lesson()
    cells = code_cells(lesson)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    assert pictures(lesson) >= 10
    for cell in cells:
        source = source_of(cell)
        shows = (
            "print(" in source
            or "plt.show()" in source
            or re.search(r"^(measured|show|attempt)\(", source, re.M)
        )
        assert cell["outputs"] or not shows or "def " in source, f"no output is stored: {source[:80]}"
    assert LESSON.stat().st_size < LARGEST_BYTES


def test_the_stored_lesson_says_nothing_of_the_machine_that_ran_it() -> None:
    forbidden = {"/work", "/root", "/tmp", "/home/", "/Users/", "/opt/", "/var/", "site-packages"}
    names = {socket.gethostname(), getpass.getuser()} - {"localhost", "root", "runner"}
    for cell in read_lesson()["cells"]:
        text = source_of(cell) + shown_by(cell)
        assert not [place for place in forbidden if place in text], source_of(cell)[:80]
        assert not [name for name in names if re.search(rf"\b{re.escape(name)}\b", text)], source_of(cell)[
            :80
        ]


def test_every_number_in_the_prose_is_checked_by_the_code() -> None:
    assert numbers_without_a_check(read_lesson()) == []
    assert len(measured_in(read_lesson())) >= 12
    for name, (value, low, high) in measured_in(read_lesson()).items():
        assert low <= value <= high, name


def test_a_number_that_nothing_checks_is_found() -> None:
    lesson = read_lesson()
    lesson["cells"][0]["source"] = [
        "The loss is 7.77 after 9,876 steps, with 3 blocks and 124,439,808 numbers."
    ]
    assert numbers_without_a_check(lesson)[:2] == ["7.77", "9876"]


def test_each_exercise_is_open_and_has_a_folded_solution() -> None:
    cells = read_lesson()["cells"]
    titles = re.findall(r"^### Exercise (\d)", "\n".join(map(source_of, cells)), re.M)
    assert titles == ["1", "2", "3", "4", "5"]
    solutions = [cell for cell in cells if "solution" in cell["metadata"].get("tags", [])]
    assert len(solutions) == len(titles)
    for number, cell in zip(titles, solutions, strict=True):
        assert cell["metadata"]["jupyter"] == {"source_hidden": True}  # folded in JupyterLab
        assert cell["metadata"]["cellView"] == "form"  # and on Colab
        assert f"assert check_{number}(solution_{number})" in source_of(cell)
    shown = "".join(map(shown_by, code_cells(read_lesson())))
    assert shown.count("Nothing there yet.") == len(titles)


@pytest.mark.parametrize("place", ["in the project", "beside a copy", "alone"])
def test_the_first_cell_installs_linnet_where_it_is_missing(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    commands: list[list[str]] = []
    monkeypatch.setattr(importlib.metadata, "version", is_missing)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))  # no network here
    expected = {"in the project": NOTEBOOKS.parent, "beside a copy": tmp_path / "copy", "alone": "linnet"}[
        place
    ]
    if place == "beside a copy":
        (tmp_path / "copy" / "linnet").mkdir(parents=True)
        (tmp_path / "copy" / "linnet" / "api.py").touch()
    monkeypatch.chdir(NOTEBOOKS if place == "in the project" else tmp_path)
    exec(source_of(code_cells(read_lesson())[0]), {})
    assert commands == [[sys.executable, "-m", "pip", "install", "--quiet", str(expected)]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_lesson_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is missing: pip install 'linnet[notebook]'")
    maker = load_maker()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lesson = nbformat.read(LESSON, as_version=4)
    for cell in code_cells(lesson):
        cell["outputs"], cell["execution_count"] = [], None
    maker.execute(lesson, tmp_path)  # raises where a cell fails
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert 5 < cpu_s < LONGEST_CPU_S
    stored, executed = measured_in(read_lesson()), measured_in(lesson)
    assert executed.keys() == stored.keys()
    for name, (value, low, high) in executed.items():
        assert (low, high) == stored[name][1:], f"{name}: run notebooks/make.py"
        assert low <= value <= high, name
    assert pictures(lesson) == pictures(read_lesson())
