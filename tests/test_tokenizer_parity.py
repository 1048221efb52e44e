"""D5: the table of words, gigatoken, tokenizers and tiktoken give the same ids; and what happens where one does not."""

import itertools
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings

from linnet.tokenizer import END_OF_TEXT, FlatIds, Tokenizer, fast, load_tokenizer, train_bpe, words
from tests.test_tokenizer import GPT2, NASTY, NASTY_PARTS, PROSE, hostile, needs_gpt2, tiktoken_gpt2

Ids = list[list[int]]
PARTS = [*NASTY_PARTS, fast.MARK, *fast.WORDS.split(), *fast.RECENT, *fast.WHITE_SPACE]


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Without gigatoken, as where it is not installed."""
    tokenizer.__dict__["_fast"] = None
    return tokenizer


def accelerated(tokenizer: Tokenizer) -> Tokenizer:
    pytest.importorskip("gigatoken")
    tokenizer.accelerate()
    assert tokenizer._fast is not None
    return tokenizer


def reference(tokenizer: Tokenizer, texts: Sequence[str]) -> Ids:
    """`tokenizers` itself."""
    return [e.ids for e in tokenizer._inner.encode_batch_fast(list(texts), add_special_tokens=False)]


def lists(flat: FlatIds) -> Ids:
    assert (flat.ids.dtype, flat.offsets.dtype) == (np.uint32, np.int64)
    return [flat.ids[start:stop].tolist() for start, stop in itertools.pairwise(flat.offsets)]


@pytest.fixture(scope="module")
def gpt2_plain() -> Tokenizer:
    return plain(load_tokenizer(str(GPT2)))


@pytest.fixture(scope="module")
def gpt2_fast() -> Tokenizer:
    return accelerated(load_tokenizer(str(GPT2)))


@pytest.fixture(scope="module")
def oracle() -> tiktoken.Encoding:
    return tiktoken_gpt2()


def random_texts(count: int, seed: int) -> Iterator[str]:
    """Texts of every plane, with much white space, many contractions and control tokens among them."""
    generator = random.Random(seed)
    alphabets = [(32, 127), (9, 33), (0x80, 0x250), (0x250, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    for _ in range(count):
        low, high = alphabets[min(int(generator.expovariate(0.7)), 5)]
        text = [
            chr(generator.randrange(low, high)) if generator.random() < 0.7 else generator.choice(PARTS)
            for _ in range(generator.randint(0, 14))
        ]
        yield "".join(text)


def check_parity(texts: Sequence[str], tokenizers: Sequence[Tokenizer], oracle: tiktoken.Encoding) -> None:
    expected = reference(tokenizers[0], texts)
    assert expected == oracle.encode_ordinary_batch(list(texts), num_threads=1)
    for tokenizer in tokenizers:
        assert lists(tokenizer.encode_flat(texts)) == expected
        assert tokenizer.encode_batch(texts) == expected


def check_random_texts(count: int, tokenizers: Sequence[Tokenizer], oracle: tiktoken.Encoding) -> None:
    for part in range(0, count, 20_000):
        check_parity(list(random_texts(min(20_000, count - part), seed=part)), tokenizers, oracle)


@needs_gpt2
def test_20_000_random_texts(gpt2_plain: Tokenizer, gpt2_fast: Tokenizer, oracle: tiktoken.Encoding) -> None:
    check_random_texts(20_000, [gpt2_plain, gpt2_fast], oracle)


@needs_gpt2
@pytest.mark.slow
def test_a_hundred_thousand_random_texts(
    gpt2_plain: Tokenizer, gpt2_fast: Tokenizer, oracle: tiktoken.Encoding
) -> None:
    check_random_texts(100_000, [gpt2_plain, gpt2_fast], oracle)


@needs_gpt2
@pytest.mark.torture
def test_a_million_random_texts(
    gpt2_plain: Tokenizer, gpt2_fast: Tokenizer, oracle: tiktoken.Encoding
) -> None:
    check_random_texts(1_000_000, [gpt2_plain, gpt2_fast], oracle)


def real_texts(data: Path) -> Iterator[tuple[str, list[str]]]:
    """(file, its texts): novels as a whole, rows by their values, bytes of any encoding as one character each."""
    for path in sorted(data.rglob("*")):
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                yield path.name, [text for line in lines for text in strings(json.loads(line))]
        elif path.suffix in (".txt", ".csv", ".json", ".md") and path.name != "tokenizer.json":
            yield path.name, [path.read_bytes().decode("utf-8", "replace")]
            if path.stat().st_size < 100_000:
                yield path.name, [path.read_bytes().decode("latin-1")]


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


@needs_gpt2
def test_the_beginning_of_every_real_text(
    shared_data: Path, gpt2_plain: Tokenizer, gpt2_fast: Tokenizer, oracle: tiktoken.Encoding
) -> None:
    for _, texts in real_texts(shared_data):
        check_parity([text[:20_000] for text in texts[:100]], [gpt2_plain, gpt2_fast], oracle)


@needs_gpt2
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_of_the_real_text(
    shared_data: Path, gpt2_plain: Tokenizer, gpt2_fast: Tokenizer, oracle: tiktoken.Encoding
) -> None:
    for name, texts in real_texts(shared_data):
        short = [text for text in texts if len(text) <= words.BATCH]
        check_parity(short, [gpt2_plain, gpt2_fast], oracle)
        for text in (text for text in texts if len(text) > words.BATCH):
            pieces = [piece for some in words.cut_stream([text]) for piece in some]
            check_parity(pieces, [gpt2_plain, gpt2_fast], oracle)
            expected = [token for ids in oracle.encode_ordinary_batch(pieces) for token in ids]
            assert oracle.encode_ordinary(text) == expected, name  # not cut
            for tokenizer in (gpt2_plain, gpt2_fast):
                assert tokenizer.encode_flat(["", text]).ids.tolist() == expected, name
                assert tokenizer.encode(text) == expected, name


@needs_gpt2
def test_each_character_of_the_first_plane_between_others(gpt2_plain: Tokenizer) -> None:
    points = [point for point in range(0x10000) if not 0xD800 <= point < 0xE000]
    texts = [
        f"a{chr(p)}1{chr(p)} {chr(p)}'s" for p in points if not 0x5000 < p < 0xD700
    ]  # that is all letters
    assert gpt2_plain.encode_batch(texts) == reference(gpt2_plain, texts)
    unsure = words._unicode_words()[1]
    assert sum(bool(unsure.search(chr(p))) for p in points) < 11_000  # private use is 6,400 of them


@needs_gpt2
@settings(max_examples=100, deadline=None)
@given(text=NASTY)
def test_nasty_texts(gpt2_plain: Tokenizer, gpt2_fast: Tokenizer, text: str) -> None:
    texts = [text, "", text[::-1], text + fast.MARK]
    expected = reference(gpt2_plain, texts)
    assert gpt2_plain.encode_batch(texts) == gpt2_fast.encode_batch(texts) == expected


@pytest.mark.parametrize("prepare", [plain, accelerated])
def test_control_tokens_of_a_trained_bpe_are_plain_characters(
    prepare: Callable[[Tokenizer], Tokenizer],
) -> None:
    tokenizer = prepare(train_bpe(iter([PROSE]), vocab_size=350))
    texts = [END_OF_TEXT, fast.MARK, f"a{fast.MARK}{fast.MARK}", "", *hostile(2000, seed=6)]
    ids = tokenizer.encode_batch(texts)
    assert ids == reference(tokenizer, texts)
    assert max(map(max, filter(None, ids))) < tokenizer.end_of_text
    assert [tokenizer.decode(some) for some in ids] == texts


@pytest.mark.parametrize("prepare", [plain, accelerated])
def test_shapes_of_nothing_and_of_long_texts(prepare: Callable[[Tokenizer], Tokenizer]) -> None:
    tokenizer = prepare(train_bpe(iter([PROSE]), vocab_size=350))
    assert tokenizer.encode_flat([]).offsets.tolist() == [0]
    assert tokenizer.encode_flat(["", ""]).offsets.tolist() == [0, 0, 0]
    assert list(tokenizer.stream_flat([])) == []
    long = "Words, words.\n" * 60_000
    flat = tokenizer.encode_flat(["one", long, "", "two"])
    assert lists(flat) == reference(tokenizer, ["one", long, "", "two"])
    assert np.array_equal(np.concatenate(list(tokenizer.stream_flat([long]))), lists(flat)[1])
    with pytest.raises(ValueError, match=r"U\+D800"):
        tokenizer.encode_flat(["a", "b\ud800"])
    assert tokenizer.encode_batch(["b", "words"]) == reference(tokenizer, ["b", "words"])


def test_the_table_of_words_starts_anew_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "TABLE", 200)
    tokenizer = plain(train_bpe(iter([PROSE]), vocab_size=350))
    texts = [f"word{number} {number}" for number in range(500)]
    assert [tokenizer.encode_batch([text])[0] for text in texts] == reference(tokenizer, texts)
    assert tokenizer._words is not None
    assert tokenizer._words._characters < 250


def test_threads_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "TABLE", 2000)
    tokenizer = plain(train_bpe(iter([PROSE]), vocab_size=350))
    texts = [f"word{number} {number} " * 3 for number in range(2000)]
    expected = reference(tokenizer, texts)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: tokenizer.encode_batch([text])[0], texts)) == expected
    assert pickle.loads(pickle.dumps(tokenizer)).encode_batch(texts) == expected


def _ids_of_worker(tokenizer: Tokenizer, texts: list[str], out: Path) -> None:
    ids = tokenizer.encode_flat(texts).ids
    out.write_text(json.dumps([ids.tolist(), os.environ["TOKENIZERS_PARALLELISM"]]))


@pytest.mark.parametrize("prepare", [plain, accelerated])
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_use_one_thread_and_give_the_same_ids(
    method: str, prepare: Callable[[Tokenizer], Tokenizer], tmp_path: Path
) -> None:
    tokenizer = prepare(train_bpe(iter([PROSE]), vocab_size=350))
    texts = [PROSE] * 40
    expected = tokenizer.encode_flat(
        texts
    ).ids.tolist()  # the threads of this process have worked before the fork
    reference(tokenizer, texts)
    context = multiprocessing.get_context(method)
    process = context.Process(target=_ids_of_worker, args=(tokenizer, texts, tmp_path / "ids"))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert json.loads((tmp_path / "ids").read_text()) == [expected, "false"]


CODE = """
import sys
from linnet.tokenizer import train_bpe
tokenizer = train_bpe(iter(["one two three one two three"]), vocab_size=270)
for _ in range(3):
    ids = tokenizer.encode_batch(["one two three\\n" * 100_000])[0]
