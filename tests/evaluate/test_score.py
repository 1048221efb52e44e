"""Loss, perplexity and bits per byte: known values, and what transformers computes over the same tokens."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2LMHeadModel
from transformers import GPT2Config as TheirConfig

from linnet.data.batches import validation_batches
from linnet.data.store import Store
from linnet.errors import LinnetError
from linnet.evaluate.score import Score, measure
from linnet.evaluate.windows import strided_batches, strided_windows
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.pretrained import load_model
from linnet.tokenizer import Tokenizer, load_tokenizer, train_bpe, train_char
from tests.evaluate.stores import written_store

VERSE = "Tyger Tyger, burning bright, 🐅 in the forests of the night; "
QUESTIONS = [
    [(f"user: What is {a} + {b}?\nassistant:", False), (f" {a} plus {b} is {a + b}.", True)]
    for a, b in zip(range(3, 90, 3), range(200, 2, -7), strict=False)
]
CHATS = [[*row, ("\nuser: Sure? 🙂\nassistant:", False), (" Yes.", True)] for row in QUESTIONS[:9]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [text for row in CHATS + QUESTIONS for text, _ in row]
    return train_bpe(iter([*texts, VERSE]), vocab_size=300)


def new_model(folder: Path, vocab_size: int, n_positions: int) -> tuple[GPT2, GPT2LMHeadModel]:
    """A tiny model that transformers drew and saved; the same one in our network."""
    torch.manual_seed(3)
    shape = {"vocab_size": vocab_size, "n_positions": n_positions, "n_embd": 32, "n_layer": 2, "n_head": 2}
    theirs = GPT2LMHeadModel(TheirConfig(**shape, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(4)  # Losses far from that of a uniform guess.
    theirs.save_pretrained(folder)
    return load_model(folder), theirs


def score_rows(network: GPT2, store: Store, tokenizer: Tokenizer, *, block_size: int) -> Score:
    batches = validation_batches(store, block_size=block_size, batch_size=3, max_tokens=10**9)
    return measure(network, batches, byte_lengths=tokenizer.byte_lengths(), precision="fp32")


def score_text(network: GPT2, store: Store, tokenizer: Tokenizer, *, window: int, stride: int) -> Score:
    batches = strided_batches(store, window=window, stride=stride, batch_size=3)
    return measure(network, batches, byte_lengths=tokenizer.byte_lengths(), precision="fp32")


def theirs_on_rows(model: GPT2LMHeadModel, store: Store) -> float:
    """Each example alone, with the label -100 where a token is only read; the mean over all learned tokens."""
    total, count = 0.0, 0
    for start, stop in zip(store.examples[:-1], store.examples[1:], strict=True):
        ids = torch.tensor(store.tokens[start:stop].astype(np.int64))[None]
        labels = ids.masked_fill(torch.tensor(store.learn[start:stop] == 0)[None], -100)
        labels[0, 0] = -100
        learned = int((labels[0, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * learned
        count += learned
    return total / count


def theirs_strided(model: GPT2LMHeadModel, store: Store, *, window: int, stride: int) -> float:
    """The loop of transformers' page "Perplexity of fixed-length models", document by document."""
    total, count = 0.0, 0
    for first, end in zip(store.examples[:-1], store.examples[1:], strict=True):
        ids = torch.tensor(store.tokens[first:end].astype(np.int64))
        done = 0  # targets that are scored; target t is ids[t + 1]
        for begin in range(0, len(ids) - 1, stride):
            stop = min(begin + window, len(ids) - 1)
            # n pairs are n + 1 ids; the model has positions for n, so the last id is a target only.
            with torch.no_grad():
                logits = model(ids[begin:stop][None]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, ids[begin + 1 : stop + 1], reduction="none")
            total += float(losses[done - begin :].sum())
            count += stop - done
            done = stop
            if stop == len(ids) - 1:
                break
    return total / count


def test_known_values() -> None:
    score = Score(loss=math.log(2), tokens=20, learned_tokens=10, bytes=5)
    assert score.perplexity == pytest.approx(2)
    assert score.bits_per_byte == pytest.approx(2)  # 10 bits for 5 bytes


