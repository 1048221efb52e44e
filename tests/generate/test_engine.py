"""Writing, end to end: against transformers and a plain loop, and with a network that is made to write a given text."""

from pathlib import Path

import pytest
import torch
import transformers

from linnet.errors import LinnetError, UsageError
from linnet.generate.engine import Model
from linnet.generate.rows import window_start
from linnet.generate.sampling import Sampling, next_token
from linnet.model.gpt2 import GPT2, GPT2Config
from linnet.model.pretrained import load_model, save_model
from linnet.tokenizer import Tokenizer, train_bpe, train_char
from tests.generate.networks import scripted, shift
from tests.model.examples import SIZES, TEXT, tiny, tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
BASE_30M, GPT2_TOKENIZER = DATA / "base-30m", DATA / "gpt2-tokenizer"
NOTHING = torch.empty(0, dtype=torch.long)

transformers.utils.logging.disable_progress_bar()


def random_model(**shape: int) -> Model:
    return Model(tiny(**shape), tokenizer())


def saved_tokenizer(tmp_path: Path) -> Tokenizer:
    """As users have it: saved and loaded, so that it puts end-of-text in front."""
    tokenizer().save(tmp_path, n_positions=256)
    return Tokenizer.load(tmp_path)


def greedy(model: Model, prompt: str = "", **options):
    return model.complete(prompt, temperature=0, **options)


# --- equal to others ---------------------------------------------------------------------------------------


def assert_200_greedy_tokens_equal(model: Model, folder: Path, prompt: str) -> None:
    other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([model.encode_prompt(prompt)])
    theirs = other.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=200)
    written = theirs[0, ids.shape[1] :].tolist()
    assert greedy(model, prompt, max_new_tokens=200).token_ids == written
    assert len(written) == 200
    assert len(set(written)) > 3  # no test of a model that repeats one token


def test_200_greedy_tokens_equal_those_of_transformers(tmp_path):
    model = random_model(n_positions=256)
    save_model(tmp_path, model.network, tokenizer=model.tokenizer)
    assert_200_greedy_tokens_equal(model, tmp_path, "The linnet learns")


@pytest.mark.slow
@pytest.mark.skipif(not GPT2_TOKENIZER.is_dir(), reason="needs ../shared/data/gpt2-tokenizer")
def test_200_greedy_tokens_equal_at_124_million_weights(tmp_path):
    network = GPT2(SIZES["gpt2"], seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # a fresh model repeats one token for ever
        network.wpe.weight.normal_(0, 0.2, generator=generator)
    model = Model(network, Tokenizer.load(GPT2_TOKENIZER))
    save_model(tmp_path, network, tokenizer=model.tokenizer)
    assert_200_greedy_tokens_equal(model, tmp_path, "The linnet learns")


@pytest.mark.slow
@pytest.mark.skipif(not BASE_30M.is_dir(), reason="needs ../shared/data/base-30m")
def test_200_greedy_tokens_equal_for_a_trained_model():
    model = Model(load_model(BASE_30M), Tokenizer.load(BASE_30M))
    assert_200_greedy_tokens_equal(model, BASE_30M, "It was a dark and stormy night")


def test_transformers_stops_at_the_end_token_without_a_warning(tmp_path, caplog):
    model = scripted("It rained.", tokens=saved_tokenizer(tmp_path))
    save_model(tmp_path, model.network, tokenizer=model.tokenizer)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    caplog.clear()
    out = other.generate(**theirs("", return_tensors="pt"), do_sample=False, max_length=50)
    assert theirs.decode(out[0], skip_special_tokens=True) == "It rained."
    assert caplog.messages == []


def plainly(model: Model, prompt: str, *, seed: int, number: int, **options) -> list[int]:
    """The oracle: no cache, each token from a fresh pass over what the window holds."""
    sampling = Sampling(**options)
    ids = model.encode_prompt(prompt)
    written = []
    for i in range(number):
        window = ids[window_start(len(ids), size=model.network.config.n_positions) :]
        with torch.no_grad():
            logits = model.network.logits(model.network(torch.tensor([window])))[0, -1]
        seen = torch.tensor(sorted(set(window) - {model.tokenizer.end_of_text}), dtype=torch.long)
        token = next_token(logits[:300], seen, sampling=sampling, seed=seed, number=i)
        if token == model.tokenizer.end_of_text:
            break
        ids.append(token)
        written.append(token)
    return written


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"repetition_penalty": 1.5}, {"top_k": 5, "min_p": 0.1}]
)
@pytest.mark.parametrize("prompt", ["", "The linnet", TEXT], ids=["empty", "short", "longer than the window"])
def test_the_cache_and_the_moving_window_change_nothing(prompt, options):
    model = random_model()  # 32 positions
    shift(model.network, model.tokenizer.end_of_text, by=-100.0)
    result = model.complete(prompt, seed=4, max_new_tokens=90, **options)
    assert result.token_ids == plainly(model, prompt, seed=4, number=90, **options)
    assert len(result.token_ids) > 64  # the window moved several times


