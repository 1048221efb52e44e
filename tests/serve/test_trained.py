"""A model that recipe `chat` trained on real conversations: every way to talk to it says the same."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serve.servers import ROOT, Served, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

KEYS = (
    *("data.source=rows.jsonl", "data.validation=0.05", "train.optimizer=muon", "train.learning_rate=2e-3"),
    *("train.steps=40", "train.batch_size=4", "train.block_size=256", "train.eval_tokens=2000"),
    "sample.max_new_tokens=0",
)
QUESTIONS = ["Hi, I am looking for a place to eat.", "In San Jose, please.", "Can you book a table for two?"]
LIMIT = 40


def linnet(*words: str, folder: Path, said: str = "") -> str:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "linnet", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1"},
        input=said,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    with (shared_data / "chat/sgd_train.jsonl").open(encoding="utf-8") as rows:
        (folder / "rows.jsonl").write_text("".join(row for row, _ in zip(rows, range(400), strict=False)))
    linnet("train", "chat", *KEYS, f"model.init_from={shared_data / 'base-30m'}", folder=folder)
    return folder / "runs/chat"


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Served]:
    with serving(str(run), "--precision", "fp32", "--runs", str(run.parent)) as server:
        yield server


def test_it_has_learned_to_answer(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert losses[-1] < 0.75 * losses[0]


@torch.inference_mode()
def test_a_conversation_as_transformers_and_the_terminal_have_it(run: Path, served: Served) -> None:
    """Greedily: the official client, streamed and not, `linnet chat` from a pipe, and transformers' own generate."""
    client = served.openai()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    turns: list[dict[str, Any]] = []
    answers = []
    for question in QUESTIONS:
        turns.append({"role": "user", "content": question})
        asked: dict[str, Any] = {"model": "chat", "messages": turns, "temperature": 0, "max_tokens": LIMIT}
        answer = client.chat.completions.create(**asked)
        text = answer.choices[0].message.content
        assert text
        parts = [part for part in client.chat.completions.create(**asked, stream=True) if part.choices]
        assert "".join(part.choices[0].delta.content or "" for part in parts) == text

        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        theirs = model.generate(**ids, max_new_tokens=LIMIT, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(theirs, skip_special_tokens=True).strip() == text.strip()
        assert answer.usage.prompt_tokens == ids["input_ids"].shape[1]
        turns.append({"role": "assistant", "content": text})
        answers.append(text)
    options = ("--temperature", "0", "--max-new-tokens", str(LIMIT), "--precision", "fp32")
    typed = linnet("chat", str(run), *options, folder=run, said="".join(f"{q}\n" for q in QUESTIONS))
    assert typed.splitlines() == [line for answer in answers for line in answer.splitlines()]


def test_answers_end_by_themselves(served: Served) -> None:
    """That is what only the assistant's turns teach: the end after them, and not the user's next words."""
    answer = served.openai().chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": QUESTIONS[0]}],
        n=8,
        seed=1,
        temperature=0.7,
        max_tokens=120,
        logprobs=True,
        top_logprobs=2,
    )
    assert sum(choice.finish_reason == "stop" for choice in answer.choices) >= 6
    assert len({choice.message.content for choice in answer.choices}) > 4
    for choice in answer.choices:
        assert "user:" not in choice.message.content
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_alone_in_a_crowd_and_after_a_restart(run: Path, served: Served) -> None:
    """V9, with a model that means what it says."""
    client = served.openai()

    def ask(where: Any, seed: int) -> str:
        messages: Any = [{"role": "user", "content": QUESTIONS[0]}]
        made = where.chat.completions.create(model="chat", messages=messages, seed=seed, max_tokens=LIMIT)
        return str(made.choices[0].message.content)

    alone = [ask(client, seed) for seed in range(4)]
    assert len(set(alone)) > 1
    crowd = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": QUESTIONS[1]}], n=16, max_tokens=60, stream=True
    )
    next(iter(crowd))
    assert [ask(client, seed) for seed in range(4)] == alone
    crowd.close()
    with serving(str(run), "--precision", "fp32") as anew:
        assert [ask(anew.openai(), seed) for seed in range(4)] == alone
