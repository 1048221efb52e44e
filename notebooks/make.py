"""Run the lesson from top to bottom and keep what it shows.

What   `python notebooks/make.py` executes gpt2_from_scratch.ipynb in an empty folder and stores its outputs in it.
Why    A lesson is read before it is run, so its pictures and numbers must be there, and be true.
How    nbclient runs it in the environment of this very Python, with a home and a temporary folder of its own;
       whatever belongs to this machine or this minute (paths, times, versions) is taken out. Needs linnet[notebook].
       tests/test_notebooks.py executes the lesson with the same function and reads the stored file.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

LESSON = Path(__file__).with_name("gpt2_from_scratch.ipynb")
SLOWEST_CELL_S = 900  # the slowest took 175 s on two cores that five other jobs used as well
EVALUATION = re.compile(r"step .*  validation ([\d.]+)")
OF_THE_MINUTE = re.compile(r"  (\d+ (h|min|s) )+left|  [\d,.]+ tokens/s|  \d+ %$", re.MULTILINE)


class OwnKernel(AsyncKernelManager):
    """Knows no kernel but that of the Python which runs this, whatever kernels are registered on the machine."""

    def __init__(self, **options: Any) -> None:
        super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **options)


def execute(notebook: Any, folder: Path) -> None:
    """Run all cells of `notebook` with the working directory `folder`, and keep their outputs in it.

    The kernel finds no network: a proxy that does not exist stands between. Raises nbclient's
    CellExecutionError where a cell fails.
    """
    home, temporary, work = (folder / name for name in ("home", "tmp", "work"))
    for place in (home, temporary, work):
        place.mkdir(parents=True)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    isolated = {"HOME": home, "TMPDIR": temporary, "IPYTHONDIR": home, "JUPYTER_CONFIG_DIR": home}
    isolated |= {"MPLCONFIGDIR": home}
    client = NotebookClient(
        notebook,
        kernel_manager_class=OwnKernel,
        kernel_name="python3",
        timeout=SLOWEST_CELL_S,
        resources={"metadata": {"path": str(work)}},
        record_timing=False,
        coalesce_streams=True,
    )
    environment = os.environ | {key: str(value) for key, value in isolated.items()} | nowhere
    with client.setup_kernel(env=environment):
        # A heartbeat that is sent while the kernel goes waits for an answer without end (seen once, in CI).
        client.kc.hb_channel.pause()
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    left = sorted(path.name for path in work.iterdir())
    if left:
        raise AssertionError(f"the lesson left {left} in the folder that it was started in")


def tidy(notebook: Any) -> None:
    """Take out what belongs to one machine or one minute."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if output.output_type == "stream":
                output.text = without_times(output.text)


def without_times(text: str) -> str:
    """Of the progress lines, which come every few seconds, those of the evaluations, without time and speed."""
    kept, last = [], ""
    for line in text.splitlines(keepends=True):
        if evaluation := EVALUATION.match(line):
            if evaluation[1] == last:
                continue
            last = evaluation[1]
        kept.append(OF_THE_MINUTE.sub("", line))
    return "".join(kept)


def main() -> None:
    notebook = nbformat.read(LESSON, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    tidy(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, LESSON)
    print(f"{LESSON.name}: {len(notebook.cells)} cells, {LESSON.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
