"""`linnet demo`: a language model is born, on any machine, from text that every Python brings along.

What   Collect the documentation that Python carries, train the recipe `demo` on it, and show what the model writes
       before, midway and at the end.
Why    The first thing that a newcomer types must work without data, network, account or card, and show the whole road.
How    The same calls that a user would make: the corpus (`linnet.data.pydocs`), then `linnet.train("demo", ...)`.
"""

from __future__ import annotations

from pathlib import Path

from linnet import api
from linnet.data.pydocs import write_corpus
from linnet.device import choose_device, choose_precision
from linnet.run import RunFolder
from linnet.track.metrics import Row, read_rows
from linnet.track.progress import printable

CORPUS = Path("prepared/demo-corpus")


def run_demo(run: Path) -> None:
    """Collect the text, train, and print three samples and the commands to go on with."""
    print("Collecting the documentation that this Python carries ...", flush=True)
    print(f"Found {write_corpus(CORPUS)}.", flush=True)
    work = work_of(choose_device().value)
    source = {"source": str(CORPUS)}
    trained = api.train("demo", data=source, model=work["model"], train=work["train"], run=run)
    rows = read_rows(RunFolder(trained.dir).samples)
    for title, row in zip(("before training", "midway", "at the end"), chosen(rows), strict=False):
        print(
            f"\n--- what it writes {title} (step {row['step']:,}) ---\n{printable(row['prompt'] + row['text'])}"
        )
    commands = {
        f'linnet generate {run} "Return a new list" --seed 1': "more text",
        f"linnet runs {run.parent}": "how the training went",
        "linnet train scratch data.source=FILE": "the same with a text of your own",
        "linnet train lines data.source=data.txt": "fine-tune a published GPT-2 on your lines",
    }
    width = max(map(len, commands))
    print("\nGo on with:", *(f"  {command:{width}}  {what}" for command, what in commands.items()), sep="\n")


def work_of(device: str) -> dict[str, dict[str, float]]:
    """What differs on a CPU without bf16 products, which is some three times slower.

    With 192 channels a step of 20 rows takes as long as one of 8 with 256, and what is written has more whole words.
    """
    if choose_precision("auto", device).value != "fp32":
        return {"model": {}, "train": {}}
    return {"model": {"n_embd": 192, "n_head": 3}, "train": {"batch_size": 20, "learning_rate": 3e-3}}


def chosen(rows: list[Row]) -> list[Row]:
    """The first, the middle and the last of the samples."""
    return [rows[0], rows[len(rows) // 2], rows[-1]] if rows else []