@pytest.mark.parametrize("n_positions", [1, 2, 3])
def test_the_smallest_windows_work(n_positions):
    result = random_model(n_positions=n_positions).complete("The linnet", seed=1, max_new_tokens=20, top_k=20)
    assert len(result.token_ids) == 20


# --- what a text is ----------------------------------------------------------------------------------------


def test_the_text_comes_without_the_prompt_and_ends_at_the_end_token():
    model = scripted(" It rained. Then", prompt="What happened?")
    assert greedy(model, "What happened?") == model.complete("What happened?", temperature=0)
    result = greedy(model, "What happened?")
    assert result.text == model.generate("What happened?", temperature=0) == " It rained. Then"
    assert result.token_ids == tokenizer().encode(" It rained. Then")
    assert result.finish_reason == "stop"


def test_max_new_tokens_counts_without_the_prompt():
    model = random_model(n_positions=256)
    for prompt in ("", TEXT[:150]):
        result = greedy(model, prompt, max_new_tokens=7)
        assert len(result.token_ids) == 7
        assert result.finish_reason == "length"


def test_the_last_token_allowed_may_be_the_end():
    ids = tokenizer().encode("It rained.")
    assert greedy(scripted("It rained."), max_new_tokens=len(ids) + 1).finish_reason == "stop"
    assert greedy(scripted("It rained."), max_new_tokens=len(ids)).finish_reason == "length"


def test_a_text_may_be_empty():
    assert greedy(scripted("")).text == ""
    assert greedy(scripted("")).finish_reason == "stop"
    assert list(scripted("").stream("", temperature=0)) == []


def test_an_empty_prompt_starts_from_end_of_text(tmp_path):
    end = tokenizer().end_of_text
    assert tokenizer().prefix == []  # as in the published gpt2
    assert random_model().encode_prompt("") == [end]
    assert random_model().encode_prompt("It") == tokenizer().encode("It")
    ours = saved_tokenizer(tmp_path)
    assert Model(tiny(), ours).encode_prompt("") == [end]
    assert Model(tiny(), ours).encode_prompt("It") == [end, *tokenizer().encode("It")]


def test_a_control_token_in_the_prompt_is_plain_text():
    ids = random_model().encode_prompt("a<|endoftext|>b")
    assert tokenizer().end_of_text not in ids
    assert tokenizer().decode(ids) == "a<|endoftext|>b"


STOPS = [
    ("The song. User: more", ["User:"], "The song. "),
    ("The song. User: more", ["nothing", "song"], "The "),
    ("The song. User: more", "\n", "The song. User: more"),
    ("It is 日本語 and 🐦 then", ["🐦"], "It is 日本語 and "),
    ("It is 日本語 and 🐦 then", ["本語 a"], "It is 日"),
    ("aaab", ["aab"], "a"),
    ("The song", ["The song"], ""),
]


@pytest.mark.parametrize(("written", "stop", "text"), STOPS)
def test_a_stop_text_ends_the_text_before_it(written, stop, text):
    model = scripted(written)
    result = greedy(model, stop=stop)
    assert result.text == text
    assert result.finish_reason == "stop"
    assert "".join(model.stream("", temperature=0, stop=stop)) == text


def test_after_a_stop_text_no_more_tokens_are_computed():
    result = greedy(scripted("The song. User: and much more of it"), stop="User:")
    assert tokenizer().decode(result.token_ids) == "The song. User:"


def test_a_stop_text_in_the_prompt_does_not_count():
    assert greedy(scripted(" yes", prompt="END"), "END", stop="END").text == " yes"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("It cost 3.14, said Dr. Who. And th", "It cost 3.14, said Dr. Who."),
        ("Some sing, e.g. linnets", "Some sing, e.g. linnets"),
        ("One. Two! 日本", "One. Two!"),
    ],
)
def test_end_at_sentence(written, text):
    model = scripted(written, end=False)
    number = len(tokenizer().encode(written))
    result = greedy(model, max_new_tokens=number, end_at_sentence=True)
    assert result.text == text
    assert result.finish_reason == "length"
    assert greedy(model, max_new_tokens=number).text == written


