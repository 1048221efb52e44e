"""Small token stores for the tests of this folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from linnet.config import DataConfig, TokenizerConfig
from linnet.data.prepare import prepare
from linnet.data.store import Store


def make_store(
    folder: Path,
    *,
    tokenizer: str = "char",
    vocab_size: int = 300,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **data: Any,
) -> Store:
    """Prepare `data` (fields of DataConfig) in folder/store."""
    config = TokenizerConfig(name=tokenizer, vocab_size=vocab_size)
    return prepare(DataConfig(**data), config, folder=folder / "store", progress=progress)


def lines_store(folder: Path, lines: list[str], **data: Any) -> Store:
    """A store of format `lines`; nothing is held out unless asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lines.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return make_store(folder, **{"source": str(path), "format": "lines", "validation": 0.0, **data})


def text_store(folder: Path, *texts: str, **data: Any) -> Store:
    """A store of format `text`, a file for each text; nothing is held out unless asked for."""
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number:03}.txt").write_text(text, encoding="utf-8", newline="")
    return make_store(
        folder, **{"source": str(folder / "texts"), "format": "text", "validation": 0.0, **data}
    )