def test_a_model_that_knows_nothing_has_the_loss_of_a_guess(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = written_store(tmp_path / "store", QUESTIONS, tokenizer=tokenizer)
    network = GPT2(GPT2Config(tokenizer.vocab_size, n_positions=64, n_embd=8, n_layer=1, n_head=1))
    torch.nn.init.zeros_(network.wte.weight)
    score = score_rows(network, store, tokenizer, block_size=64)
    answers = [text for row in QUESTIONS for text, learned in row if learned]
    assert score.loss == pytest.approx(math.log(tokenizer.vocab_size), abs=1e-5)
    assert score.perplexity == pytest.approx(tokenizer.vocab_size, rel=1e-4)
    assert score.learned_tokens == int(store.learn.sum())
    assert score.tokens == store.pairs
    assert score.bytes == sum(len(text.encode()) for text in answers)
    bits = score.learned_tokens * math.log2(tokenizer.vocab_size)
    assert score.bits_per_byte == pytest.approx(bits / score.bytes, rel=1e-5)


@pytest.mark.parametrize("examples", [QUESTIONS, CHATS], ids=["instruct", "chat"])
def test_masked_answers_have_transformers_loss(
    tmp_path: Path, tokenizer: Tokenizer, examples: list[list[tuple[str, bool]]]
) -> None:
    store = written_store(tmp_path / "store", examples, tokenizer=tokenizer)
    network, theirs = new_model(tmp_path / "model", tokenizer.vocab_size, 128)
    score = score_rows(network, store, tokenizer, block_size=128)
    assert score.loss == pytest.approx(theirs_on_rows(theirs, store), abs=1e-4)
    assert score.loss > 6  # Not what any model would have.


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 64), (48, 7), (64, 1)])
def test_strided_text_has_transformers_loss(
    tmp_path: Path, tokenizer: Tokenizer, window: int, stride: int
) -> None:
    documents = [[(VERSE * 12, True)], [("Short. ", True)], [(VERSE * 3, True)]]
    store = written_store(tmp_path / "store", documents, tokenizer=tokenizer, format="text")
    network, theirs = new_model(tmp_path / "model", tokenizer.vocab_size, 64)
    score = score_text(network, store, tokenizer, window=window, stride=stride)
    assert score.loss == pytest.approx(theirs_strided(theirs, store, window=window, stride=stride), abs=1e-4)
    assert score.learned_tokens == store.pairs
    assert score.bytes == len((VERSE * 15 + "Short. ").encode())


