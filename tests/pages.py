"""The pages as programs: what stands in a fenced block of README and docs is run as it is written.

What   `blocks_of(page)` cuts a page into fenced blocks. `Reader(folder, ...)` goes through a page as its reader
       would: it has the files that the pages name (`write_files`), types each ```sh block into a real shell, and runs
       the ```python blocks of the page as one program at its end.
Why    A command in a page that does not work is worse than none.
How    ```sh and ```python run, ```json and ```toml are parsed, ```text is output or a picture of something. Before
       a block may stand, on a line of its own:
         <!-- not run: WHY -->   it is not run; tests/test_docs_commands.py has the list of them
         <!-- stopped: WHY -->   Ctrl-C is typed when the training that it starts has made two steps
         <!-- output -->         each line of this block stands in what the block before it printed, in this order;
                                 `...` stands for lines that are left out
         <!-- output: real data -->  the same, but with the real files instead of small ones of the same names
       A ```toml block below a line that ends with `NAME`: is the file NAME.
"""

import contextlib
import gzip
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import hub_repositories as rows

ROOT = Path(__file__).parent.parent
LONGEST = 600  # seconds that a block may take
FENCE = re.compile(r"^```(\w*)\s*$")
FILE = re.compile(r"`([\w.-]+)`:$")
MARK = re.compile(r"^<!-- (not run|stopped|output)(?:: (.+))? -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of content, from 1 on."""

    page: Path
    line: int
    language: str
    text: str
    mark: str  # "not run", "stopped", "output" or ""
    reason: str
    file: str  # what the line before calls it, or ""

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    """README, CONTRIBUTING and all pages of docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks in order, each with the mark above it."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start, language, mark, file = 0, "", ("", ""), ""
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if start and fence:
            text = "\n".join(lines[start : number - 1]) + "\n"
            found.append(Block(page, start + 1, language, text, *mark, file))
            start, mark, file = 0, ("", ""), ""
        elif fence:
            start, language = number, fence[1]
        elif not start and (marked := MARK.match(line)):
            mark = (marked[1], marked[2] or "")
        elif not start and line.strip():
            mark, named = ("", ""), FILE.search(line)
            file = named[1] if named else ""
    assert not start, f"{page.name}:{start}: the block is not closed"
    return found


def missing_line(wanted: str, printed: str) -> str:
    """The first line of an output block that `printed` lacks, in order and without gaps but `...`; "" for none."""
    there = [line.rstrip() for line in printed.splitlines()]
    at, gap = 0, True
    for line in (line.rstrip() for line in wanted.splitlines()):
        if line == "...":
            gap = True
            continue
        try:
            found = there.index(line, at)
        except ValueError:
            return line
        if not gap and found != at:
            return line
        at, gap = found + 1, False
    return ""


def compare(quote: Block, printed: str) -> None:
    line = missing_line(quote.text, printed)
    assert not line, f"{quote.place} says {line!r}, but what was printed is\n{printed}"


def write_files(folder: Path) -> None:
    """The files that the pages name: small, made up, in every format."""
    questions, articles = rows.math_rows(), rows.paper_rows(20)
    lines = [f"{row['question']}" for row in questions]
    for name in ("data.txt", "other.txt", "jokes.txt"):
        (folder / name).write_text("\n".join(lines) + "\n")
    for name in ("data.jsonl", "questions.jsonl"):
        rows.write_jsonl(folder / name, questions)
    rows.write_jsonl(
        folder / "exam.jsonl", [{"ask": row["question"], "answer": row["answer"]} for row in questions[:20]]
    )
    table = [f"{row['question']};{row['answer']}\n" for row in questions]
    (folder / "fragen.csv").write_text("".join(["frage;antwort\n", *table]))
    for name in ("chats.jsonl", "sgd_train.jsonl"):
        rows.write_jsonl(folder / name, rows.chat_rows())
    rows.write_parquet(folder / "chats.parquet", rows.chat_rows())
    book = "\n\n".join(row["article"] for row in articles)
    for name in ("book.txt", "tinyshakespeare.txt"):
        (folder / name).write_text(book)
    rows.write_jsonl(folder / "plos.jsonl", articles)
    (folder / "notes").mkdir()
    for number in range(3):
        (folder / "notes" / f"{number}.txt").write_text(articles[number]["article"])
    with gzip.open(folder / "papers.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in articles)
    (folder / "abstract.txt").write_text(articles[0]["abstract"])
    (folder / "article.txt").write_text(articles[0]["article"])


# Runs that a page takes for granted: the words of `linnet train` that make them, small and quick.
RUNS = {
    "mine": ("lines", "data.source=data.txt"),
    "other": ("lines", "data.source=other.txt", "train.seed=2"),
    "lines": ("lines", "data.source=data.txt"),
    "text": ("text", "data.source=book.txt"),
    "scratch": ("scratch", "data.source=book.txt", "model.n_layer=1", "model.n_head=2", "model.n_embd=32"),
    "math": ("math", "data.source=data.jsonl"),
    "chat": ("chat", "data.source=chats.jsonl"),
    "papers": ("papers", "data.source=papers.jsonl.gz"),
    "summaries": ("summaries", "data.source=papers.jsonl.gz"),
}
QUICK = ("train.steps=3", "sample.max_new_tokens=4")


class Reader:
    """Someone who has the files, and types what a page says.

    Args:
        folder: an empty folder; everything happens in it.
        env: all of the environment of the shell.
        store: where runs that a page takes for granted are kept for the next page; None: a page makes its own runs.
    """

    def __init__(self, folder: Path, env: Mapping[str, str], *, store: Path | None = None) -> None:
        self.folder, self.env, self.store = folder, dict(env), store
        self.exported = (
            folder / ".exported"
        )  # what a block exports is there in the next one, as in a terminal
        folder.mkdir(parents=True, exist_ok=True)
        write_files(folder)
        self.exported.touch()

    def shell(self, text: str, *, place: str, folder: Path | None = None, stop: bool = False) -> str:
        """Type `text` into bash; returns what was printed, stdout and stderr together.

        Args:
            stop: type Ctrl-C when a training has made two steps; it has to end by that.
        """
        folder = folder or self.folder
        printed = folder / ".printed"
        script = f". {self.exported}\n{text}\nexport -p > {self.exported}\n"
        with printed.open("w+") as out:
            shell = subprocess.Popen(
                ["bash", "-e", "-o", "pipefail", "-c", script],
                cwd=folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches all of it, and nobody else.
            )
            try:
                if stop:
                    self.wait_for_steps(shell)
                    os.killpg(shell.pid, signal.SIGINT)
                code = shell.wait(timeout=LONGEST)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
                shell.wait()
        output = printed.read_text(encoding="utf-8", errors="replace")
        assert code == (130 if stop else 0), f"{place} ended with {code}:\n{text}\n{output[-6000:]}"
        return output

    def wait_for_steps(self, shell: "subprocess.Popen[bytes]") -> None:
        """Until a run of the folder has new rows of two steps, or the shell has ended."""
        started = time.time()
        while shell.poll() is None and time.time() < started + LONGEST:
            files = [
                path for path in self.folder.glob("runs/*/metrics.jsonl") if path.stat().st_mtime > started
            ]
            if any(path.read_text().count('"loss"') >= 2 for path in files):
                return
            time.sleep(0.1)

    def read(self, page: Path) -> None:
        """Run the page: its shell blocks one by one, then its Python blocks as one program."""
        printed = ""
        program = [""] * len(page.read_text(encoding="utf-8").splitlines())
        for block in blocks_of(page):
            if block.mark == "output":
                if not block.reason:
                    compare(block, printed)
            elif block.mark == "not run":
                continue
            elif block.language == "sh":
                self.take_for_granted(block.text)
                printed = self.shell(block.text, place=block.place, stop=block.mark == "stopped")
            elif block.language == "toml" and block.file:
                (self.folder / block.file).write_text(block.text)
            elif block.language == "python":
                self.take_for_granted(block.text)
                lines = block.text.splitlines()
                program[block.line - 1 : block.line - 1 + len(lines)] = lines
        if any(program):
            # Each line keeps its number, so that a traceback names the line of the page.
            script = self.folder / f"{page.stem}.py"
            script.write_text("\n".join(program))
            self.shell(f"python {script.name}", place=page.name)

    def compare_quotes(self, page: Path) -> None:
        """Run only the blocks whose output on real data is quoted, and compare."""
        blocks = blocks_of(page)
        for block, quote in itertools.pairwise(blocks):
            if quote.mark == "output" and quote.reason:
                compare(quote, self.shell(block.text, place=block.place))

    def take_for_granted(self, text: str) -> None:
        """Make the runs that a block names and does not make."""
        if self.store is None:
            return
        named = [] if re.search(r"linnet (?:runs|export)\s*(?:#|$)", text, re.M) is None else ["mine", "math"]
        for name in dict.fromkeys([*named, *re.findall(r"(?<![\w/])runs/(\w+)", text)]):
            made = re.search(rf"linnet\.?\W?train\W+{name}\b|--run runs/{name}\b|run=.runs/{name}\b", text)
            if name not in RUNS or made or (self.folder / "runs" / name).exists():
                continue
            kept = self.store / name
            if not kept.exists():
                write_files(kept.mkdir(parents=True) or kept)
                words = " ".join([*RUNS[name], *QUICK, "--run", f"runs/{name}"])
                self.shell(f"linnet train {words}", place=f"the run {name}", folder=kept)
            for part in ("runs", "prepared"):
                shutil.copytree(kept / part, self.folder / part, dirs_exist_ok=True)


def publish(root: Path, real: Path | None = None) -> None:
    """What the pages name on the hub: the data sets of the recipes, GSM8K, a tiny gpt2.

    Args:
        real: ../shared/data; then gpt2 has its own vocabulary and window, and GSM8K its own rows.
    """
    for build in (rows.math, rows.chat, rows.papers, rows.lines, rows.book):
        build(root)
    if real:
        rows.gpt2(root, tokenizer_from=real / "gpt2-tokenizer", positions=1024)
    else:
        rows.gpt2(root)
    folder = root / "datasets" / "openai" / "gsm8k"
    splits = {"train": 40, "test": 20}
    config = "- config_name: {0}\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: {{0}}/{split}-*\n" for split in splits
    )
    for split, count in splits.items():
        table = rows.math_rows(count, seed=count)
        if real:
            lines = (real / "math" / f"gsm8k_{split}.jsonl").read_text(encoding="utf-8").splitlines()
            table = [json.loads(line) for line in lines]
        for name in ("main", "socratic"):
            rows.write_parquet(folder / name / f"{split}-00000-of-00001.parquet", table, group=1000)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n{config.format('main')}{config.format('socratic')}---\n# Sums\n"
    )
