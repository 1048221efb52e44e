"""What is known of a recipe's model and data before anything is downloaded or prepared.

What   `model_shape(recipe)` and `find_data(recipe, ...)`, for `linnet plan`.
Why    A plan must not cost what the training costs.
How    The published shapes are written down here, of another model config.json tells; data that are prepared are looked
       up, of others the size of the files is taken.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass, replace
from pathlib import Path

from linnet import files
from linnet.config import Recipe
from linnet.data.batches import Batches
from linnet.data.store import Store
from linnet.errors import LinnetError
from linnet.hub import snapshot
from linnet.model.gpt2 import GPT2Config
from linnet.model.pretrained import read_config
from linnet.model.resolve import resolve_model
from linnet.preparing import LARGEST_WINDOW, SCRATCH, prepared_folder, window_size
from linnet.tokenizer import load_tokenizer

# Shapes of the published models: config.json need not be fetched.
PUBLISHED = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),
}
CHARACTERS = 128  # Entries that a `char` tokenizer is taken to have before it has read the data.
BYTES_PER_TOKEN = 4.0  # Of English text under GPT-2's tokenizer.


@dataclass(frozen=True)
class Data:
    """What is known of the training data."""

    pairs: int
    """(input, target) pairs; 0 where nothing is known."""
    store: Store | None
    note: str

    def rows(self, block_size: int) -> int:
        """Of an epoch; exactly where the data are prepared, else as if all were full. 0 where nothing is known."""
        if self.store is None:
            return max(1, self.pairs // block_size) if self.pairs else 0
        return Batches(self.store, block_size=block_size, batch_size=1, seed=0).rows_per_epoch


def model_shape(recipe: Recipe) -> tuple[GPT2Config, Path | None]:
    """The network's shape, and where its tokenizer lies if that is known; fetches config.json at most."""
    wanted, path = recipe.model, files.expand_home(recipe.model.init_from)
    if wanted.init_from == SCRATCH:
        sizes = {"char": CHARACTERS, "gpt2": PUBLISHED["gpt2"].vocab_size}
        positions = wanted.n_positions if wanted.n_positions != "auto" else LARGEST_WINDOW
        config = GPT2Config(
            vocab_size=sizes.get(recipe.tokenizer.name, recipe.tokenizer.vocab_size),
            n_positions=positions,
            n_embd=wanted.n_embd,
            n_layer=wanted.n_layer,
            n_head=wanted.n_head,
            dropout=wanted.dropout,
        )
        return config, None
    if path.exists():
        folder = resolve_model(wanted.init_from)
        return read_config(folder, dropout=wanted.dropout), folder
    published = PUBLISHED.get(wanted.init_from.removeprefix("openai-community/"))
    if published is not None:
        return replace(published, dropout=wanted.dropout), None
    folder = snapshot(
        wanted.init_from,
        patterns=("config.json",),
        missing=lambda folder: "" if (folder / "config.json").is_file() else "config.json",
    )
    return read_config(folder, dropout=wanted.dropout), None


def find_data(recipe: Recipe, *, config: GPT2Config, tokenizer_from: Path | None) -> Data:
    """The prepared data if they are there, else what the source's size tells."""
    if not recipe.data.source:
        return Data(0, None, "data.source is not set: nothing is known of the data")
    is_known = (
        recipe.model.init_from == SCRATCH or tokenizer_from is not None or recipe.tokenizer.name != "auto"
    )
    if recipe.data.prepared != "auto" or is_known:
        tokenizer = (
            load_tokenizer(str(tokenizer_from))
            if tokenizer_from and recipe.tokenizer.name == "auto"
            else None
        )
        given = None if recipe.model.init_from == SCRATCH else config.n_positions
        folder = prepared_folder(recipe, tokenizer=tokenizer, size=window_size(recipe, n_positions=given))
        try:
            store = Store.open(folder, verify=False)
        except (LinnetError, OSError):
            pass
        else:
            return Data(store.pairs, store, f"data: {store.pairs:,} tokens, prepared in {folder}")
    size = _source_bytes(recipe)
    if size == 0:
        return Data(0, None, "the data are not here yet: their size, and so steps and time, are not known")
    pairs = int(size * (1 - (recipe.data.validation if isinstance(recipe.data.validation, float) else 0)))
    per_token = 1.0 if recipe.tokenizer.name == "char" else BYTES_PER_TOKEN
    count = max(1, int(pairs / per_token))
    return Data(
        count, None, f"the data are not prepared yet: about {count:,} tokens, by the size of the files"
    )


def _source_bytes(recipe: Recipe) -> int:
    """Bytes of the source's files that lie here."""
    sources = [recipe.data.source] if isinstance(recipe.data.source, str) else recipe.data.source
    total = 0
    for source in sources:
        if source.startswith("hf:"):
            return 0
        path = files.expand_home(source)
        matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207  (as where the files are read)
        found = [path] if path.exists() else [Path(name) for name in matches]
        for each in found:
            inside = [each] if each.is_file() else [file for file in each.rglob("*") if file.is_file()]
            total += sum(file.stat().st_size for file in inside)
    return total
