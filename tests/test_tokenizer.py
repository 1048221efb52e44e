"""Tokenizers: parity with tiktoken and transformers, exact streaming, control tokens in user text, errors."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from linnet.errors import LinnetError
from linnet.tokenizer import END_OF_TEXT, Tokenizer, cut_stream, load_tokenizer, train_bpe, train_char, words

SHARED = Path(__file__).parents[2] / "shared" / "data"
GPT2 = SHARED / "gpt2-tokenizer"
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason=f"{GPT2} is missing")

PROSE = (
    "The linnet sings, doesn't it?  It'll sing 12 songs;\n\n\nthey're short.\tÉtude no. 3 – «naïve» …\r\n"
    "    indented = code(x[0], 'str')  # 100%\n中文没有空格。日本語もそうです。 สวัสดี 👩‍👩‍👧 e\u0301\u00a0end \n "
) * 40
SAMPLES = [
    "",
    " ",
    "  a  b ",
    "The linnet sings,\n\n  doesn't it? ",
    "\n",
    " 12 songs;\t",
    "naïve – «",
    PROSE[:3000],
]
# Text that is hard to cut: white space of every kind, contractions, runs, marks, marks of other scripts.
NASTY_PARTS = [
    *"abzAZ019 \n\t\r'’.,!|<>_-\u00a0\u3000\x1c\x85\u2028\u200b\u200d\u0301éßǅ中の한กิ。（👩Ⅷ²",
    *("'s", "'ll", "'re", "'t", " '", "  ", "\n\n", END_OF_TEXT),
]
NASTY = st.one_of(
    st.lists(st.sampled_from(NASTY_PARTS), max_size=60),
    st.lists(st.sampled_from([*" \n\ta1.'", "s", "'s", "  "]), min_size=20, max_size=60),
).map("".join)


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return load_tokenizer(str(GPT2))


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(iter([PROSE]), vocab_size=350)


@pytest.fixture(scope="module")
def char() -> Tokenizer:
    return train_char(iter([PROSE, *SAMPLES]))


def tiktoken_gpt2() -> tiktoken.Encoding:
    """tiktoken's GPT-2, built from the local vocabulary instead of a download."""
    letters = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in letters]
    to_byte = {chr(b): b for b in letters} | {chr(256 + i): b for i, b in enumerate(others)}
    vocab = json.loads((GPT2 / "vocab.json").read_text(encoding="utf-8"))
    ranks = {bytes(to_byte[c] for c in word): i for word, i in vocab.items() if word != END_OF_TEXT}
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    return tiktoken.Encoding(
        "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256}
    )


@needs_gpt2
def test_gpt2_gives_the_ids_of_tiktoken_on_prose_and_random_text(gpt2: Tokenizer) -> None:
    oracle = tiktoken_gpt2()
    assert gpt2.encode(PROSE) == oracle.encode_ordinary(PROSE)
    generator = random.Random(1)
    texts = [
        "".join(chr(generator.choice((random_point(generator), 32, 97))) for _ in range(20))
        for _ in range(2000)
    ]
    # The two libraries know different Unicode versions, so a character assigned lately may be of another kind.
    assert gpt2.encode_batch(texts) == [oracle.encode_ordinary(text) for text in texts]


def random_point(generator: random.Random) -> int:
    """A code point of an alphabet that has not changed for long."""
    low, high = generator.choice(
        [(32, 0x250), (0x391, 0x3A1), (0x410, 0x44F), (0x4E00, 0x9FA5), (0x1F600, 0x1F640)]
    )
    return generator.randint(low, high)


@needs_gpt2
def test_a_novel_is_encoded_in_pieces_like_as_a_whole(gpt2: Tokenizer) -> None:
    path = SHARED / "text" / "war_and_peace.txt"
    text = path.read_text(encoding="utf-8-sig")[:700_000]
    whole = gpt2._inner.encode(text, add_special_tokens=False).ids
    assert gpt2.encode(text) == whole
    assert gpt2.decode(whole) == text


@needs_gpt2
@settings(max_examples=400, deadline=None)
@given(text=NASTY, cuts=st.lists(st.integers(0, 60), max_size=4))
def test_a_stream_has_the_ids_of_the_whole(gpt2: Tokenizer, text: str, cuts: list[int]) -> None:
    edges = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    with SmallPieces():
        streamed = [token for ids in gpt2.encode_stream(pieces) for token in ids]
    assert streamed == gpt2._inner.encode(text, add_special_tokens=False).ids
    assert gpt2.decode(streamed) == text


class SmallPieces:
    """Pieces of 3 characters, so that every place for a cut is used."""

    def __enter__(self) -> None:
        self.before = (words.PIECE, words.BATCH, words.LONGEST_RUN)
        words.PIECE, words.BATCH, words.LONGEST_RUN = 3, 6, 1000

    def __exit__(self, *_: object) -> None:
        words.PIECE, words.BATCH, words.LONGEST_RUN = self.before