def test_a_stream_gives_whole_characters_and_whole_words_of_stops():
    text = "naïve 日本語 🐦🎶 Us User: hidden"
    pieces = list(scripted(text).stream("", temperature=0, stop=["User:"]))
    assert "".join(pieces) == "naïve 日本語 🐦🎶 Us "
    assert all(pieces)
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 10


OPTIONS = [
    {},
    {"temperature": 0},
    {"temperature": 1.5, "top_p": 1.0},
    {"top_k": 3, "stop": ["e", "日"]},
    {"min_p": 0.2, "repetition_penalty": 1.2, "end_at_sentence": True},
    {"end_at_sentence": True, "stop": "ing", "temperature": 1.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_streamed_equals_not_streamed(options):
    model = random_model()
    for seed in range(5):
        result = model.complete("The", seed=seed, max_new_tokens=40, **options)
        pieces = list(model.stream("The", seed=seed, max_new_tokens=40, **options))
        assert "".join(pieces) == result.text
        if not ({"stop", "end_at_sentence"} & options.keys()):
            assert result.text == model.tokenizer.decode(result.token_ids)


# --- randomness --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    model = random_model()
    first = model.complete("The", seed=1).token_ids
    torch.manual_seed(99)
    model.complete("Another prompt between", seed=8)
    assert model.complete("The", seed=1).token_ids == first
    assert model.complete("The", seed=2).token_ids != first


def test_without_a_seed_texts_differ():
    model = random_model()
    assert model.complete("The").token_ids != model.complete("The").token_ids


def test_the_global_generator_is_neither_used_nor_moved():
    before = torch.get_rng_state()
    random_model().complete("The", seed=1, max_new_tokens=5)
    assert torch.equal(before, torch.get_rng_state())


# --- the network -------------------------------------------------------------------------------------------


def test_ids_that_only_pad_the_vocabulary_are_never_drawn():
    network = tiny(vocab_size=320)
    shift(network, slice(300, None), by=100.0)
    assert int(network.logits(network(torch.tensor([[1]])))[0, -1].argmax()) >= 300
    model = Model(network, tokenizer())
    for options in ({"temperature": 0}, {"seed": 1}):
        assert max(model.complete("The", max_new_tokens=20, **options).token_ids) < 300


def test_a_tokenizer_larger_than_the_network_is_refused():
    with pytest.raises(LinnetError, match="tokenizer has 300 ids, but the model's vocab_size is 200"):
        Model(tiny(vocab_size=200), tokenizer())


def test_a_network_in_training_writes_without_dropout_and_goes_on_training():
    network = GPT2(GPT2Config(300, 32, 32, 2, 4, dropout=0.5))
    network.train()
    model = Model(network, tokenizer())
    one, two = (greedy(model, "The", max_new_tokens=20).token_ids for _ in range(2))
    assert one == two
    assert network.training
    assert all(module.training for module in network.modules())
    network(torch.tensor([[1, 2]])).sum().backward()  # gradients still work
    assert network.wte.weight.grad is not None


def test_bf16_weights_write_too():
    model = Model(tiny().to(torch.bfloat16), tokenizer())
    assert len(model.complete("The", seed=1, max_new_tokens=40).token_ids) > 10


def test_characters_are_tokens_too(tmp_path):
    train_char(iter([TEXT])).save(tmp_path, n_positions=256)
    tokens = Tokenizer.load(tmp_path)
    assert greedy(scripted(" sings  at\n日本 ", tokens=tokens, prompt="It"), "It").text == " sings  at\n日本 "
    with pytest.raises(LinnetError, match="character 'Q'"):
        Model(tiny(), tokens).generate("Q")


def test_a_stream_can_be_left_at_any_time():
    stream = random_model().stream("The", seed=1)
    next(stream)
    stream.close()


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["generate", "stream", "complete"])
def test_mistakes_are_told_at_the_call(method):
    call = getattr(random_model(), method)
    with pytest.raises(UsageError, match="temperature is -1"):
        call("The", temperature=-1)
    with pytest.raises(UsageError, match="prompt is 7"):
        call(7)
    with pytest.raises(TypeError, match="max_tokens"):
        call("The", max_tokens=3)


def test_half_a_surrogate_pair_is_told():
    with pytest.raises(LinnetError, match="surrogate"):
        random_model().generate("a\ud800")


def test_another_bpe_of_the_same_size_still_fits():
    other = train_bpe(iter(["other text " * 50]), vocab_size=300)
    assert Model(tiny(), other).generate("text", seed=1, max_new_tokens=3) is not None
