"""Many texts in one pass: each is what it would be alone, whatever its neighbours and whatever was read before."""

import math
import random
from typing import NamedTuple

import pytest
import torch

from linnet.device import cpu_has_bf16
from linnet.generate import decoder as decoders
from linnet.generate.batch import Batch
from linnet.generate.decoder import CHUNK, MOST_READ, Decoder
from linnet.generate.engine import Model
from linnet.generate.kernels import kernels
from linnet.generate.products import Precision
from linnet.generate.prompt_cache import PromptCache
from linnet.generate.writing import Writing
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.lora import dequantize, quantize
from linnet.model.pretrained import load_model
from linnet.tokenizer import Tokenizer
from linnet.turns.template import PAPERS
from tests.generate.networks import shift
from tests.model.examples import TEXT, tokenizer

HAS_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines
PRECISIONS: list[Precision] = ["fp32", "int8", "fp16", "bf16"]


@pytest.fixture(params=["compiled", "torch's"])
def own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernels are those of kernels.c."""
    if request.param == "compiled" and kernels() is None:
        pytest.skip("kernels.c was not compiled, or this CPU has no AVX2")
    if request.param != "compiled":
        monkeypatch.setattr(decoders, "kernels", lambda: None)
    return request.param == "compiled"


def network(*, n_positions: int = 512, seed: int = 0) -> GPT2:
    """Wide enough for the kernels of real ones, and not sure of anything, so that rounding shows."""
    shape = GPT2Config(tokenizer().vocab_size, n_positions, 64, 2, 4, initializer_range=0.2)
    made = GPT2(shape, seed=seed)
    with torch.no_grad():
        made.wpe.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    shift(made, tokenizer().end_of_text, by=-100.0)
    return made


def model_of(made: GPT2, precision: Precision = "fp32", *, together: bool = True, **options) -> Model:
    return Model(made, tokenizer(), decoder=Decoder(made, precision=precision, together=together), **options)


class Said(NamedTuple):
    """The tokens of a text, and the scores that each was drawn from: a rounding seldom changes a token."""

    tokens: list[int]
    scores: list[torch.Tensor]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Said)
        pairs = zip(self.scores, other.scores, strict=False)
        return self.tokens == other.tokens and all(torch.equal(one, two) for one, two in pairs)


def write(batch: Batch, writings: list[Writing], *, starts: list[int] | None = None) -> list[Said]:
    """What all write; text i is added before step starts[i]."""
    starts = starts or [0] * len(writings)
    said = [Said(writing.tokens, []) for writing in writings]
    for writing, one in zip(writings, said, strict=True):
        listen(writing, one.scores)
    step = 0
    while len(batch) or step <= max(starts):
        for writing, start in zip(writings, starts, strict=True):
            if start == step:
                batch.add(writing)
        batch.step()
        step += 1
    assert all(writing.finish_reason for writing in writings)
    return said


def listen(writing: Writing, scores: list[torch.Tensor]) -> None:
    """Keep the scores that are given to `writing`."""
    plain = writing.draw

    def draw(logits: torch.Tensor) -> int | None:
        scores.append(logits.clone())
        return plain(logits)

    writing.draw = draw  # type: ignore[method-assign]


def alone(model: Model, writing: Writing) -> Said:
    assert model.decoder is not None
    return write(Batch(model.decoder), [writing])[0]


# --- the network ---------------------------------------------------------------------------------------------------


def some_ids(count: int, *, seed: int = 1) -> list[int]:
    return torch.randint(300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def scores(decoder: Decoder, ids: list[int], *, read: int) -> torch.Tensor:
    """[N, V]: the first `read` ids as a prompt is read, the others one by one."""
    memory = decoder.memory(room=len(ids))
    found = [
        decoder.scores(decoder.read(ids[start : min(start + MOST_READ, read)], memory))
        for start in range(0, read, MOST_READ)
    ]
    found += [decoder.decode([token], [memory]) for token in ids[read:]]
    assert memory.length == len(ids)
    return torch.cat(found)


@pytest.mark.parametrize("read", [0, 1, CHUNK, CHUNK + 5, MOST_READ, 390, 400])
def test_reading_and_decoding_equal_the_network(own, read):
    made, ids = network(), some_ids(400)
    with torch.inference_mode():
        wanted = made.logits(made(torch.tensor([ids])))[0]
    for together in (False, True):
        found = scores(Decoder(made, together=together), ids, read=read)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_fp16_is_the_network_of_the_rounded_weights(own):
    if not own and not HAS_FBGEMM:
        pytest.skip("this torch has no FBGEMM")
    made, ids = network(), some_ids(200)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.half().float()
    with torch.inference_mode():
        wanted = made.logits(made(torch.tensor([ids])))[0]
    for together in (False, True):
        found = scores(Decoder(network(), precision="fp16", together=together), ids, read=100)
        torch.testing.assert_close(found, wanted, atol=5e-3, rtol=1e-3)  # positions are not rounded


@pytest.mark.parametrize("read", [0, 20, 200])
def test_int8_is_the_network_of_the_rounded_weights(own, read):
    exact = own and not cpu_has_bf16()
    made, rounded, ids = network(), network(), some_ids(200)
    matrices = [rounded.wte, *(m for m in rounded.h.modules() if isinstance(m, torch.nn.Linear))]
    with torch.inference_mode():
        for matrix in matrices:
            codes, scale = quantize(matrix.weight)
            scale = scale if exact else scale.bfloat16().float()
            matrix.weight.copy_(dequantize(codes, scale, torch.float32))
        wanted = rounded.logits(rounded(torch.tensor([ids])))[0]
        plain = made.logits(made(torch.tensor([ids])))[0]
    found = scores(Decoder(made, precision="int8"), ids, read=read)
    error, rounding = (found - wanted).norm() / wanted.norm(), (plain - wanted).norm() / wanted.norm()
    assert error < (1e-5 if exact else 0.02)  # torch's products of few rows read their input in bf16
    assert rounding > 0.002  # else this test could not tell


def test_score_is_the_log_softmax_of_the_network():
    made, ids = network(), some_ids(300)
    found = model_of(made).score(ids, top=3)
    with torch.inference_mode():
        wanted = made.logits(made(torch.tensor([ids])))[0].double().log_softmax(1)[:-1]
    assert [one.token for one in found] == ids[1:]
    torch.testing.assert_close(
        torch.tensor([one.logprob for one in found]).double(),
        wanted.gather(1, torch.tensor(ids[1:])[:, None])[:, 0],
        atol=1e-4,
        rtol=1e-4,
    )
    assert [one.top[0][0] for one in found] == wanted.argmax(1).tolist()
    assert all(len(one.top) == 3 and one.top == sorted(one.top, key=lambda t: -t[1]) for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("read", ["whole", "one by one"])
def test_int8_keeps_the_perplexity_within_1_percent(shared_data, read):
    folder, text = shared_data / "base-30m", shared_data / "math/gsm8k_test.jsonl"
    tokens = Tokenizer.load(folder)
    ids = tokens.encode(text.read_text(encoding="utf-8")[:20_000])
    made = load_model(folder)
    losses = {}
    for precision in ("fp32", "int8"):
        model = Model(made, tokens, decoder=Decoder(made, precision=precision))
        if read == "whole":
            windows = [ids[start : start + 1024] for start in range(0, 4096, 1024)]
            likely = [one.logprob for window in windows for one in model.score(window, top=0)]
        else:
            found = scores(model.decoder, ids[:400], read=0).double().log_softmax(1)
            likely = found[:-1].gather(1, torch.tensor(ids[1:400])[:, None])[:, 0].tolist()
        losses[precision] = -sum(likely) / len(likely)
    assert losses["int8"] == pytest.approx(losses["fp32"], abs=math.log(1.01))
    assert losses["int8"] != losses["fp32"]


# --- alone and among others ------------------------------------------------------------------------------------------


def texts(model: Model, *, count: int, seed: int) -> list[Writing]:
    """Prompts of all lengths, some of which begin alike, some beyond the window; sampled, greedy, penalized."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        options = draw.choice(
            [{}, {"temperature": 0}, {"repetition_penalty": 1.3}, {"top_p": 1.0}, {"frequency_penalty": 0.5}]
        )
        length = draw.choice([0, 1, 5, 60, 150, 290, 700])
        prompt = (TEXT * 3)[:length] if draw.random() < 0.5 else (TEXT * 4)[number : number + length]
        made.append(model.start(prompt, seed=number, max_new_tokens=draw.choice([1, 7, 40]), **options))
    return made


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_text_does_not_depend_on_its_neighbours(own, precision, seed):
    if precision == "fp16" and not own and not HAS_FBGEMM:
        pytest.skip("this torch has no FBGEMM")
    model = model_of(network(), precision)
    assert model.decoder is not None
    expected = [alone(model, writing) for writing in texts(model, count=14, seed=seed)]
    draw = random.Random(seed)
    for prompts in (None, PromptCache(most_bytes=2**30), PromptCache(most_bytes=2**20)):
        batch = Batch(model.decoder, prompts=prompts)
        for _ in range(2):  # the second time the prompts are known
            starts = [draw.randrange(30) for _ in expected]
            assert write(batch, texts(model, count=14, seed=seed), starts=starts) == expected
    assert len({tuple(one.tokens) for one in expected}) > 10
    again = Model(network(), tokenizer(), decoder=Decoder(network(), precision=precision, together=True))
    assert [alone(again, writing) for writing in texts(again, count=3, seed=seed)] == expected[:3]


