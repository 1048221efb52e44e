"""The bytes that a training takes, by item, from shapes alone.

What   `peak(training)` gives the bytes of weights, gradients, moments, activations, logits and framework in the moment
       when they are most, and `needed(items)` what of it the model and its training take.
Why    `linnet train` must choose what fits before it begins, and `linnet plan` say it without a model or a card.
How    A step has three moments that can be its peak: the loss (all activations are kept, the head is computed), the end
       of the backward pass (all gradients are there), the update. Each is added up as the code does it;
       benchmarks/memory.py compares the sum with what was measured.

Letters: L layers, C `n_embd`, H heads, V vocabulary, T tokens of a row, N tokens computed at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from linnet.config import LoraConfig, OptimizerName
from linnet.model.attention import QUERIES
from linnet.model.gpt2 import GPT2Config
from linnet.model.loss import LOGITS_PER_BLOCK, LOGITS_PER_CHUNK

ITEMS = ("weights", "gradients", "moments", "activations", "logits", "framework")
MASTER = 4  # Bytes of a master weight, of its gradient, of a moment.
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# What a process holds before its model: Python and torch's libraries (`linnet train`, resident), CUDA's context.
PROCESS = {"cpu": 400 << 20, "cuda": 500 << 20}
# What torch takes for itself while it trains: oneDNN's buffers and kernels, cuBLAS' workspace.
WORKSPACE = {"cpu": 40 << 20, "cuda": 64 << 20}


@dataclass(frozen=True)
class Training:
    """What memory depends on."""

    model: GPT2Config
    device: str
    precision: str
    block_size: int
    rows: int
    """Computed at once."""
    batch_size: int
    """Rows of a step, of this process."""
    optimizer: OptimizerName = "adamw"
    lora: LoraConfig = field(default_factory=LoraConfig)
    recompute: bool = False
    """Activation checkpointing."""
    offload: bool = False
    shares: int = 1
    """Processes over which weights, gradients and moments are cut (fsdp)."""

    @property
    def tokens(self) -> int:
        return self.rows * self.block_size

    @property
    def width(self) -> int:
        """Bytes of a number in the products."""
        return BYTES[self.precision]


def peak(training: Training) -> dict[str, int]:
    """The bytes by item in the fullest moment of a step."""
    moments = (
        _at_the_loss(training),
        _in_the_backward(training),
        _at_its_end(training),
        _at_the_update(training),
    )
    fullest = max(moments, key=lambda items: sum(items.values()))
    device = "cuda" if training.device == "cuda" else "cpu"
    return {
        "weights": weight_bytes(training),
        "gradients": 0,
        "moments": moment_bytes(training),
        "activations": 0,
        "logits": 0,
        **fullest,
        "framework": PROCESS[device] + WORKSPACE[device] + holes(training),
    }


def needed(training: Training) -> int:
    """What the training takes beyond the process that has not made its model yet."""
    device = "cuda" if training.device == "cuda" else "cpu"
    return sum(peak(training).values()) - PROCESS[device]


def host_bytes(training: Training) -> int:
    """With offload, what lies in the machine's memory: master, gradient, two moments, and what is under way."""
    return trained(training) * (4 * MASTER + training.width) if training.offload else 0


# -- what is there all the time ---------------------------------------------------------------------------------------


def trained(training: Training) -> int:
    """Number of weights that are trained."""
    return adapter_weights(training.model, training.lora) if training.lora.rank else training.model.parameters


def adapter_weights(model: GPT2Config, lora: LoraConfig) -> int:
    """Number of weights of all adapters: rank x (inputs + outputs) for each matrix."""
    c = model.n_embd
    sizes = {"c_attn": c + 3 * c, "c_fc": c + 4 * c, "c_proj": (c + c) + (4 * c + c)}
    return model.n_layer * lora.rank * sum(sizes[name] for name in set(lora.targets))


def block_matrices(model: GPT2Config) -> int:
    """Weights in the matrices of all blocks, 12 C^2 each."""
    return 12 * model.n_layer * model.n_embd**2


