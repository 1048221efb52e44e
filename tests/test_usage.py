"""The code on published models' cards and in tutorials, with nothing but the model's name put in.

Each snippet is the one that people copy, from the cards of GPT-2 and of models made of it, from the hub's "Use this
model" button, and from transformers' own guides. It runs on two models that were trained here: `math`, with a window of
128 tokens, and `chat`, with one of 1,024.
"""

import json
import random
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers

import linnet
from linnet.model.pretrained import SMALL_WINDOW, save_model
from linnet.tokenizer import Tokenizer, train_char
from tests.model.examples import tiny

END = "<|endoftext|>"
GPT2_CARD = """
    from transformers import pipeline, set_seed
    generator = pipeline('text-generation', model='openai-community/gpt2')
    set_seed(42)
    outputs = generator("Hello, I'm a language model,", max_length=30, num_return_sequences=5)
"""
GPT2_CARD_FEATURES = """
    from transformers import GPT2Tokenizer, GPT2Model
    tokenizer = GPT2Tokenizer.from_pretrained('openai-community/gpt2')
    model = GPT2Model.from_pretrained('openai-community/gpt2')
    text = "Replace me by any text you'd like."
    encoded_input = tokenizer(text, return_tensors='pt')
    output = model(**encoded_input)
"""
CARD = """
    from transformers import AutoTokenizer, AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")

    prompt = "What is 3 plus 4?"
    input_ids = tokenizer.encode(prompt, return_tensors="pt")
    output = model.generate(input_ids, max_length=64, pad_token_id=tokenizer.eos_token_id)
    generated_text = tokenizer.decode(output[0], skip_special_tokens=True)
    print(generated_text)
"""
TUTORIAL = CARD.replace("AutoTokenizer", "GPT2Tokenizer").replace("AutoModelForCausalLM", "GPT2LMHeadModel")
TUTORIAL_FAST = TUTORIAL.replace("GPT2Tokenizer", "GPT2TokenizerFast")
BEAMS = """
    from transformers import GPT2LMHeadModel, GPT2Tokenizer
    tokenizer = GPT2Tokenizer.from_pretrained("gpt2")
    model = GPT2LMHeadModel.from_pretrained("gpt2", pad_token_id=tokenizer.eos_token_id)
    input_ids = tokenizer.encode('I enjoy walking with my cute dog', return_tensors='pt')
    beam_output = model.generate(
        input_ids, max_length=50, num_beams=5, no_repeat_ngram_size=2, early_stopping=True
    )
    texts = [tokenizer.decode(beam_output[0], skip_special_tokens=True)]
    sample_outputs = model.generate(
        input_ids, do_sample=True, max_length=50, top_k=50, top_p=0.95, num_return_sequences=3
    )
    for i, sample_output in enumerate(sample_outputs):
        texts.append(tokenizer.decode(sample_output, skip_special_tokens=True))
"""
PIPELINE = """
    from transformers import pipeline
    pipe = pipeline("text-generation", model="openai-community/gpt2")
    outputs = pipe("Tell me: what is 3 plus 4?")
"""
PIPELINE_CHAT = """
    from transformers import pipeline
    pipe = pipeline("text-generation", model="openai-community/gpt2")
    messages = [
        {"role": "user", "content": "What is 3 plus 4?"},
    ]
    outputs = pipe(messages)
"""
BATCHED_PIPELINE = """
    from transformers import pipeline
    pipe = pipeline("text-generation", model="openai-community/gpt2")
    pipe.tokenizer.pad_token_id = pipe.model.config.eos_token_id
    prompts = ["Once", "Once upon a time there was a bird", "It"]
    outputs = [o[0] for o in pipe(prompts, batch_size=3, max_length=60, do_sample=False)]
"""
HUB_BUTTON = """
    from transformers import AutoTokenizer, AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
    messages = [
        {"role": "user", "content": "What is 3 plus 4?"},
    ]
    inputs = tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)

    outputs = model.generate(**inputs, max_new_tokens=40)
    answer = tokenizer.decode(outputs[0][inputs["input_ids"].shape[-1]:])
"""
TEMPLATE = """
    from transformers import AutoTokenizer, AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is 3 plus 4?"},
    ]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    outputs = model.generate(**inputs, max_length=128)
    text = tokenizer.decode(outputs[0])
"""
PADDED = """
    from transformers import AutoTokenizer, AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
    tokenizer.pad_token = tokenizer.eos_token  # Most LLMs don't have a pad token by default
    prompts = ["A list of colors: red, blue", "Portugal is"]
    model_inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    generated_ids = model.generate(**model_inputs, max_length=60, do_sample=False)
    texts = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)
"""
SAMPLED = """
    from transformers import AutoTokenizer, AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
    prompt = "What is 3 plus 4?"
    inputs = tokenizer(prompt, return_tensors="pt")
    outputs = model.generate(**inputs, do_sample=True, top_k=50)
    text = tokenizer.decode(outputs[0], skip_special_tokens=True)
"""
STREAMED = """
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer
    from threading import Thread

    tok = AutoTokenizer.from_pretrained("openai-community/gpt2")
    model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
    inputs = tok(["An increasing sequence: one,"], return_tensors="pt")
    streamer = TextIteratorStreamer(tok, skip_special_tokens=True)

    generation_kwargs = dict(inputs, streamer=streamer, max_new_tokens=20)
    thread = Thread(target=model.generate, kwargs=generation_kwargs)
    thread.start()
    generated_text = ""
    for new_text in streamer:
        generated_text += new_text
    thread.join()
"""
SAVED_AGAIN = """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
    tokenizer.save_pretrained("my-model")
    model.save_pretrained("my-model")
    tokenizer = AutoTokenizer.from_pretrained("my-model")
    model = AutoModelForCausalLM.from_pretrained("my-model")
    input_ids = tokenizer.encode("What is 3 plus 4?", return_tensors="pt")
    output = model.generate(input_ids, max_length=64, pad_token_id=tokenizer.eos_token_id)
    generated_text = tokenizer.decode(output[0], skip_special_tokens=True)
"""