def test_short_prompts_are_read_together_and_long_ones_in_turns():
    model = model_of(network())
    assert model.decoder is not None
    batch = Batch(model.decoder)
    short = [model.start(TEXT[number : number + 20], seed=1, max_new_tokens=9) for number in range(9)]
    long = [model.start((TEXT * 4)[number : number + 450], seed=1, max_new_tokens=9) for number in range(2)]
    assert all(MOST_READ < len(writing.prompt) < 2 * MOST_READ for writing in long)
    for writing in (*short, *long):
        batch.add(writing)

    def written() -> list[int]:
        return [len(writing.tokens) for writing in (*short, *long)]

    batch.step()
    assert written() == [1] * 8 + [0, 0, 0]
    batch.step()
    assert written() == [2] * 8 + [1, 0, 0]
    for _ in range(2):
        batch.step()
    assert written() == [4] * 8 + [3, 1, 0]
    for _ in range(2):
        batch.step()
    assert written() == [6] * 8 + [5, 3, 1]


def test_prompts_with_a_known_beginning_are_short():
    model = model_of(network())
    assert model.decoder is not None
    batch = Batch(model.decoder, prompts=PromptCache(most_bytes=2**30))
    shared = (TEXT * 4)[:300]

    def ask() -> list[Writing]:
        return [model.start(shared + str(number) * 9, seed=1, max_new_tokens=3) for number in range(3)]

    assert len(ask()[0].prompt) > 3 * CHUNK
    write(batch, ask()[:1])
    later = ask()
    for writing in later:
        batch.add(writing)
    batch.step()
    assert [len(writing.tokens) for writing in later] == [1, 1, 1]


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_rows_do_not_depend_on_their_number_with_any_threads(own, threads):
    """1,024 wide: from 4 rows on torch shares the inputs of its operations among threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        shape = GPT2Config(300, 64, 1024, 2, 16, initializer_range=0.2)
        for precision in ("fp32", "fp16", "int8"):
            decoder = Decoder(GPT2(shape, seed=1), precision=precision, together=True)
            with torch.inference_mode():
                memories = [decoder.memory(room=4) for _ in range(16)]
                whole = decoder.decode(list(range(16)), memories)
                for count in (1, 3, 5, 8, 11):
                    fresh = [decoder.memory(room=4) for _ in range(count)]
                    assert torch.equal(decoder.decode(list(range(count)), fresh), whole[:count])
    finally:
        torch.set_num_threads(before)


def test_texts_that_leave_change_nothing_for_the_others():
    model = model_of(network())
    assert model.decoder is not None
    expected = [alone(model, writing) for writing in texts(model, count=9, seed=3)]
    batch, stay, leave = Batch(model.decoder), texts(model, count=9, seed=3), texts(model, count=9, seed=4)
    said = [Said(writing.tokens, []) for writing in stay]
    for writing, heard in zip(stay, said, strict=True):
        listen(writing, heard.scores)
    for one, other in zip(stay, leave, strict=True):
        batch.add(one)
        batch.add(other)
    step = 0
    while len(batch):
        batch.step()
        if step < len(leave):
            batch.drop(leave[step])
            batch.drop(leave[step])  # Who is gone cannot go.
        step += 1
    assert said == expected
    assert not any(writing.finish_reason for writing in leave if len(writing.tokens) == 0)


def test_alone_it_is_what_the_plain_way_writes():
    made = network()
    plain, fast = Model(made, tokenizer()), model_of(made, together=False)
    for one, other in zip(texts(plain, count=14, seed=5), texts(fast, count=14, seed=5), strict=True):
        assert one.complete() == other.complete()


def test_an_article_that_goes_on_is_read_again_in_its_windows():
    made = network(n_positions=128)
    model = model_of(made, template=PAPERS)
    plain = Model(made, tokenizer(), template=PAPERS)
    asked = {"system": "On finches", "continue_sections": True, "seed": 3, "max_new_tokens": 400}
    abstract = "A bird sings. It is heard! Nobody knows why. " * 6
    assert model.complete(abstract, **asked) == plain.complete(abstract, **asked)


# --- choices, penalties, logprobs ------------------------------------------------------------------------------------


def test_choices_of_one_prompt_differ_and_are_the_same_again():
    model = model_of(network())
    assert model.decoder is not None
    choices = [model.start("The linnet", seed=5, choice=number, max_new_tokens=20) for number in range(4)]
    written = write(Batch(model.decoder), choices)
    assert len({tuple(one.tokens) for one in written}) == 4
    assert written[0].tokens == model.complete("The linnet", seed=5, max_new_tokens=20).token_ids
    third = model.start("The linnet", seed=5, choice=2, max_new_tokens=20)
    assert alone(model, third) == written[2]


def test_pieces_carry_how_likely_their_tokens_were():
    model = model_of(network(), together=False)
    writing = model.start("The linnet", seed=1, max_new_tokens=30, logprobs=4, stop="zzzz")
    batch = writing._begin(writing)
    pieces = []
    while not writing.finish_reason:
        batch.step()
        pieces.append(writing.take())
    likely = [one for piece in pieces for one in piece.likely]
    assert [one.token for one in likely] == writing.tokens
    scored = model.score(writing.prompt + writing.tokens, top=4)[len(writing.prompt) - 1 :]
    for one, other in zip(likely, scored, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


# --- what was read before ---------------------------------------------------------------------------------------------


class Counted(Decoder):
    """Counts the ids that are read."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.count = 0

    def read(self, ids, memory):
        self.count += len(ids)
        return super().read(ids, memory)


