"""What does not fit a row: nothing of a target is lost, nothing is learned twice, nothing is longer than the row."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.data.formats import RowFormat
from linnet.data.rows import Encoded
from linnet.data.windows import Encoder
from linnet.errors import LinnetError
from linnet.tokenizer import Tokenizer, train_bpe, train_char
from linnet.turns.layout import Layout
from linnet.turns.template import CHAT, PAPERS, SUMMARIES, Turn, answered, learns, normalize, segment_ids
from tests.conftest import SHARED_DATA

WORDS = [
    "Linnets",
    "sing",
    "<|endoftext|>",
    "user:",
    "it's",
    "3.14",
    "é",
    "漢字",
    "🙂",
    "a.",
    "So?",
    "(x)!",
    "e.g.",
]
BETWEEN = [" ", " ", " ", "\n", "\n\n", "  "]
TEMPLATES = {"instruct": CHAT, "chat": CHAT, "papers": PAPERS, "summaries": SUMMARIES}


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "gpt2":
        if not SHARED_DATA.is_dir():
            pytest.skip("the gpt2 tokenizer is missing")
        return Tokenizer.load(SHARED_DATA / "gpt2-tokenizer")
    text = " ".join(WORDS) + "\n" + "\n".join(h for t in TEMPLATES.values() for h in t.headers.values())
    text += "\nsections: ; It is so. sing 3141592"
    return train_bpe(iter([text * 5]), vocab_size=400) if kind == "bpe" else train_char(iter([text]))


def encoder_of(kind: str, name: str, size: int, learn: str = "answers", reads: str = "start") -> Encoder:
    target = "abstract" if name == "summaries" else "article"
    row_format = RowFormat(
        "papers" if name == "summaries" else name,
        {},
        TEMPLATES.get(name),
        learn=learn,
        target=target,
        reads=reads,
    )
    return Encoder(row_format, tokenizer_of(kind), size=size)


def texts(most: int) -> st.SearchStrategy[str]:
    pairs = st.tuples(st.sampled_from(WORDS), st.sampled_from(BETWEEN))
    return st.lists(pairs, min_size=1, max_size=most).map(lambda pairs: "".join(map("".join, pairs)))


SIZES = st.integers(16, 64) | st.just(1024)
KINDS = st.sampled_from(["gpt2", "bpe", "char"])
CHATS = st.lists(
    st.builds(Turn, st.sampled_from(["system", "user", "assistant", "assistant", "tool"]), texts(25)),
    max_size=9,
)
LONG_CHATS = st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), texts(90)), max_size=4)


def without_prefix(ids: list[int], *prefixes: list[int]) -> list[int]:
    for prefix in sorted(prefixes, key=len, reverse=True):
        if prefix and ids[: len(prefix)] == prefix:
            return ids[len(prefix) :]
    raise AssertionError(f"{ids[:20]} begins with none of {prefixes}")


def check(encoder: Encoder, turns: list[Turn], encoded: Encoded) -> None:
    """The promises about the windows of one row."""
    tokenizer, layout = encoder.tokenizer, encoder.layout
    assert layout
    end = tokenizer.end_of_text
    kept = normalize(turns)
    used = answered(kept)
    rows = [window.ids.tolist() for window in encoded.windows]
    for ids, window in zip(rows, encoded.windows, strict=True):
        assert len(ids) == len(window.learn) <= encoder.size
        assert (ids[0], window.learn[0]) == (end, 0)
        assert any(window.learn)
        for i, token in enumerate(ids[:-1]):
            if i and token == end:  # only behind an answer, so a header follows
                without_prefix(ids[i + 1 :], *layout.later.values(), tokenizer.encode("\nsections:"))
    # What is learned, joined, is each target once, with its end-of-text.
    learned = learned_of(encoded)
    for role, text in used:
        if not learns(role, encoder.learn):
            continue
        if encoder.learn == "all":
            learned = without_prefix(learned, layout.first[role], layout.later[role])
        content = tokenizer.encode(" " + text)
        learned = without_prefix(learned, content)
        assert tokenizer.decode(content) == " " + text
        if role == "assistant":
            learned = without_prefix(learned, [end])
    assert learned == []
    # What is read is there, or said to be shortened.
    contents = [tokenizer.encode(" " + turn.text) for turn in kept]
    assert encoded.source_tokens == sum(map(len, contents))
    present = sum(map(len, contents[: len(used)]))
    targets = [
        len(ids) for ids, turn in zip(contents, used, strict=False) if learns(turn.role, encoder.learn)
    ]
    assert sum(targets) <= encoded.present_tokens <= present
    assert encoded.shortened == (encoded.present_tokens < present)
    if not encoded.shortened:
        for content in contents[: len(used)] if len(encoded.windows) > 1 else []:
            if len(content) < encoder.size // 4:
                assert any(contains(ids, content) for ids in rows)
    if used and 1 + layout.cost(layout.parts(used)) <= encoder.size:
        expected = segment_ids(tokenizer, layout.template.segments(turns, learn=encoder.learn))
        assert [(w.ids.tolist(), w.learn.tolist()) for w in encoded.windows] == [expected]


def learned_of(encoded: Encoded) -> list[int]:
    return [token for window in encoded.windows for token in window.ids[window.learn == 1].tolist()]


def contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))


@settings(deadline=None, max_examples=400)
@given(KINDS, SIZES, CHATS | LONG_CHATS, st.sampled_from(["answers", "all"]))
def test_dialogues(kind: str, size: int, turns: list[Turn], learn: str) -> None:
    encoder = encoder_of(kind, "chat", size, learn)
    check(encoder, turns, encoder([turns])[0])


@settings(deadline=None, max_examples=200)
@given(
    KINDS,
    SIZES,
    st.sampled_from(["instruct", "papers", "summaries"]),
    st.tuples(texts(5) | st.just(""), texts(120), texts(120)),
    st.sampled_from(["answers", "all"]),
    st.sampled_from(["start", "ends", "spread"]),
)
def test_questions_and_papers(
    kind: str, size: int, name: str, row: tuple[str, str, str], learn: str, reads: str
) -> None:
    encoder = encoder_of(kind, name, size, learn, reads)
    turns = [Turn(role, text) for role, text in zip(("system", "user", "assistant"), row, strict=True)]
    check(encoder, turns, encoder([turns])[0])


@settings(deadline=None, max_examples=100)
@given(KINDS, SIZES, texts(120))
def test_lines(kind: str, size: int, line: str) -> None:
    encoder = encoder_of(kind, "lines", size)
    [encoded] = encoder([[Turn("text", line)]])
    end, ids = encoder.tokenizer.end_of_text, encoder.tokenizer.encode(line)
    assert learned_of(encoded) == [*ids, end]
    assert encoder.tokenizer.decode(ids) == line
    for window in encoded.windows:
        assert len(window.ids) == len(window.learn) <= size
        assert (window.ids[0], window.learn[0]) == (end, 0)
        assert end not in window.ids[1:-1].tolist()
    assert all(sum(window.learn) + size // 4 + 1 == size for window in encoded.windows[1:-1])
    assert encoded.source_tokens == encoded.present_tokens == len(ids)


@settings(deadline=None, max_examples=50)
@given(st.lists(CHATS, max_size=6), st.integers(16, 64))
def test_rows_together_are_as_rows_alone(rows: list[list[Turn]], size: int) -> None:
    encoder = encoder_of("bpe", "chat", size)
    for turns, together in zip(rows, encoder(rows), strict=True):
        [alone] = encoder([turns])
        assert [(w.ids.tolist(), w.learn.tolist()) for w in together.windows] == [
            (w.ids.tolist(), w.learn.tolist()) for w in alone.windows
        ]
        assert together.source_tokens == alone.source_tokens
        assert together.present_tokens == alone.present_tokens


def test_the_end_of_text_is_learned_behind_a_part_of_its_answer() -> None:
    encoder = encoder_of("char", "chat", 32)
    for length in range(1, 120):
        turns = [Turn("user", "So?"), Turn("assistant", "é" * length)]
        [encoded] = encoder([turns])
        check(encoder, turns, encoded)
        assert all(len(learned_of(replace(encoded, windows=[w]))) > 1 for w in encoded.windows)


def test_a_dialogue_goes_on_with_its_last_whole_turns_and_the_system_message() -> None:
    encoder = encoder_of("char", "chat", 100)
    turns = [Turn("system", "sing")]
    turns += [Turn(role, f"{role[0]}e {i}") for i in "3141592" for role in ("user", "assistant")]
    turns = [turn._replace(text=turn.text.replace("ue", "(x)").replace("ae", "é")) for turn in turns]
    first, second, *_ = encoder([turns])[0].windows
    decode = encoder.tokenizer.decode
    exchanges = [f"\nuser: (x) {i}\nassistant: é {i}" for i in "3141592"]
    assert decode(first.ids.tolist()) == "system: sing" + "".join(exchanges[:3])
    assert decode(second.ids.tolist()) == "system: sing" + "".join(exchanges[2:5])
    assert decode(second.ids[second.learn == 1].tolist()) == " é 1 é 5"


def test_a_long_question_is_shortened_at_a_sentence() -> None:
    encoder = encoder_of("char", "instruct", 120)
    question = "Linnets sing. It is so. " * 5 + "So? " * 20
    [encoded] = encoder([[Turn("user", question), Turn("assistant", "a." * 40)]])
    assert encoded.shortened
    assert encoded.present_tokens < encoded.source_tokens
    for window in encoded.windows:
        read = encoder.tokenizer.decode(window.ids[window.learn == 0].tolist())
        assert read.startswith("user: Linnets sing.")
        assert read.split("\nassistant:")[0].endswith((".", "?"))
    [first, *_] = encoded.windows
    assert (
        40 <= int((first.learn == 0).sum()) - len("\nassistant:") <= 61
    )  # half the row, since the answer is long


def test_a_row_too_small_for_the_headers_is_refused() -> None:
    with pytest.raises(
        LinnetError, match=r"no room beside the header 'assistant:'; set train\.block_size=15 or more"
    ):
        encoder_of("char", "chat", 15)
    encoder_of("char", "chat", 16)


def test_a_document_is_one_window_of_any_length() -> None:
    encoder = encoder_of("char", "text", 16)
    [encoded, empty] = encoder([[Turn("text", "sing " * 50)], []])
    assert [len(window.ids) for window in encoded.windows] == [252]
    assert empty == Encoded([], 0, 0, shortened=False)
    assert encoder([]) == []


@settings(deadline=None, max_examples=100)
@given(KINDS, CHATS, st.integers(0, 200), st.sampled_from(["start", "ends", "spread"]))
def test_what_is_shortened_fits_its_room(kind: str, turns: list[Turn], room: int, reads: str) -> None:
    template = CHAT if reads == "start" else SUMMARIES
    layout = Layout(template, tokenizer_of(kind), size=64, reads=reads)
    parts = layout.parts(turn for turn in turns if turn.role in template.headers)
    kept = layout.shorten(parts, room)
    assert layout.cost(kept) <= room
    assert (kept == parts) == (layout.cost(parts) <= room)
    for part in kept if reads == "start" else []:
        assert part.ids == parts[part.number].ids[: len(part.ids)] != []