@needs_gpt2
@pytest.mark.parametrize(
    "text",
    [
        "一二三四五。" * 60_000,  # no white space
        "word " * 80_000,  # no newline
        "deadbeef0123" * 40_000,  # letters and digits only
        "x-" * 200_000,
    ],
)
def test_text_without_lines_or_spaces_is_cut_and_keeps_its_ids(gpt2: Tokenizer, text: str) -> None:
    batches = list(cut_stream(text[i : i + 100_000] for i in range(0, len(text), 100_000)))
    assert max(len(piece) for batch in batches for piece in batch) < 2 * words.PIECE
    assert gpt2.encode(text) == gpt2._inner.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("run", ["a", "\n", "-"])
def test_a_run_of_one_character_stays_within_bounds(bpe: Tokenizer, run: str) -> None:
    text = run * 1_200_000
    chunks = [text[i : i + 100_000] for i in range(0, len(text), 100_000)]
    assert max(len(piece) for batch in cut_stream(chunks) for piece in batch) <= words.BATCH + 100_000
    assert bpe.decode(bpe.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_round_trip_of_any_text(bpe: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text


def hostile(count: int, seed: int) -> Iterator[str]:
    """Control tokens split, nested, escaped, repeated, in all sorts of company."""
    generator = random.Random(seed)
    parts = [
        END_OF_TEXT,
        "<|",
        "|>",
        "endoftext",
        "<|endof",
        "text|>",
        "&lt;|endoftext|&gt;",
        "\\<|endoftext|\\>",
    ]
    parts += [
        "<|<|endoftext|>endoftext|>",
        "<|im_start|>",
        "<s>",
        "</s>",
        " ",
        "\n",
        "a",
        "\u200b",
        "\x00",
        "é",
        "<",
        "|",
    ]
    for _ in range(count):
        yield "".join(generator.choices(parts, k=generator.randint(1, 8)))


def check_control_tokens(tokenizers: list[Tokenizer], count: int) -> None:
    """D4: no control id from a text, and the text comes back."""
    texts = list(hostile(count, seed=4))
    for tokenizer in tokenizers:
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            assert tokenizer.end_of_text not in ids, text
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode([tokenizer.end_of_text, *ids, tokenizer.end_of_text]) == text


@needs_gpt2
def test_control_tokens_in_a_text_are_plain_characters(gpt2: Tokenizer, bpe: Tokenizer) -> None:
    check_control_tokens([gpt2, bpe, train_char(hostile(300, seed=4))], 3000)


@needs_gpt2
@pytest.mark.slow
def test_control_tokens_in_a_hundred_thousand_texts(gpt2: Tokenizer, bpe: Tokenizer) -> None:
    check_control_tokens([gpt2, bpe, train_char(hostile(3000, seed=4))], 100_000)


def test_control_tokens_of_a_saved_and_loaded_tokenizer(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path, n_positions=64)
    check_control_tokens([Tokenizer.load(tmp_path)], 300)


def loosely_marked(folder: Path, bpe: Tokenizer, *, layout: str) -> Tokenizer:
    """`bpe` in a tokenizer.json that does not say which of its tokens are control tokens."""
    folder.mkdir(exist_ok=True)
    bpe.save(folder, n_positions=64)
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    (end,) = value["added_tokens"]
    if layout == "in the vocabulary only":
        value["added_tokens"] = []
        value["model"]["vocab"][END_OF_TEXT] = end["id"]
    else:
        end |= {"special": False, "normalized": layout == "normalized"}
        value["added_tokens"].append({**end, "id": end["id"] + 1, "content": "<|im_start|>"})
    path.write_text(json.dumps(value), encoding="utf-8")
    return Tokenizer.load(folder)


@pytest.mark.parametrize("layout", ["added", "normalized", "in the vocabulary only"])
def test_control_tokens_without_their_mark_are_plain_characters_too(
    bpe: Tokenizer, tmp_path: Path, layout: str
) -> None:
    loaded = loosely_marked(tmp_path, bpe, layout=layout)
    check_control_tokens([loaded], 1000)
    assert max(max(ids) for ids in loaded.encode_batch(list(hostile(300, seed=5)))) < loaded.end_of_text
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again, n_positions=64)
    check_control_tokens([Tokenizer.load(again)], 300)
    assert Tokenizer.load(again).fingerprint == loaded.fingerprint
    if (
        layout != "in the vocabulary only"
    ):  # what the file does not call special is shown, but for the end token
        for tokenizer in (loaded, Tokenizer.load(again)):
            assert tokenizer.decode([tokenizer.end_of_text, tokenizer.end_of_text + 1]) == "<|im_start|>"


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_transformers_gives_end_of_text_and_the_same_ids(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "gpt2" and not GPT2.is_dir():
        pytest.skip(f"{GPT2} is missing")
    ours: Tokenizer = request.getfixturevalue(kind)
    ours.save(tmp_path, n_positions=96)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in SAMPLES:
        ids = theirs(text)["input_ids"]
        assert ids == [ours.end_of_text, *ours.encode(text)]
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert theirs.model_max_length == 96
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text
    assert len(theirs) == ours.vocab_size
    loaded = Tokenizer.load(tmp_path)
    assert loaded.prefix == [ours.end_of_text]
    assert loaded.fingerprint == ours.fingerprint
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again, n_positions=96)
    assert (again / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@needs_gpt2
def test_published_gpt2_has_no_prefix_in_either_of_its_forms(gpt2: Tokenizer, tmp_path: Path) -> None:
    assert gpt2.prefix == []
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GPT2 / name, tmp_path)
    old_form = load_tokenizer(str(tmp_path))
    assert old_form.prefix == []
    assert old_form.fingerprint == gpt2.fingerprint
    assert old_form.encode(PROSE) == gpt2.encode(PROSE)


def test_bpe_has_bytes_first_and_end_of_text_last(bpe: Tokenizer) -> None:
    assert (bpe.vocab_size, bpe.end_of_text) == (350, 349)
    assert sorted(bpe.encode("a")) == bpe.encode("a")
    assert max(bpe.encode("\x00\x7f")) < 256
    short = train_bpe(iter(["one two"]), vocab_size=500)
    assert short.vocab_size == 257  # no pair occurs twice
    assert short.decode(short.encode("überall")) == "überall"


def test_the_same_texts_give_the_same_bpe_in_any_process(bpe: Tokenizer) -> None:
    code = (
        "import sys; from linnet.tokenizer import train_bpe; "
        "print(train_bpe(iter([sys.stdin.buffer.read().decode()]), vocab_size=350).fingerprint)"
    )
    for threads, hash_seed in (("1", "0"), ("4", "17")):
        environment = os.environ | {
            "RAYON_NUM_THREADS": threads,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONUTF8": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, input=PROSE.encode(), capture_output=True
        )
        assert done.stdout.decode().strip() == bpe.fingerprint, done.stderr


def test_characters_are_sorted_and_an_unknown_one_is_named(char: Tokenizer) -> None:
    small = train_char(iter(["ba", "c b"]))
    assert small.encode(" abc") == [0, 1, 2, 3]
    assert (small.vocab_size, small.end_of_text) == (5, 4)
    with pytest.raises(LinnetError, match=r"'Ω' \(U\+03A9\)"):
        small.encode("abΩ")
    places = {c: i for i, c in enumerate(sorted(set(PROSE + "".join(SAMPLES))))}
    assert char.encode(PROSE) == [places[c] for c in PROSE]


def test_half_a_character_is_refused(bpe: Tokenizer) -> None:
    with pytest.raises(LinnetError, match=r"U\+D800"):
        bpe.encode("a\ud800b")


def test_fingerprints_differ_where_ids_would(bpe: Tokenizer) -> None:
    assert bpe.fingerprint != train_bpe(iter([PROSE]), vocab_size=349).fingerprint


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer.json": "{}"}, "tokenizer.json is not a tokenizer"),
        ({"tokenizer.json": "\x80"}, "tokenizer.json is not a tokenizer"),
        ({"tokenizer_config.json": "[]"}, "not a JSON object"),
        ({"vocab.json": "{", "merges.txt": ""}, "damaged"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\n"}, r"no <\|endoftext\|> token"),
        ({"tokenizer.pkl": "x", "tokenizer.py": "raise SystemExit"}, "holds no tokenizer"),
    ],
)
def test_a_bad_folder_is_one_sentence(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(LinnetError, match=words):
        load_tokenizer(str(tmp_path))


def test_another_end_token_is_taken_from_the_config(tmp_path: Path, bpe: Tokenizer) -> None:
    bpe.save(tmp_path, n_positions=8)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8").replace(END_OF_TEXT, "</s>")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {"eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.end_of_text == loaded.prefix[0] == 349
    assert 349 not in loaded.encode("</s>")


def run_with_hub(code: str, home: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", "from linnet.tokenizer import load_tokenizer\n" + code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_hub_cache_is_enough_and_an_unreachable_hub_is_one_sentence(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--openai-community--gpt2"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    bpe.save(snapshot, n_positions=8)
    code = (
        "print(load_tokenizer('gpt2').vocab_size)\n"
        "try:\n    load_tokenizer('nobody/nothing')\nexcept ValueError as error:\n    print(error)"
    )
    done = run_with_hub(code, tmp_path, "http://127.0.0.1:9")
    size, message = done.stdout.splitlines()
    assert size == "350"
    assert "nobody/nothing" in message
    assert "tokenizer.name" in message
