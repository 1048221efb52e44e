"""Which ids the model sees: a moving window, and the windows of an article, which are those of its training."""

import json
from itertools import islice

import pytest
import torch

from linnet.config import DataConfig
from linnet.data.formats import make_row_format
from linnet.data.windows import Encoder
from linnet.generate.engine import Model
from linnet.generate.rows import ArticleRow, MovingRow, window_start
from linnet.generate.writing import Writing
from linnet.tokenizer import Tokenizer, load_tokenizer
from linnet.turns.layout import Layout, headings
from linnet.turns.template import ANSWERER, PAPERS, Turn
from tests.generate.networks import shift
from tests.model.examples import tiny, tokenizer

# --- a moving window ---------------------------------------------------------------------------------------


def test_window_start():
    assert [window_start(n, size=8) for n in (0, 1, 8, 9, 10, 11, 12, 13)] == [0, 0, 0, 2, 2, 4, 4, 6]
    assert [window_start(n, size=1) for n in (1, 2, 3)] == [0, 1, 2]
    for size in (1, 2, 3, 5, 8, 1024):
        for n in range(1, 3 * size + 3):
            assert 1 <= n - window_start(n, size=size) <= size


@pytest.mark.parametrize("size", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("prompt", [1, 5, 40])
def test_a_moving_row_depends_on_the_length_alone(size, prompt):
    row = MovingRow(range(prompt), size=size)
    for token in range(prompt, 120):
        before = list(row.ids)
        changed = row.append(token)
        assert row.ids == list(range(window_start(token + 1, size=size), token + 1))
        assert changed == (row.ids[: len(before)] != before)


# --- an article --------------------------------------------------------------------------------------------


def rows_while_writing(layout: Layout, turns: list[Turn], ids: list[int]) -> list[list[int]]:
    """Each window at its fullest, while `ids` are written one by one."""
    row = ArticleRow(layout.prompt(turns, reply=5000), layout=layout, turns=turns)
    windows = []
    for token in ids:
        full = [*row.ids, token]
        if row.append(token):
            windows.append(full)
            assert len(full) == layout.size
            assert len(row.ids) < layout.size
        else:
            assert row.ids == full
    return [*windows, row.ids]


def assert_windows_of_the_training(article: dict[str, str], tokens: Tokenizer, *, size: int) -> int:
    row_format = make_row_format(DataConfig(format="papers"), [article], where="x")
    turns = row_format.parse(article)
    layout = Layout(PAPERS, tokens, size=size)
    ids = tokens.encode(" " + turns[-1].text)
    (encoded,) = Encoder(row_format, tokens, size=size)([turns])
    wanted = [list(map(int, window.ids)) for window in encoded.windows]
    seen = rows_while_writing(layout, turns[:-1], ids)
    assert len(seen) == len(wanted)
    for ours, theirs in zip(seen[:-1], wanted[:-1], strict=True):
        assert ours[: len(theirs)] == theirs  # what comes after the cut, the next window has
    assert [*seen[-1], tokens.end_of_text] == wanted[-1]
    return len(seen)


def test_an_article_is_written_in_the_windows_of_its_training(shared_data):
    tokens = load_tokenizer(str(shared_data / "gpt2-tokenizer"))
    with (shared_data / "papers" / "plos.jsonl").open(encoding="utf-8") as lines:
        articles = [json.loads(line) for line in islice(lines, 2)]
    counts = [
        assert_windows_of_the_training(article, tokens, size=size)
        for article in articles
        for size in (257, 1025)
    ]
    assert min(counts) > 5


def made_up_article() -> dict[str, str]:
    """Headings, long and short paragraphs, characters of several tokens, and no end of a sentence for long."""
    paragraphs = []
    for i in range(12):
        paragraphs.append(f"Section Number {i}")
        paragraphs.append(" ".join(f"The linnet {i}.{k} sings at dawn, naïve 日本語." for k in range(3 + i)))
        paragraphs.append("x" * 40 * i)
    return {"title": "On finches", "abstract": "A bird sings. " * 20, "article": "\n".join(paragraphs)}


@pytest.mark.parametrize("size", [97, 130, 257])
def test_an_article_in_small_windows(size):
    assert assert_windows_of_the_training(made_up_article(), tokenizer(), size=size) > 5


class Watched(Model):
    """Notes each row that the network reads from its beginning."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.rows: list[list[int]] = []
        plain = self.network.forward

        def forward(ids, **options):
            if options["cache"].length == 0:
                self.rows.append(ids[0].tolist())
            return plain(ids, **options)

        self.network.forward = forward


def never_ending(**shape: int) -> Watched:
    model = Watched(tiny(**shape), tokenizer(), template=PAPERS)
    shift(model.network, model.tokenizer.end_of_text, by=-100.0)
    return model


ASKED = {"system": "On finches", "continue_sections": True, "seed": 3}
ABSTRACT = "A bird sings. It is heard! Nobody knows why. " * 6


def test_5000_tokens_in_windows_that_lose_nothing_and_repeat_nothing():
    model = never_ending(n_positions=128)
    result = model.complete(ABSTRACT, max_new_tokens=5000, top_p=1.0, **ASKED)
    assert (len(result.token_ids), result.finish_reason) == (5000, "length")
    assert result.text == tokenizer().decode(result.token_ids).lstrip()
    layout = Layout(PAPERS, tokenizer(), size=129)
    turns = [Turn("system", "On finches"), Turn("user", ABSTRACT)]
    carried = layout.carry(layout.parts(turns), ANSWERER)
    prompt, done = layout.prompt(turns, reply=5000), 0
    assert model.rows[0] == prompt
    assert len(model.rows) > 50
    for read in model.rows[1:]:
        room = 129 - len(prompt)
        full = result.token_ids[done : done + room]
        cut = layout.cut(result.token_ids, done + room * 3 // 4, done + room)
        before = result.token_ids[:cut]
        prompt = layout.go_on(carried, ANSWERER, before, headings(tokenizer().decode(before)))
        assert read == prompt + full[cut - done :]
        done = cut


def test_each_token_comes_from_its_row_alone():
    model = never_ending(n_positions=96)
    result = model.complete(ABSTRACT, max_new_tokens=400, **(ASKED | {"temperature": 0}))
    layout = Layout(PAPERS, tokenizer(), size=97)
    turns = [Turn("system", "On finches"), Turn("user", ABSTRACT)]
    row = ArticleRow(layout.prompt(turns, reply=400), layout=layout, turns=turns)
    fresh = tiny(n_positions=96)
    fresh.load_state_dict(model.network.state_dict())
    for token in result.token_ids:
        with torch.no_grad():
            logits = fresh.logits(fresh(torch.tensor([row.ids])))[0, -1]
        assert int(logits[:300].argmax()) == token
        row.append(token)


def test_an_article_ends_by_itself():
    model = never_ending(n_positions=96)
    shift(model.network, model.tokenizer.end_of_text, by=0.0)
    lengths = []
    for seed in range(40):
        result = model.complete(ABSTRACT, max_new_tokens=5000, temperature=0.9, **(ASKED | {"seed": seed}))
        lengths.append(len(result.token_ids))
        if result.finish_reason == "stop" and len(result.token_ids) > 192:
            break
    assert result.finish_reason == "stop"
    assert max(lengths) > 192


def test_without_the_flag_the_window_moves_on():
    model = never_ending(n_positions=64)
    asked = {"system": "On finches", "seed": 3, "max_new_tokens": 300}
    result = model.complete(ABSTRACT, **asked)
    writing: Writing = model.start(ABSTRACT, **asked)
    ids = writing.prompt + result.token_ids
    assert len(result.token_ids) == 300
    assert len(model.rows) > 5
    for read in model.rows[1:]:
        assert any(ids[start : start + len(read)] == read for start in range(len(ids)))
    assert tokenizer().end_of_text not in model.rows[-1]


def test_streamed_articles_equal_those_at_once():
    model = never_ending(n_positions=96)
    options = ASKED | {"max_new_tokens": 200}
    assert "".join(model.stream(ABSTRACT, **options)) == model.generate(ABSTRACT, **options)