again = train_bpe(iter(["one two three one two three"]), vocab_size=270).encode_batch(["one " * 500_000])
print(tokenizer.decode(ids) == "one two three\\n" * 100_000, len(ids), "gigatoken" in sys.modules)
"""
WRONG = """
import numpy as np
class Tokenizer:
    from_json = classmethod(lambda cls, text: cls())
    def encode(self, text):
        return np.array([1, 2, 3], np.uint32)
"""


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise ImportError('absent')", ""),
        (WRONG, "gigatoken is not used, since its ids are not those of tokenizers.\n"),
        ("Tokenizer = None", "gigatoken is not used, since it fails (AttributeError"),
        ("1 / 0", "gigatoken is not used, since it fails (ZeroDivisionError"),
    ],
)
def test_a_gigatoken_that_is_absent_wrong_or_broken(tmp_path: Path, module: str, said: str) -> None:
    (tmp_path / "gigatoken.py").write_text(module)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("True ")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)  # said once


@needs_gpt2
@pytest.mark.slow
def test_a_store_does_not_depend_on_gigatoken(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("gigatoken")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "gigatoken.py").write_text("raise ImportError('absent')")
    stores = []
    for name, path in (("with", ""), ("without", str(tmp_path / "modules"))):
        search = os.pathsep.join(p for p in (path, str(Path(__file__).parent.parent)) if p)
        source = shared_data / "text" / "war_and_peace.txt"
        arguments = [
            "prepare",
            "text",
            f"data.source={source}",
            f"data.prepared={tmp_path / name}",
            f"tokenizer.name={GPT2}",
            "model.init_from=scratch",
        ]
        subprocess.run(
            [sys.executable, "-m", "linnet", *arguments],
            env=os.environ | {"PYTHONPATH": search},
            check=True,
            capture_output=True,
        )
        manifest = json.loads((tmp_path / name / "manifest.json").read_text(encoding="utf-8"))
        stores.append((manifest, (tmp_path / name / "tokens.bin").read_bytes()))
    assert stores[0] == stores[1]