@pytest.mark.parametrize("kind", ["instruct", "lines", "text"])
def test_a_real_model_has_transformers_loss(tmp_path: Path, shared_data: Path, kind: str) -> None:
    folder = shared_data / "base-30m"
    tokenizer = load_tokenizer(str(folder))
    play = (shared_data / "text" / "tinyshakespeare.txt").read_text()[:3000]
    examples = {
        "instruct": QUESTIONS,
        "lines": [[(line, True)] for line in play.splitlines() if line][:60],
        "text": [[(play, True)]],
    }[kind]
    store = written_store(tmp_path / "store", examples, tokenizer=tokenizer, format=kind)
    network = load_model(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if kind == "text":
        score = score_text(network, store, tokenizer, window=256, stride=128)
        expected = theirs_strided(theirs, store, window=256, stride=128)
    else:
        score = score_rows(network, store, tokenizer, block_size=256)
        expected = theirs_on_rows(theirs, store)
    assert score.loss == pytest.approx(expected, abs=1e-4)
    assert 2 < score.loss < 10


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=20), window=st.integers(1, 40), data=st.data()
)
def test_each_target_is_scored_once_and_with_context(
    lengths: list[int], window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    examples = np.cumsum([0, *lengths])
    scored = np.zeros(examples[-1], int)
    for start, pairs, read in strided_windows(examples, window=window, stride=stride).tolist():
        assert 0 <= read < pairs <= window
        scored[start + 1 + read : start + 1 + pairs] += 1
        assert start in examples or read == window - stride
    expected = np.ones(examples[-1], int)
    expected[examples[:-1]] = 0
    assert np.array_equal(scored, expected)


def test_more_context_makes_a_real_text_easier(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "base-30m"
    tokenizer = load_tokenizer(str(folder))
    novel = (shared_data / "text" / "tinyshakespeare.txt").read_text()[:4000]
    store = written_store(tmp_path / "store", [[(novel, True)]], tokenizer=tokenizer, format="text")
    network = load_model(folder)
    half = score_text(network, store, tokenizer, window=64, stride=32)
    side_by_side = score_text(network, store, tokenizer, window=64, stride=64)
    assert half.loss < side_by_side.loss - 0.05
    assert half.learned_tokens == side_by_side.learned_tokens


def test_at_most_the_tokens_that_were_asked_for(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = written_store(tmp_path / "store", [[(VERSE * 20, True)]], tokenizer=tokenizer, format="text")
    for limit in (1, 10, 33, 200, store.pairs, 10**9):
        batches = list(strided_batches(store, window=32, stride=16, batch_size=4, max_tokens=limit))
        count = sum(int(batch.learn.sum()) for batch in batches)
        assert count == sum(batch.tokens for batch in batches)
        assert min(limit, store.pairs) / 2 <= count <= limit


def test_bits_per_byte_compare_tokenizers_and_losses_do_not(tmp_path: Path) -> None:
    """Two models that give each byte of an ASCII text the same probability, in characters and in pairs of them."""
    text = "abab" * 50
    chars, pairs = train_char(iter([text])), train_bpe(iter([text * 9]), vocab_size=258)
    found = {}
    for name, tokenizer in {"char": chars, "bpe": pairs}.items():
        store = written_store(tmp_path / name, [[(text, True)]], tokenizer=tokenizer, format="text")
        network = GPT2(GPT2Config(tokenizer.vocab_size, n_positions=64, n_embd=8, n_layer=1, n_head=1))
        # The head and the final norm give the score 0 to `wanted` and -30 to the rest: the same chance for each wanted.
        wanted = 1 + len(set(tokenizer.encode(text)))
        torch.nn.init.zeros_(network.wte.weight)
        network.wte.weight.data[:, 0] = -30.0
        network.wte.weight.data[[tokenizer.end_of_text, *set(tokenizer.encode(text))], 0] = 0.0
        network.ln_f.weight.data.zero_()
        network.ln_f.bias.data = torch.tensor([1.0] + [0.0] * 7)
        found[name] = score_text(network, store, tokenizer, window=64, stride=32)
        assert found[name].loss == pytest.approx(math.log(wanted), abs=1e-4)
        assert found[name].bytes == 200
    assert found["char"].loss == pytest.approx(math.log(3), abs=1e-4)
    assert found["char"].bits_per_byte == pytest.approx(201 * math.log2(3) / 200, rel=1e-4)
    tokens = found["bpe"].learned_tokens
    assert tokens < 120
    assert found["bpe"].bits_per_byte == pytest.approx(found["bpe"].loss * tokens / math.log(2) / 200)


@pytest.mark.parametrize(
    "make", [train_char, lambda texts: train_bpe(texts, vocab_size=270)], ids=["char", "bpe"]
)
def test_bytes_of_tokens_add_up_to_the_bytes_of_the_text(make: object) -> None:
    text = "Naïve café 日本語 🐅 — the end\n" * 3
    tokenizer: Tokenizer = make(iter([text]))  # type: ignore[operator]
    lengths = tokenizer.byte_lengths()
    assert sum(lengths[token] for token in tokenizer.encode(text)) == len(text.encode())
    assert lengths[tokenizer.end_of_text] == 0


def test_nothing_learned_and_broken_weights_are_said(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = written_store(tmp_path / "store", [[("only read", False)]], tokenizer=tokenizer)
    network = GPT2(GPT2Config(tokenizer.vocab_size, n_positions=64, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(LinnetError, match="no token in it that is learned"):
        score_rows(network, store, tokenizer, block_size=64)
    store = written_store(tmp_path / "other", QUESTIONS, tokenizer=tokenizer)
    network.ln_f.weight.data[0] = math.nan
    with pytest.raises(LinnetError, match="weights are damaged"):
        score_rows(network, store, tokenizer, block_size=64)
