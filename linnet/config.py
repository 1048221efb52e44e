"""The recipe as typed Python: one small model for each part (data, tokenizer, model, train, sample, track).

Why    A stage is given its own part and sees no other's.
How    The docstring below each field is its help text. `"auto"` means: chosen from data and machine at the start of the
       run, and the choice is said. recipe.py reads and checks them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1

Auto = Literal["auto"]
OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
DataFormat = Literal["text", "lines", "instruct", "chat", "papers"]
SINKS = ("tensorboard", "wandb", "trackio")


class Part(BaseModel):
    """Base of all parts: unknown keys are errors, values keep their type (no "5" for 5)."""

    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, frozen=True, allow_inf_nan=False
    )


class ColumnsConfig(Part):
    text: str = ""
    """Column of the text (formats `text` and `lines`)."""
    question: str = ""
    """Column of the question, instruction or prompt (`instruct`)."""
    input: str = ""
    """Column of what the question is about, put below it (`instruct`); may be empty in a row."""
    answer: str = ""
    """Column of the answer, output, completion or solution (`instruct`)."""
    system: str = ""
    """Column of a system message (`instruct`, `chat`)."""
    messages: str = ""
    """Column of the turns, a list of {role, content} or {from, value} (`chat`)."""
    article: str = ""
    """Column of the article (`papers`)."""
    abstract: str = ""
    """Column of the abstract (`papers`)."""
    title: str = ""
    """Column of the title (`papers`)."""
    sections: str = ""
    """Column of the section names (`papers`)."""


class FiltersConfig(Part):
    exact_duplicates: bool = False
    """Keep one of rows that are equal."""
    near_duplicates: float = Field(default=0.0, ge=0, le=1)
    """Drop a row that is at least this similar to an earlier one (estimated Jaccard index of five-word phrases, such as
    0.8); 0 keeps all. Training rows near a held-out one go in any case, from 0.8 on."""
    language: list[str] = []
    """Drop rows that are surely in no language of this list, such as ["en"]; an empty list keeps all. Needs
    linnet[language]."""
    shortest: int = Field(default=0, ge=0)
    """Drop rows of fewer characters, all turns together."""
    longest: Annotated[int, Field(gt=0)] | Literal["off"] = "off"
    """Drop rows of more characters, all turns together."""
    repetition: float = Field(default=1.0, ge=0, le=1)
    """Drop rows with a larger share of repeated text (characters in repeated lines, or repeated five-word phrases); 1
    keeps all, 0.3 is a place to start."""
    symbols: float = Field(default=1.0, ge=0, le=1)
    """Drop rows with a larger share of characters that are no letters, digits, spaces or ordinary punctuation; 1 keeps
    all, 0.1 is a place to start for prose."""
    digits: float = Field(default=1.0, ge=0, le=1)
    """Drop rows with a larger share of digits; 1 keeps all, 0.15 is a place to start for prose."""
    boilerplate: bool = False
    """Cut Project Gutenberg's header and licence, lines of copyright, licence and cookies, a web page's menu."""
    references: bool = False
    """Cut the list of references at the end of an article."""
    citations: bool = False
    """Cut `@xcite`, `[ 12 ]` and the empty brackets that citations leave. Not for code, where [12] is an index."""
    formulas: bool = False
    """Cut `@xmath0` and LaTeX documents amid the text, and the empty brackets that they leave."""


class DataConfig(Part):
    source: str | list[str] = ""
    """A file, a folder, a glob, `hf:owner/name[/config][@revision]`, or a list of these."""
    format: DataFormat = "text"
    """How a row becomes an example: `text` (a document), `lines` (each line is one), `instruct` (question, answer),
    `chat` (turns), `papers` (abstract, article)."""
    validation: float | str = 0.1
    """The share that is held out, or a source of its own. 0 holds out nothing."""
    columns: ColumnsConfig = ColumnsConfig()
    filters: FiltersConfig = FiltersConfig()
    learn: Literal["answers", "all"] = "answers"
    """What is learned of a row with targets: the answers (assistant's turns, article), or all of it."""
    target: Literal["article", "abstract"] = "article"
    """What `papers` learns to write: the article from its abstract, or the abstract from its article."""
    reads: Literal["start", "ends", "spread"] = "start"
    """What of an article that is too long is read to write its abstract: its beginning, its beginning and end, or the
    first sentences of all its paragraphs."""
    max_rows: int | None = Field(default=None, gt=0)
    """Read only the first rows of the source, so many."""
    max_bad: float = Field(default=0.01, ge=0, le=1)
    """The share of bad rows that is set aside in quarantine.jsonl before the run stops."""
    drop: str = ""
    """File of row ids, one a line, that are left out; `linnet inspect` prints ids."""
    keep: str = ""
    """File of row ids, one a line, that are kept whatever the filters say."""
    prepared: str = "auto"
    """Folder of the prepared data; auto: prepared/RECIPE-<hash>."""
    workers: Annotated[int, Field(gt=0)] | Auto = "auto"
    """Processes that prepare the data; auto: one for each core where it pays. It never changes the result."""
    engine: Literal["local", "ray"] = "local"
    """Where the preparing runs: on this machine, or on a Ray cluster."""


class TokenizerConfig(Part):
    name: str = "auto"
    """`gpt2`, `bpe` (trained on the data), `char`, a folder; auto: the initial model's, from scratch `bpe`."""
    vocab_size: int = Field(default=8192, ge=257)
    """Most entries of a `bpe` trained here; small texts get fewer."""


class LoraConfig(Part):
    rank: int = Field(default=0, ge=0)
    """Rank of the adapters; 0 trains the whole model."""
    alpha: float = Field(default=16.0, gt=0)
    """The adapters' part counts alpha / rank times."""
    targets: list[Literal["c_attn", "c_proj", "c_fc"]] = ["c_attn", "c_proj", "c_fc"]
    """The matrices that get adapters: `c_attn` (queries, keys, values), `c_proj` (both of a block), `c_fc`."""
    base: Literal["float", "int8"] = "float"
    """How the frozen matrices are kept: as numbers of the training's precision, or in 8 bits, a scale for each row."""


class ModelConfig(Part):
    init_from: str = "scratch"
    """`scratch`, `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`, a run, a model folder or a hub name."""
    n_layer: int = Field(default=6, gt=0)
    """Blocks (from scratch)."""
    n_head: int = Field(default=6, gt=0)
    """Attention heads for each block (from scratch)."""
    n_embd: int = Field(default=384, gt=0)
    """Width (from scratch); a multiple of n_head."""
    n_positions: int | Auto = "auto"
    """Longest window of the model (from scratch); auto: block_size."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout during training."""
    initializer_range: float = Field(default=0.02, gt=0, lt=1)
    """Standard deviation of the weights at the start (from scratch)."""
    lora: LoraConfig = LoraConfig()


class TrainConfig(Part):
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps. Setting it clears `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training data. Setting it clears `steps`."""
    batch_size: int | Auto = "auto"
    """Packed rows for one optimizer step, over all devices; auto: about 8,192 tokens, at least 20 steps an epoch."""
    micro_batch_size: int | Auto = "auto"
    """Rows computed at once; auto: what fits. It never changes the result beyond rounding."""
    block_size: int | Auto = "auto"
    """Tokens in a row; auto: the longest example (row formats), or what the text and the model allow."""
    optimizer: OptimizerName = "adamw"
    """`adamw`, or `muon` for the blocks' matrices with AdamW for the rest."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak of the learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay, of matrices only."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's momentum; a run of a few hundred steps wants less."""
    embedding_rate: float = Field(default=1.0, gt=0)
    """With Muon the embeddings learn at so many times `learning_rate`; thousands of rare tokens want more than 1."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises to its peak."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 leaves it as it is."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after the warm-up; `wsd` is warm-up, stable, decay over the last 40 %."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the products; master weights and optimizer state are always fp32."""
    seed: int = Field(default=1337, ge=0, lt=2**63)
    """Seed of the initial weights and of the order of the data."""
    log_every: int = Field(default=1, gt=0)
    """Steps between two rows of metrics.jsonl."""
    eval_every: int | Auto = "auto"
    """Steps between two evaluations; auto: a tenth of the run."""
    eval_tokens: int = Field(default=100_000, gt=0)
    """Most held-out tokens that an evaluation reads."""
    save_every: int | Auto = "auto"
    """Steps between two checkpoints; auto: a tenth of the run. The best and the last are saved in any case."""
    keep: int = Field(default=2, gt=0)
    """Newest checkpoints that are kept, beside the best."""
    patience: int | Literal["off"] = "off"
    """Stop early after so many evaluations without a new best."""
    activation_checkpointing: Literal["off", "on", "auto"] = "auto"
    """Keep only each block's input and compute the rest again in the backward pass: a fifth more work, far less memory;
    auto: where it would not fit otherwise. It never changes the result."""
    offload: Literal["off", "on", "auto"] = "auto"
    """Keep the master weights and the optimizer's moments in the machine's memory instead of the card's; auto: where
    they would not fit otherwise."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Of several processes (torchrun): each with the whole model (`ddp`), or with its share of it (`fsdp`); auto:
    `ddp` where the model fits."""
    compile: bool = False
    """torch.compile the network (slow first step)."""


class SampleConfig(Part):
    prompts: list[str] = [""]
    """What the model is asked to continue at each evaluation."""
    max_new_tokens: int = Field(default=60, ge=0)
    """Length of these samples; 0 writes none."""
    temperature: float = Field(default=0.8, ge=0)
    """Temperature of these samples."""


class TrackConfig(Part):
    sinks: list[str] = []
    """Places beside metrics.jsonl that receive the metrics: `tensorboard`, `wandb`, `trackio`. Needs linnet[track]."""
    wait: float = Field(default=10.0, ge=0)
    """Most seconds that the end of a training waits for them."""


class Recipe(Part):
    format_version: int = FORMAT_VERSION
    """Version of this file's layout."""
    name: str = ""
    """Name of the recipe; the default run is runs/NAME."""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    track: TrackConfig = TrackConfig()