class Trained(NamedTuple):
    """A run that was trained here."""

    name: str
    model: Path

    @property
    def window(self) -> int:
        return transformers.GPT2Config.from_pretrained(self.model).n_positions


def question(generator: random.Random) -> tuple[str, str]:
    first, second = generator.randrange(10), generator.randrange(10)
    return f"What is {first} plus {second}?", f"That is {first + second}."


@pytest.fixture(scope="module", params=["math", "chat"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A small model that has learned to end its answers."""
    generator, folder = random.Random(0), tmp_path_factory.mktemp(request.param)
    rows: list[dict[str, Any]] = []
    for _ in range(100):
        (asked, said), (again, then) = question(generator), question(generator)
        if request.param == "math":
            rows.append({"question": asked, "answer": said})
        else:
            contents = [("user", asked), ("assistant", said), ("user", again), ("assistant", then)]
            rows.append({"messages": [{"role": role, "content": content} for role, content in contents]})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    window = 128 if request.param == "math" else 1024
    run = linnet.train(
        request.param,
        run=folder / "run",
        data={"source": str(folder / "rows.jsonl"), "prepared": str(folder / "prepared"), "validation": 0},
        tokenizer={"name": "bpe", "vocab_size": 320},
        model={"init_from": "scratch", "n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": window},
        train={"steps": 40, "optimizer": "muon", "learning_rate": 0.02, "batch_size": 8, "block_size": 64},
        sample={"prompts": []},
    )
    return Trained(request.param, run.dir / "model")


Snippet = Any


@pytest.fixture
def run(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Snippet:
    """Runs a snippet with the model's folder for its name; returns the snippet's names, and what transformers said.

    It says things by `logging`, to the stderr of the moment when it was imported; some of them once in a process.
    """
    monkeypatch.chdir(tmp_path)

    def execute(snippet: str) -> tuple[dict[str, Any], list[str]]:
        code = textwrap.dedent(snippet)
        for name in ("'openai-community/gpt2'", '"openai-community/gpt2"', '"gpt2"'):
            code = code.replace(name, repr(str(trained.model)))
        transformers.utils.logging.warning_once.cache_clear()
        caplog.clear()
        names: dict[str, Any] = {}
        torch.manual_seed(0)
        exec(compile(code, "<snippet>", "exec"), names)
        return names, [record.getMessage() for record in caplog.records if record.levelname != "INFO"]

    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", False)  # bars are no warnings
    return execute


def assert_continues(text: str, prompt: str) -> None:
    """`text` begins with the prompt and shows no control token."""
    assert text.startswith(prompt)
    assert END not in text


def assert_only(said: list[str], beginning: str) -> None:
    """transformers said this one thing."""
    assert len(said) == 1
    assert said[0].startswith(beginning)


def assert_two_lengths(said: list[str], trained: Trained) -> None:
    """Where a small window has its max_length, transformers says that max_new_tokens comes before it."""
    if trained.window > SMALL_WINDOW:
        assert said == []
    else:
        assert_only(said, "Both `max_new_tokens`")


@pytest.mark.parametrize(
    "snippet", [CARD, TUTORIAL, TUTORIAL_FAST, SAVED_AGAIN], ids=["card", "tutorial", "fast", "saved"]
)
def test_encode_generate_decode(run: Snippet, trained: Trained, snippet: str) -> None:
    names, said = run(snippet)
    assert said == []
    assert_continues(names["generated_text"], "What is 3 plus 4?")
    tokenizer, output = names["tokenizer"], names["output"][0].tolist()
    assert len(output) <= 64
    assert output[0] == tokenizer.eos_token_id == tokenizer.bos_token_id
    ours = linnet.load(trained.model)
    assert names["input_ids"][0].tolist() == ours.encode_prompt("What is 3 plus 4?", raw=True)
    written = ours.complete(
        "What is 3 plus 4?", raw=True, temperature=0, max_new_tokens=64 - names["input_ids"].shape[1]
    )
    assert output[names["input_ids"].shape[1] :][: written.tokens] == written.token_ids


def test_the_snippets_of_gpt2s_own_card(run: Snippet) -> None:
    names, said = run(GPT2_CARD)
    assert said == []
    assert len(names["outputs"]) == 5
    for output in names["outputs"]:
        assert_continues(output["generated_text"], "Hello, I'm a language model,")
    names, said = run(GPT2_CARD_FEATURES)
    assert said == []
    assert names["output"].last_hidden_state.isfinite().all()


def test_beams_and_samples(run: Snippet) -> None:
    names, said = run(BEAMS)
    # The id of padding is end-of-text, which our prompts begin with; "you may ignore this if it is identical" follows.
    assert_only(said, "We strongly recommend passing in an `attention_mask`")
    assert len(names["texts"]) == 4
    for text in names["texts"]:
        assert_continues(text, "I enjoy walking with my cute dog")


@pytest.mark.parametrize(("snippet", "prompts"), [(PIPELINE, 1), (BATCHED_PIPELINE, 3)], ids=["one", "batch"])
def test_a_pipeline_stays_in_the_window(run: Snippet, trained: Trained, snippet: str, prompts: int) -> None:
    names, said = run(snippet)
    assert said == []
    assert len(names["outputs"]) == prompts
    for output, prompt in zip(
        names["outputs"], names.get("prompts", ["Tell me: what is 3 plus 4?"]), strict=True
    ):
        assert_continues(output["generated_text"], prompt)
        tokens = names["pipe"].tokenizer(output["generated_text"])["input_ids"]
        assert len(tokens) <= trained.window


def test_a_pipeline_answers_messages(run: Snippet) -> None:
    names, said = run(PIPELINE_CHAT)
    assert said == []
    asked, answer = names["outputs"][0]["generated_text"]
    assert asked == {"role": "user", "content": "What is 3 plus 4?"}
    assert answer["role"] == "assistant"
    assert answer["content"].strip().startswith("That is")
    assert answer["content"].endswith("."), "it ended by itself"


def test_a_template_gives_the_ids_of_training_and_the_answer_ends(run: Snippet, trained: Trained) -> None:
    names, said = run(HUB_BUTTON)
    assert_two_lengths(said, trained)
    ours = linnet.load(trained.model)
    assert names["inputs"]["input_ids"][0].tolist() == ours.encode_prompt("What is 3 plus 4?")
    answer = ours.complete("What is 3 plus 4?", temperature=0)
    assert answer.finish_reason == "stop"
    assert names["answer"] == f" {answer.text}{END}"
    names, said = run(TEMPLATE)
    assert said == []
    assert names["inputs"]["input_ids"][0].tolist() == ours.encode_prompt(messages=names["messages"])
    if trained.name == "chat":
        assert names["text"].endswith(END), "it ended by itself"


def test_padded_prompts_continue_as_alone(run: Snippet, trained: Trained) -> None:
    names, said = run(PADDED)
    assert said == []
    ours = linnet.load(trained.model)
    longest = names["model_inputs"]["input_ids"].shape[1]
    for prompt, text in zip(names["prompts"], names["texts"], strict=True):
        assert_continues(text, prompt)
        assert text == prompt + ours.generate(prompt, raw=True, temperature=0, max_new_tokens=60 - longest)


def test_a_stream_shows_what_generate_returns(run: Snippet, trained: Trained) -> None:
    names, said = run(STREAMED)
    assert_two_lengths(said, trained)
    assert_continues(names["generated_text"], "An increasing sequence: one,")


def test_without_a_length_a_small_window_is_filled_and_not_left(run: Snippet, trained: Trained) -> None:
    if trained.window > SMALL_WINDOW:
        with pytest.warns(UserWarning, match="model-agnostic default `max_length`"):  # that of any GPT-2
            names, said = run(SAMPLED)
    else:
        names, said = run(SAMPLED)
    assert said == []
    assert_continues(names["text"], "What is 3 plus 4?")
    assert names["outputs"].shape[1] <= trained.window


def test_spaces_come_back(trained: Trained) -> None:
    text = " Hello , it 's 3 . 5 !\n\n  It isn't  ? (naïve) 日本"
    for kind in (transformers.AutoTokenizer, transformers.GPT2Tokenizer, transformers.GPT2TokenizerFast):
        tokenizer = kind.from_pretrained(trained.model)
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
        assert tokenizer.encode(text)[1:] == Tokenizer.load(trained.model).encode(text)


def test_characters_need_auto_tokenizer(tmp_path: Path) -> None:
    """GPT2Tokenizer puts GPT-2's letters for bytes around any vocabulary: a space, as Ġ, is none of the characters."""
    tokenizer = train_char(iter(["It sings. Hello"]))
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, tiny(vocab_size=tokenizer.vocab_size), tokenizer=tokenizer)
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    assert auto.decode(auto.encode("It sings"), skip_special_tokens=True) == "It sings"
    other = transformers.GPT2Tokenizer.from_pretrained(folder)
    assert other.decode(other.encode("It sings"), skip_special_tokens=True) == "Itsings"