def weight_bytes(training: Training) -> int:
    """Masters, or what of them is on the card, and the copies that 16-bit products read."""
    model, width = training.model, training.width
    matrices, embeddings = block_matrices(model), (model.vocab_size + model.n_positions) * model.n_embd
    vectors = MASTER * (model.parameters - matrices - embeddings)
    if training.lora.rank:
        int8 = training.lora.base == "int8"
        scales = MASTER * 9 * model.n_layer * model.n_embd if int8 else 0  # One for each output of a matrix.
        adapters = MASTER * adapter_weights(model, training.lora)
        return matrices * (1 if int8 else width) + scales + embeddings * width + vectors + adapters
    if training.offload:
        return (matrices + embeddings) * width + vectors
    copies = matrices * width if width < MASTER else 0
    if training.shares > 1:  # Gathered are the embeddings and a block or two.
        gathered = MASTER * (embeddings + 2 * matrices // model.n_layer)
        return MASTER * model.parameters // training.shares + gathered
    return MASTER * model.parameters + copies


def moment_bytes(training: Training) -> int:
    """Two for each trained weight; Muon has one for the blocks' matrices. With offload none on the card."""
    if training.offload:
        return 0
    ones = block_matrices(training.model) if training.optimizer == "muon" else 0
    return MASTER * (2 * trained(training) - ones) // training.shares


def gradient_bytes(training: Training) -> int:
    """All of them together. With offload each goes over at once."""
    return 0 if training.offload else MASTER * trained(training) // training.shares


# -- what a micro-batch takes -----------------------------------------------------------------------------------------


def kept_of_a_block(training: Training) -> int:
    """Bytes that backward keeps of a block, for N tokens.

    In units of N C: the inputs of both norms 4 + 4 (fp32); in the width of the products the norms' results 1 + 1, q, k
    and v 3, what attention gathers 1 (16 bits on a CPU: twice, by heads and by tokens), c_fc's result (on a CPU GELU's
    slope) 4, GELU's result 4. Beside a frozen matrix its input is only kept for an adapter.
    """
    model, width, n = training.model, training.width, training.tokens
    lora, targets = training.lora, set(training.lora.targets)
    inputs = {
        "c_attn": 1,
        "c_proj": 4,
        "c_fc": 1,
    }  # c_proj of the attention: what attention keeps in any case.
    kept = sum(size for name, size in inputs.items() if not lora.rank or name in targets)
    explicit = products(training)
    kept += 3 + 1 + 4 + (1 if explicit and (not lora.rank or "c_proj" in targets) else 0)
    inner = lora.rank * width * len(targets) if lora.rank else 0
    values = n * (model.n_embd * (2 * 4 + kept * width) + 16 + inner)
    if training.model.dropout:
        values += 2 * n * model.n_embd
    return values + (share_bytes(training) if explicit else 4 * n * model.n_head)


def products(training: Training) -> bool:
    """Whether attention computes plain products and keeps its shares (see `linnet.model.attention`)."""
    return training.device != "cuda" and training.width == 2 and not training.model.dropout


def share_bytes(training: Training) -> int:
    """Attention's shares of a block, of rows that are one example: blocks of QUERIES up to the diagonal."""
    blocks, rest = divmod(training.block_size, QUERIES)
    seen = QUERIES**2 * blocks * (blocks + 1) // 2 + rest * training.block_size
    return training.rows * training.model.n_head * seen * training.width


def activation_bytes(training: Training) -> int:
    """What the forward pass leaves for the backward pass: all of each block, or its input; the last norm's input."""
    stream = MASTER * training.tokens * training.model.n_embd
    block = stream if training.recompute else kept_of_a_block(training)
    return training.model.n_layer * block + stream


def logits_bytes(training: Training) -> tuple[int, int]:
    """While the loss is computed, and what of it stays until the backward pass begins."""
    model, width, n = training.model, training.width, training.tokens
    on_card = training.device == "cuda"
    size = max(1, LOGITS_PER_CHUNK["cuda" if on_card else "cpu"] // model.vocab_size)
    rows = min(n, size)
    head = model.vocab_size * model.n_embd
    stays = MASTER * n * model.n_embd  # The gradient of the hidden states.
    work = MASTER * n * model.n_embd  # These themselves.
    work += rows * model.vocab_size * width + rows * model.n_embd * width
    work += rows * model.vocab_size * (MASTER + width) if on_card else MASTER * LOGITS_PER_BLOCK
    copied = width < MASTER and not training.offload and not training.lora.rank
    if copied:
        work += head * width
    if not training.lora.rank:
        kind = width if training.offload else MASTER
        stays += head * kind
        work += head * width + (head * MASTER if copied and n > size else 0)
    return work + stays, stays


def backward_work(training: Training) -> int:
    """What a block's backward pass holds beside what was kept.

    Slopes: of the stream N C in fp32, of GELU's input and output 4 N C each. With an int8 base a matrix made anew.
    """
    c, n, width = training.model.n_embd, training.tokens, training.width
    matrix = 4 * c * c * width if training.lora.rank and training.lora.base == "int8" else 0
    return n * c * (MASTER + 9 * width) + matrix


# -- the moments that may be the fullest -------------------------------------------------------------------------------


def _added_up(training: Training) -> int:
    """Gradients of earlier micro-batches of the step."""
    return gradient_bytes(training) if training.rows < training.batch_size else 0


def _at_the_loss(training: Training) -> dict[str, int]:
    return {
        "weights": weight_bytes(training),
        "gradients": _added_up(training),
        "moments": moment_bytes(training),
        "activations": activation_bytes(training),
        "logits": logits_bytes(training)[0],
    }


def _in_the_backward(training: Training) -> dict[str, int]:
    again = kept_of_a_block(training) if training.recompute else 0
    return {
        "weights": weight_bytes(training),
        "gradients": _added_up(training),
        "moments": moment_bytes(training),
        "activations": activation_bytes(training) + again + backward_work(training),
        "logits": logits_bytes(training)[1],
    }


def _at_its_end(training: Training) -> dict[str, int]:
    """The embedding gets a gradient of its own, as large as that of the head, and both are added."""
    model = training.model
    head = model.vocab_size * model.n_embd * (training.width if training.offload else MASTER)
    gradients, twins = gradient_bytes(training), 1 if not _added_up(training) else 2
    if training.lora.rank:
        twins = 0
    elif training.offload:
        twins = 2
    return {
        "weights": weight_bytes(training),
        "gradients": gradients + twins * head,
        "moments": moment_bytes(training),
        "activations": MASTER * training.tokens * model.n_embd,
        "logits": 0,
    }


def _at_the_update(training: Training) -> dict[str, int]:
    return {
        "weights": weight_bytes(training),
        "gradients": gradient_bytes(training) + muon_work(training),
        "moments": moment_bytes(training),
        "activations": 0,
        "logits": 0,
    }


def holes(training: Training) -> int:
    """On a CPU, what the heap has taken and cannot use: freed in one part of a step, too small for the next.

    Found by measuring (benchmarks/memory.py): the input of GELU in each block, where all is kept; with checkpointing
    what a block keeps, in the forward and in the backward pass, and in fp32 a half more of such inputs; a block's
    slopes, the head's gradient (frozen: what was read in fp32), Muon's work.
    """
    if training.device == "cuda":
        return 0
    model, n = training.model, training.tokens
    blocks = 4 * n * model.n_embd * training.width * model.n_layer
    if training.recompute:
        blocks = 2 * kept_of_a_block(training) + (3 * blocks // 2 if training.width == MASTER else 0)
    head = MASTER * model.vocab_size * model.n_embd
    return blocks + backward_work(training) + head + muon_work(training)


def muon_work(training: Training) -> int:
    """A copy of the largest stack of gradients and its update, and two of them in 16 bits for Newton-Schulz."""
    stack = 8 * training.model.n_layer * training.model.n_embd**2
    return stack * (2 * MASTER + 2 * 2) if training.optimizer == "muon" else 0


def most_rows(training: Training, *, free: int) -> int:
    """Most rows at once, up to `training.rows`, with which it takes at most `free` bytes; 0 if not even one."""
    fitting, too_many = 0, training.rows + 1
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if needed(replace(training, rows=middle)) <= free:
            fitting = middle
        else:
            too_many = middle
    return fitting
