"""Near duplicates against the exact Jaccard index of five-word shingles, on planted copies and on real text."""

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.data.duplicates import (
    HELD_OUT_THRESHOLD,
    PERMUTATIONS,
    SHINGLE,
    estimated_jaccard,
    near_duplicates,
    numbers_in_band,
    shingle_hashes,
    sketches,
)

WORDS = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in ("n", "r", "st", "lling", "mentary")]
any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates, too


def exact_jaccard(left: str, right: str) -> float:
    """By sets of tuples of words, for ASCII text of at least eight words: the definition, written another way."""
    sets = []
    for text in (left, right):
        words = re.findall("[a-z0-9]+", text.lower())
        sets.append({tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def rows(count: int, *, seed: int, words: int = 120) -> list[str]:
    """Texts of random words that have no shingle in common."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(words // 2, words * 2))) + "." for _ in range(count)]


def one_word_changed(text: str, draw: random.Random) -> str:
    words = text.split()
    words[draw.randrange(len(words))] = "quite"
    return " ".join(words)


def sentence_added(text: str, draw: random.Random) -> str:
    return text + " It was so."


def case_and_signs(text: str, draw: random.Random) -> str:
    return "“" + ", ".join(text.title().split()).replace(".", "!") + "”"


def drops(texts: list[str], held_out: list[bool], *, threshold: float = 0.0) -> list[bool]:
    return near_duplicates(sketches(texts), threshold=threshold, held_out=np.array(held_out)).tolist()


@pytest.mark.parametrize("edit", [one_word_changed, sentence_added, case_and_signs])
def test_planted_copies_of_held_out_rows_are_found_and_no_others(
    edit: Callable[[str, random.Random], str],
) -> None:
    draw = random.Random(5)
    held, others = rows(200, seed=1), rows(2000, seed=2)
    copies = [edit(text, draw) for text in held]
    near = [exact_jaccard(a, b) >= 0.87 for a, b in zip(held, copies, strict=True)]
    found = drops([*held, *copies, *others], [True] * 200 + [False] * 2200)
    assert sum(near) >= 150
    assert not any(found[:200])
    assert not any(found[400:])
    assert sum(a and b for a, b in zip(found[200:400], near, strict=True)) >= 0.95 * sum(near)


def test_the_estimate_is_within_its_error_of_the_exact_index() -> None:
    draw, errors = random.Random(3), []
    for text in rows(150, seed=4, words=200):
        other = text
        for _ in range(draw.randint(1, 8)):
            other = one_word_changed(other, draw)
        pair = sketches([text, other])
        errors.append(float(estimated_jaccard(pair[0], pair[1])) - exact_jaccard(text, other))
    assert abs(np.mean(errors)) < 0.02  # 0.06 / sqrt(150) is 0.005
    assert np.std(errors) < 0.08  # sqrt(0.5 * 0.5 / 64) is 0.0625 at most


def test_the_threshold_decides_within_a_side_and_between_the_sides() -> None:
    text = rows(1, seed=7, words=400)[0]
    words = text.split()
    half = " ".join(words[: len(words) * 2 // 3]) + " " + rows(1, seed=8, words=40)[0]
    similar = exact_jaccard(text, half)
    assert 0.5 < similar < 0.7
    assert drops([text, half], [False, False]) == [False, False]
    assert drops([text, text], [False, False]) == [False, False]
    assert drops([text, text, half], [False, False, False], threshold=0.9) == [False, True, False]
    assert drops([text, half], [False, False], threshold=0.3) == [False, True]
    assert drops([text, half], [True, False]) == [False, False]
    assert drops([text, half], [True, False], threshold=0.3) == [False, True]
    assert drops([half, text], [False, True], threshold=0.3) == [
        True,
        False,
    ]  # held out, though it comes later
    assert drops([text, half], [True, True], threshold=0.3) == [False, True]


def test_a_dropped_training_row_takes_no_other_with_it() -> None:
    first, second, third = (" ".join(WORDS[start : start + 60]) for start in (0, 10, 20))
    assert exact_jaccard(first, second) > 0.6
    assert exact_jaccard(first, third) < 0.5
    assert drops([first, second, third], [True, False, False], threshold=0.57) == [False, True, False]


def test_short_rows_are_near_only_when_their_words_are_the_same() -> None:
    texts = [
        "yes",
        "no",
        "Yes!",
        "y",
        "yes no",
        "What is your name?",
        "what is your name",
        "What is your age?",
    ]
    assert drops(texts, [True] + [False] * 7) == [False, False, True, False, False, False, False, False]
    assert drops(texts, [False] * 8, threshold=0.8) == [False, False, True, False, False, False, True, False]
    signs = ["", "!!!", "???", "!!!", "  "]
    assert drops(signs, [True, True, False, False, False]) == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (
            "Ｆｕｌｌ width ﬁne words are here and nothing is lost",
            "full width fine words are here and nothing is lost",
        ),
        ("Der Übergang – so heißt es – ist „schön“.", "der übergang so heißt es ist schön"),
        ("我们在厨房准备晚饭的时候，猫在沙发上睡觉。", "我们在厨房准备晚饭的时候猫在沙发上睡觉"),
        ("caf\u00e9 au lait", "cafe\u0301 au lait"),
    ],
)
def test_forms_of_a_letter_and_punctuation_do_not_count(left: str, right: str) -> None:
    one, other = sketches([left, right])
    assert np.array_equal(one, other)


def test_scripts_without_spaces_have_words() -> None:
    text = "我们在厨房准备晚饭的时候猫在沙发上睡觉我想预订一张今晚两个人的桌子请问还有没有靠窗的位置"
    one, added, other = sketches([text, text + "谢谢", text[::-1]])
    assert estimated_jaccard(one, added) > 0.8
    assert estimated_jaccard(one, other) < 0.1


def test_long_words_count_to_their_end() -> None:
    dna = "".join(random.Random(1).choices("acgt", k=5000))
    changed = dna[:2500] + ("a" if dna[2500] != "a" else "c") + dna[2501:]
    one, same, other = sketches([dna, dna.upper(), changed])
    assert np.array_equal(one, same)
    assert 0.6 < estimated_jaccard(one, other) < 1
    assert not np.array_equal(*sketches(["x" * 60, "x" * 59]))
    assert not np.array_equal(*sketches(["abcdefghijklmnop", "abcdefghijklmnoq"]))


@given(st.lists(any_text, max_size=8), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_a_sketch_depends_on_its_row_alone(texts: list[str], draw: random.Random) -> None:
    together = sketches(texts)
    assert together.shape == (len(texts), PERMUTATIONS)
    order = list(range(len(texts)))
    draw.shuffle(order)
    assert np.array_equal(sketches([texts[i] for i in order]), together[order])
    for text, sketch in zip(texts, together, strict=True):
        assert np.array_equal(sketches([text])[0], sketch)


@given(st.lists(st.tuples(any_text, st.booleans()), max_size=12), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_which_rows_are_near_held_out_ones_does_not_depend_on_the_order(
    pairs: list[tuple[str, bool]], draw: random.Random
) -> None:
    expected = dict(zip(pairs, drops([t for t, _ in pairs], [h for _, h in pairs]), strict=True))
    assert not any(expected[pair] for pair in pairs if pair[1])
    draw.shuffle(pairs)
    assert drops([t for t, _ in pairs], [h for _, h in pairs]) == [expected[pair] for pair in pairs]


def test_sketches_are_the_same_everywhere() -> None:
    """Prepared data keeps sketches: a change of these numbers needs a new format version of the store."""
    one, two = sketches(["The quick brown fox jumps over the lazy dog.", "Yes."])
    assert one[:4].tolist() == [60105, 22003, 39946, 37274]
    assert two[:4].tolist() == [39815, 4072, 21469, 13585]


def test_bands_find_what_is_at_the_threshold() -> None:
    assert numbers_in_band(HELD_OUT_THRESHOLD) == 5
    assert numbers_in_band(1.0) == PERMUTATIONS
    for threshold in (0.01, 0.3, 0.5, 0.95):
        assert 1 <= numbers_in_band(threshold) <= PERMUTATIONS


def test_many_rows_of_one_template_take_linear_time() -> None:
    """8,000 rows of one form: 32 million pairs, were all compared."""
    draw = random.Random(9)
    form = rows(1, seed=10, words=60)[0]
    texts = [f"{form} {draw.random()} {draw.random()} {draw.random()} {draw.random()}" for _ in range(8_000)]
    held = [number % 10 == 0 for number in range(8_000)]
    started = time.process_time()
    found = drops(texts, held, threshold=0.97)
    assert time.process_time() - started < 10
    assert sum(found) < 7_999


def test_shingles_are_counted_by_the_words() -> None:
    hashes, offsets = shingle_hashes(
        ["a b c d e f g h i", "a b c d e f g h", "", "one two", "A, B c d e f g h"]
    )
    assert np.diff(offsets).tolist() == [5, 4, 1, 1, 4]
    assert hashes[5:9].tolist() == hashes[0:4].tolist() == hashes[11:15].tolist()
    assert len(set(hashes.tolist())) == 7


@pytest.mark.parametrize("name", ["math/gsm8k_train.jsonl", "chat/sgd_dev.jsonl"])
def test_real_rows_against_the_exact_index(shared_data: Path, name: str) -> None:
    with (shared_data / name).open(encoding="utf-8") as lines:
        values = [json.loads(line) for line in lines][:2000]
    texts = [
        f"{row['question']} {row['answer']}"
        if "question" in row
        else " ".join(turn["content"] for turn in row["messages"])
        for row in values
    ]
    copies = [f"{text} Thank you." for text in texts[::10]]
    held = np.concatenate((np.arange(len(texts)) % 10 == 0, np.zeros(len(copies), dtype=bool)))
    found = near_duplicates(sketches([*texts, *copies]), threshold=0.0, held_out=held)
    exact = [exact_jaccard(text, copy) >= 0.9 for text, copy in zip(texts[::10], copies, strict=True)]
    assert sum(exact) > 0.9 * len(copies)
    assert found[len(texts) :][exact].mean() > 0.97
    for row in np.flatnonzero(found[: len(texts)]):
        nearest = max(exact_jaccard(texts[row], texts[other]) for other in np.flatnonzero(held))
        assert nearest > 0.65, texts[row]
