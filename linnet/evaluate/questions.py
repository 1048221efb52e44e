"""Does the model answer, and does it stop? Held-out questions, what the model writes, and how that ended.

What   `choose_questions` takes questions out of a token store, `write_answers` lets a model answer them.
Why    A loss does not show that a model never stops, which is the common fate of a fine-tuned GPT-2. It has to write.
How    A question is an example up to its first learned token: exactly the ids that the model was trained to go on from,
       whatever the template. Each question has a seed of its own, so the same model gives the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from linnet.data.store import Store
from linnet.generate.engine import Model
from linnet.generate.sampling import Sampling
from linnet.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """Where an answer is due.

    Attributes:
        ids: what the model reads.
        reference: the answer in the data.
        whole: False where the answer goes on in another window.
    """

    ids: list[int]
    reference: str
    whole: bool


@dataclass(frozen=True)
class Answer:
    """What the model wrote; `ended` tells whether it stopped by itself."""

    text: str
    ended: bool


def choose_questions(store: Store, *, tokenizer: Tokenizer, count: int) -> list[Question]:
    """Up to `count` questions, from rows at even distances; none where the rows have no part to be read.

    `lines` have nothing to read: each question is the empty prompt, from which a new line begins.
    Of a row that is cut into windows, the first one counts: the others begin in the middle of an answer.
    """
    firsts = first_examples(store)
    slots = [number * len(firsts) // count for number in range(count + 1)] if count else []
    chosen = []
    for start, stop in pairwise(slots):
        found = (_question(store, number, tokenizer) for number in firsts[start:stop].tolist())
        question = next((question for question in found if question), None)
        if question:
            chosen.append(question)
    return chosen


def first_examples(store: Store) -> npt.NDArray[np.int64]:
    """The number of each row's first example."""
    path = store.folder / "rows.npy"
    firsts: npt.NDArray[np.int64] = np.load(path)["first"] if path.is_file() else np.zeros(0, np.int64)
    return firsts if len(firsts) else np.arange(len(store.examples) - 1)  # documents are no rows


def _question(store: Store, number: int, tokenizer: Tokenizer) -> Question | None:
    """The question of an example; None where nothing but end-of-text comes before what is learned (but for lines)."""
    start, stop = int(store.examples[number]), int(store.examples[number + 1])
    learned = np.flatnonzero(store.learn[start:stop])
    if not len(learned) or (learned[0] < 2 and store.format != "lines"):
        return None
    first = start + int(learned[0])
    ids = np.asarray(store.tokens[first:stop])
    ends = np.flatnonzero(ids == store.end_of_text)
    answer = ids[: ends[0]] if len(ends) else ids
    prompt = np.asarray(store.tokens[start:first]).tolist()
    return Question(prompt, tokenizer.decode(answer.tolist()).strip(), bool(len(ends)))


def write_answers(
    model: Model, questions: Sequence[Question], *, max_new_tokens: int, temperature: float
) -> Iterator[Answer]:
    """An answer to each question, until end-of-text or `max_new_tokens`; temperature 0 takes the likeliest token."""
    for seed, question in enumerate(questions):
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        completion = model.write(question.ids, sampling).complete()
        yield Answer(completion.text.strip(), completion.finish_reason == "stop")