def test_a_prompt_that_was_read_is_not_read_again():
    decoder = Counted(network())
    model = Model(network(), tokenizer(), decoder=decoder)
    prompt = (TEXT * 4)[:700]
    writing = model.start(prompt, seed=1, max_new_tokens=3)
    whole = len(writing.row.ids) - 1
    assert whole > 3 * CHUNK
    first = writing.complete()
    assert decoder.count == whole
    assert model.complete(prompt, seed=1, max_new_tokens=3) == first
    assert decoder.count == whole + whole % CHUNK
    model.complete(prompt[:350] + "But then", seed=1, max_new_tokens=3)
    shared = len(tokenizer().encode(prompt[:350]))
    assert decoder.count < 2 * whole + CHUNK
    assert shared > CHUNK


def test_the_prompt_cache_keeps_to_its_bytes_and_forgets_the_oldest():
    decoder = Decoder(network())
    memory = decoder.memory(room=512)
    one = memory.chunk(0).nbytes
    prompts = PromptCache(most_bytes=5 * one)
    with torch.inference_mode():
        for seed in range(4):
            memory.length = 0
            ids = some_ids(2 * CHUNK, seed=seed)
            decoder.read(ids, memory)
            prompts.keep(memory, ids)
            assert prompts.bytes == sum(chunk.nbytes for chunk in prompts.chunks.values()) <= 5 * one
    for seed, known in ((0, 0), (3, 2 * CHUNK)):
        fresh = decoder.memory(room=512)
        prompts.fill(fresh, some_ids(2 * CHUNK, seed=seed))
        assert fresh.length == known
    fresh = decoder.memory(room=512)
    prompts.fill(fresh, [*some_ids(2 * CHUNK, seed=3)[:-1], 7])  # the last id differs
    assert fresh.length == CHUNK
