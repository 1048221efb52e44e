"""The recipe: what fits, what does not, and what the user is told."""

import tomllib
from pathlib import Path

import pytest

from linnet.config import Recipe
from linnet.errors import LinnetError, UsageError
from linnet.recipe import dump_recipe, flatten, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe


def test_the_promised_recipes_are_there() -> None:
    assert {"scratch", "text", "lines", "shakespeare-char"} <= set(recipe_names())


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.steps=200", "train.steps", 200),
        ("train.learning_rate=1", "train.learning_rate", 1.0),
        ("train.batch_size=auto", "train.batch_size", "auto"),
        ("data.source=notes.txt", "data.source", "notes.txt"),
        ("data.source=2024", "data.source", "2024"),
        ("data.source=['a.txt', 'b.txt']", "data.source", ["a.txt", "b.txt"]),
        ("data.source=a=b.txt", "data.source", "a=b.txt"),
        ("data.validation=held_out.txt", "data.validation", "held_out.txt"),
        ("data.validation=0", "data.validation", 0.0),
        ("tokenizer.name=true", "tokenizer.name", "true"),
        ("train.patience=off", "train.patience", "off"),
        ("train.compile=True", "train.compile", True),
        ("sample.prompts=Hello", "sample.prompts", ["Hello"]),
    ],
)
def test_a_value_is_read_as_toml_if_that_fits_else_as_text(override: str, key: str, value: object) -> None:
    assert flatten(load_recipe("scratch", [override]).model_dump())[key] == value


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.stepz=3"], ["train.stepz", "did you mean train.steps?"]),
        (["steps=3"], ["did you mean train.steps?"]),
        (["training.learning_rat=3"], ["train.learning_rate"]),
        (["train.steps"], ["KEY=VALUE"]),
        (["train.steps=many"], ["train.steps='many'", "integer"]),
        (["train.steps=1.5"], ["train.steps", "integer"]),
        (["train.steps=0"], ["greater than 0"]),
        (["train.block_size=0"], ["train.block_size=0", "at least 1"]),
        (["train.precision=fp8"], ["train.precision", "bf16"]),
        (["train.steps=1", "train.epochs=1"], ["train.steps and train.epochs"]),
        (["model.n_embd=100", "model.n_head=3"], ["model.n_embd=100", "model.n_head=3", "model.n_embd=102"]),
        (["train.block_size=512", "model.n_positions=256"], ["train.block_size=512", "n_positions=256"]),
        (["data.validation=1.5"], ["data.validation"]),
        (["model.n_positions=0"], ["model.n_positions=0"]),
        (["train.epochs=inf"], ["train.epochs", "finite"]),
        (["train.learning_rate=nan"], ["train.learning_rate", "finite"]),
        (["train.seed=99999999999999999999999"], ["train.seed"]),
        (["name=other"], ["name", "--run"]),
        (["format_version=7"], ["format_version"]),
        (['track.sinks=["tensorbord"]'], ["track.sinks", "tensorbord", "did you mean tensorboard?"]),
        (["track.sinks=mlflow"], ["track.sinks", "mlflow", "tensorboard, wandb, trackio"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_way_out(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("scratch", overrides)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_beginners_type_first_is_answered_with_the_right_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("Some text.")
    with pytest.raises(UsageError, match=r"linnet train text data\.source=notes\.txt"):
        load_recipe("notes.txt")
    with pytest.raises(UsageError, match=r"linnet train text data\.source=\."):
        load_recipe(".")
    with pytest.raises(UsageError, match=r"data\.source=notes\.txt"):
        load_recipe("text", ["notes.txt"])


@pytest.mark.parametrize("name", ["5", '"../../evil"', '""', '"a/b"'])
def test_a_name_that_is_no_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"name = {name}\n")
    with pytest.raises(LinnetError, match="plain folder name"):
        load_recipe(str(path))


def test_paths_are_taken_as_text_from_python() -> None:
    assert load_recipe("text", {"data.source": Path("a") / "b.txt"}).data.source == str(Path("a/b.txt"))


def test_steps_and_epochs_clear_each_other() -> None:
    by_epochs = load_recipe("scratch", ["train.epochs=2"]).train
    assert (by_epochs.steps, by_epochs.epochs) == (None, 2.0)
    by_steps = load_recipe("lines", ["train.steps=7"]).train
    assert (by_steps.steps, by_steps.epochs) == (7, None)


def test_a_recipe_file_names_itself_and_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[data]\nsource = "a.txt"\n[train]\nsteps = 5\n')
    assert load_recipe(str(path)).name == "mine"
    assert load_recipe(str(path)).data.source == "a.txt"
    path.write_text("[train]\nsteps = 5\nepochs = 2\n")
    with pytest.raises(UsageError, match=r"mine\.toml.*both set"):
        load_recipe(str(path))
    path.write_text("[train]\nstepps = 5\n")
    with pytest.raises(UsageError, match=r"mine\.toml.*train\.stepps.*train\.steps"):
        load_recipe(str(path))
    path.write_text("[train\nsteps = 5\n")
    with pytest.raises(LinnetError, match=r"mine\.toml.*line 1"):
        load_recipe(str(path))
    path.write_text("format_version = 99\n")
    with pytest.raises(LinnetError, match="format_version is 99"):
        load_recipe(str(path))


def test_an_unknown_recipe_names_its_neighbour() -> None:
    with pytest.raises(UsageError, match="did you mean lines"):
        load_recipe("linse")
    with pytest.raises(UsageError, match="shakespeare-char"):
        load_recipe("something/else")


def test_every_default_is_written_out_and_auto_stays_auto() -> None:
    written = flatten(tomllib.loads(dump_recipe(load_recipe("text"))))
    expected = flatten(Recipe().model_dump(exclude_none=True)).keys() - {"train.steps"} | {"train.epochs"}
    assert written.keys() == expected
    assert written["train.batch_size"] == "auto"
