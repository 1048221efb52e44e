"""Tiny repositories with the schemas of the real data sets, and a tiny gpt2, for the loopback hub.

Each builder writes below `root`, as `LoopbackHub` wants it, and returns the folder. Rows are made up; columns, names of
files, splits and branches are those of the hub.
"""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.pretrained import save_model
from linnet.tokenizer import load_tokenizer, train_bpe

ROWS = 60
Row = dict[str, Any]

BIRDS = ("linnet", "wren", "robin", "heron", "starling", "swift", "raven", "finch", "lark", "owl")
PLACES = ("hedge", "marsh", "old barn", "river bank", "gorse", "orchard", "churchyard", "quarry")
DEEDS = (
    "sings",
    "builds its nest",
    "feeds its young",
    "hides from the hawk",
    "waits for rain",
    "learns a song",
)
TOPICS = (
    "a compact group",
    "a convex set",
    "a finite field",
    "a sparse graph",
    "a random walk",
    "a Banach space",
)
DISEASES = ("asthma", "anemia", "migraine", "hypertension", "arthritis", "pneumonia")
SCRIPT = "raise SystemExit('code from a data set ran')\n"


def sentence(rng: random.Random) -> str:
    return f"The {rng.choice(BIRDS)} {rng.choice(DEEDS)} in the {rng.choice(PLACES)} at {rng.randint(4, 11)} o'clock."


def text(rng: random.Random, sentences: int) -> str:
    return " ".join(sentence(rng) for _ in range(sentences))


