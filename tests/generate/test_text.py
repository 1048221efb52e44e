"""The gates between tokens and text: whole characters, stop texts, whole sentences; in pieces as at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.generate.text import Characters, Sentences, Stops
from linnet.tokenizer import train_char
from tests.model.examples import tokenizer


def through(gate, pieces):
    shown = [gate.feed(piece) for piece in pieces]
    return [*shown, gate.finish()]


def cut(text: str, places: list[int]) -> list[str]:
    places = sorted({place % (len(text) + 1) for place in places})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@given(st.text(max_size=40))
def test_any_text_comes_out_as_it_went_in(text):
    ids = tokenizer().encode(text)
    pieces = through(Characters(tokenizer()), ids)
    assert "".join(pieces) == text


@given(st.lists(st.integers(0, 299), max_size=60))
def test_any_ids_give_what_decoding_them_at_once_gives(ids):
    pieces = through(Characters(tokenizer()), ids)
    assert "".join(pieces) == tokenizer().decode(ids)


def test_no_piece_holds_a_part_of_a_character():
    text = "a é 日 🐦!"
    pieces = through(Characters(tokenizer()), tokenizer().encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(tokenizer().encode("🐦")) > 1  # it is spread over tokens


def test_an_unfinished_character_at_the_end_is_marked():
    ids = tokenizer().encode("a🐦")[:-1]
    pieces = through(Characters(tokenizer()), ids)
    assert "".join(pieces[:-1]) == "a"
    assert pieces[-1] == "\ufffd"


def test_a_true_replacement_character_passes():
    ids = tokenizer().encode("a\ufffdb\ufffd")
    assert "".join(through(Characters(tokenizer()), ids)) == "a\ufffdb\ufffd"


def test_a_character_tokenizer_keeps_its_spaces():
    chars = train_char(iter(["ab c\n日"]))
    ids = chars.encode(" a  b\n 日 ")
    assert through(Characters(chars), ids) == [*" a  b\n 日 ", ""]


def first_stop(text: str, stops: list[str]) -> str:
    """The oracle: character by character, the text before the first stop that is complete."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


LETTERS = st.text("ab\n", max_size=30)


@given(LETTERS, st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4), st.lists(st.integers(0, 99)))
def test_stops_are_found_however_the_text_is_cut(text, stops, places):
    gate = Stops(stops)
    shown = ""
    for piece in cut(text, places):
        shown += gate.feed(piece)
        assert first_stop(text, stops).startswith(shown)  # nothing of it leaks
        if gate.found:
            break
    if not gate.found:
        shown += gate.finish()
    assert shown == first_stop(text, stops)
    assert gate.found == any(stop in text for stop in stops)


def test_only_what_could_begin_a_stop_is_held_back():
    gate = Stops(["\nUser:"])
    assert gate.feed("Hello\n") == "Hello"
    assert gate.feed("Us") == ""
    assert gate.feed("age\nUse") == "\nUsage"
    assert gate.feed("r: hi") == ""
    assert gate.found


def test_without_stops_nothing_is_held_back():
    gate = Stops([])
    assert through(gate, ["a", "b"]) == ["a", "b", ""]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["It rain", "ed. Th", "en"], ["", "It rained.", "", ""]),
        (["It is 3", ".", "14", "."], ["", "", "", "", "It is 3.14."]),
        (["He met Dr.", " Who. ", "She", " and"], ["", "", "He met Dr. Who.", "", ""]),
        (["No end ", "here"], ["", "", "No end here"]),
        (["One. Two.", " three"], ["One.", "", ""]),
    ],
)
def test_sentences_are_shown_when_they_are_whole(pieces, shown):
    assert through(Sentences(cut=True), pieces) == shown


@given(st.text(' aB.!"\n3', max_size=40), st.lists(st.integers(0, 99)))
def test_sentences_do_not_depend_on_the_pieces(text, places):
    at_once = "".join(through(Sentences(cut=True), [text]))
    assert "".join(through(Sentences(cut=True), cut(text, places))) == at_once


def test_without_a_cut_everything_passes():
    assert through(Sentences(cut=False), ["No", " end"]) == ["No", " end", ""]