def write_parquet(path: Path, rows: Sequence[Row], *, group: int = 16) -> None:
    """Parquet with row groups of `group` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=group)


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def math_rows(count: int = ROWS, *, seed: int = 0) -> list[Row]:
    rng, rows = random.Random(seed), []
    for number in range(count):
        topic, n = rng.choice(TOPICS), rng.randint(2, 99)
        question = f"What is known about the dimension of {topic} of order ${n}$ (question {number})?"
        answer = (
            f"By a counting argument, {topic} of order ${n}$ has at most ${n * n}$ elements. {text(rng, 2)}"
        )
        rows.append({"question": question, "answer": answer})
    return rows


def math(root: Path, *, count: int = ROWS) -> Path:
    """ArtifactAI/arxiv-math-instruct-50k: question and answer, only a train split."""
    folder = root / "datasets" / "ArtifactAI" / "arxiv-math-instruct-50k"
    write_jsonl(folder / "train.jsonl", math_rows(count))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Questions about papers\n")
    return folder


def chat_rows(count: int = ROWS, *, seed: int = 1) -> list[Row]:
    rng, rows = random.Random(seed), []
    for number in range(count):
        messages = []
        for turn in range(rng.randint(1, 4)):
            question = f"Tell me about the {rng.choice(BIRDS)} in the {rng.choice(PLACES)} ({number}.{turn})."
            messages += [{"content": question, "role": "user"}]
            messages += [{"content": text(rng, rng.randint(1, 5)), "role": "assistant"}]
        prompt_id = f"{rng.getrandbits(256):064x}"
        rows.append({"prompt": messages[0]["content"], "prompt_id": prompt_id, "messages": messages})
    return rows


CHAT_SPLITS = {"train_sft": 3, "test_sft": 1, "train_gen": 1, "test_gen": 1}  # split -> files


def chat(root: Path, *, count: int = ROWS) -> Path:
    """HuggingFaceH4/ultrachat_200k: prompt, prompt_id, messages; four splits, their files named in the README."""
    folder = root / "datasets" / "HuggingFaceH4" / "ultrachat_200k"
    for seed, (split, files) in enumerate(CHAT_SPLITS.items()):
        rows = chat_rows(count if split == "train_sft" else count // 4, seed=seed)
        for number in range(files):
            name = f"{split}-{number:05d}-of-{files:05d}-0123456789abcdef.parquet"
            write_parquet(folder / "data" / name, rows[number::files])
    patterns = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in CHAT_SPLITS)
    readme = (
        f"---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n{patterns}---\n# Dialogues\n"
    )
    (folder / "README.md").write_text(readme)
    return folder


def paper_rows(count: int = ROWS, *, seed: int = 2, sections: bool = True) -> list[Row]:
    rng, rows = random.Random(seed), []
    for number in range(count):
        disease = rng.choice(DISEASES)
        paragraphs = [f"{disease} was studied ( {number} ) @xcite . {text(rng, 6).lower()}" for _ in range(4)]
        row = {
            "article": "\n".join(paragraphs),
            "abstract": f" background : {disease} . {text(rng, 2).lower()} ",
        }
        names = {"section_names": "introduction\nmethods\nresults\nconclusion"} if sections else {}
        rows.append(row | names)
    return rows


def papers(
    root: Path, *, partial: Sequence[str] = ("arxiv",), configs: Sequence[str] = ("pubmed", "arxiv")
) -> Path:
    """armanc/scientific_papers: a loading script, and the branch that the hub makes of it.

    Args:
        partial: configs whose train split is cut.
        configs: what the branch holds; () for a repository without that branch.
    """
    folder = root / "datasets" / "armanc" / "scientific_papers"
    folder.mkdir(parents=True)
    (folder / "scientific_papers.py").write_text(SCRIPT)
    (folder / "README.md").write_text("---\nlicense: unknown\n---\n# Papers\n")
    branch = folder.with_name("scientific_papers@refs-convert-parquet")
    for config in configs:
        for seed, (split, count) in enumerate((("train", ROWS), ("validation", 12), ("test", 12))):
            place = (
                branch / config / (f"partial-{split}" if split == "train" and config in partial else split)
            )
            rows = paper_rows(count, seed=seed)
            for number in range(2 if split == "train" else 1):
                write_parquet(place / f"{number:04d}.parquet", rows[number :: 2 if split == "train" else 1])
    return folder


def papers_mirror(root: Path, *, name: str = "ccdv/pubmed-summarization") -> Path:
    """ccdv/pubmed-summarization: article and abstract, configs section and document."""
    folder = root / "datasets" / name
    readme = "---\nconfigs:\n"
    for config in ("section", "document"):
        readme += f"- config_name: {config}\n  data_files:\n"
        for seed, (split, count) in enumerate((("train", ROWS), ("validation", 12), ("test", 12))):
            rows = paper_rows(count, seed=seed, sections=False)
            if config == "document":
                rows = [row | {"article": row["article"].replace("\n", " ")} for row in rows]
            write_parquet(folder / config / f"{split}-00000-of-00001.parquet", rows)
            readme += f"  - split: {split}\n    path: {config}/{split}-*\n"
        readme += "  default: true\n" if config == "section" else ""
    (folder / "README.md").write_text(readme + "---\n# Papers\n")
    return folder


def lines(root: Path, *, count: int = ROWS) -> Path:
    """A data.txt, one example a line."""
    folder, rng = root / "datasets" / "someone" / "lines", random.Random(4)
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("".join(f"{number}. {sentence(rng)}\n" for number in range(count)))
    return folder


def book(root: Path) -> Path:
    """A running text: paragraphs, cut into lines."""
    folder, rng = root / "datasets" / "someone" / "book", random.Random(5)
    folder.mkdir(parents=True)
    paragraphs = ("\n".join(text(rng, 3) for _ in range(4)) for _ in range(ROWS))
    (folder / "train.txt").write_text("\n\n".join(paragraphs))
    return folder


def gpt2(root: Path, *, tokenizer_from: Path | None = None, positions: int = 256) -> Path:
    """openai-community/gpt2: 2 layers, 32 wide, beside things that nobody may open.

    Args:
        tokenizer_from: a folder with GPT-2's own vocabulary; without one a small BPE is trained.
    """
    folder = root / "openai-community" / "gpt2"
    folder.mkdir(parents=True)
    if tokenizer_from:
        tokenizer = load_tokenizer(str(tokenizer_from))
    else:
        rng = random.Random(3)
        tokenizer = train_bpe(iter([text(rng, 200), *(row["answer"] for row in math_rows())]), vocab_size=400)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=positions, n_embd=32, n_layer=2, n_head=2
    )
    save_model(folder, GPT2(config, seed=0), tokenizer=tokenizer)
    if tokenizer_from:
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
        ):  # As it is published, without our post-processor.
            shutil.copyfile(tokenizer_from / name, folder / name)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text(SCRIPT)
    return folder
