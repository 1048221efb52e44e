"""model/README.md: the model card.

What   `write_card(root, model)` writes the card of the run `root` into the folder `model`; with its picture, loss.png,
       where that is the run's model/ itself. `card_of_repository` has a name of the hub in the lines to paste.
Why    A model without a word about its data, its base and its loss is of no use to anybody else, and nobody likes to
       write that down. All of it was measured.
How    The figures are those of facts.py, the words in templates/card.md.j2, the metadata goes through the hub's own
       class. Nothing private is in it: of a path only the last name. A card that was changed by hand is never written
       over: its last line holds a hash of what Linnet wrote. Such a card lives on when model/ is replaced, and the new
       one goes to card.md of the run. The picture takes 0.2 s to draw, so it is drawn at the end alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from linnet import files
from linnet.errors import LinnetError
from linnet.hub import no_telemetry
from linnet.recipe import build_recipe, flatten, read_recipe_values, recipe_names
from linnet.track.card.details import details_of, perplexity
from linnet.track.card.facts import Facts, read_facts, texts
from linnet.track.card.lineage import CARD, base_model_of, license_of, parents_of
from linnet.track.card.markdown import code, fence, plain
from linnet.track.places import last_name, model_name, without_places
from linnet.track.plots import plot_run
from linnet.track.progress import printable
from linnet.track.runs import own_path

PICTURE = "loss.png"
BESIDE = "card.md"
"""In the run folder: the new card, where README.md was changed by hand."""
SEAL = re.compile(r"\n<!-- linnet card of (?P<address>[^\n]*), sha256 (?P<sha256>[0-9a-f]{64}) -->\s*\Z")
ADDRESS = re.compile(r"(?!-|.*--)[\w./-]+")
MOST_SAMPLES = 4
UNSAID = {"format_version", "name", "data.prepared", "data.workers", "data.engine", "track.sinks"}


class Sealed(NamedTuple):
    """A card as Linnet wrote it: the text above its last line, and the model's name in the lines to paste."""

    text: str
    address: str


def write_card(root: Path, model: Path) -> None:
    """Write the card of the run `root` into the model folder `model`; nothing where that holds no model.

    Args:
        model: the run's model/, which also gets loss.png; or the folder that will soon take its place.

    Raises:
        DiskError: the disk is full.
    """
    if not (model / "config.json").is_file():
        return
    old, is_final = root / "model" / CARD, model == root / "model"
    if is_final and (picture := plot_run(root)):
        files.write_file(model / PICTURE, [picture.read_bytes()])
    before = unseal(old)
    address = before.address if before else _address(root)
    text = seal(
        render(read_facts(root, model), address=address, picture=(model / PICTURE).is_file()), address
    )
    if old.is_file() and before is None:
        files.write_file(root / BESIDE, [text], durable=False)
        if not is_final:
            files.write_file(model / CARD, [old.read_bytes()])
        return
    files.write_file(model / CARD, [text])
    with contextlib.suppress(FileNotFoundError):
        (root / BESIDE).unlink()


def card_of_repository(model: Path, repository: str) -> bytes | None:
    """The folder's card with the repository `owner/name` in the lines to paste; None where none is ours to change."""
    card = unseal(model / CARD)
    if card is None:
        return None
    text = card.text
    for line in ('name = "{}"', "linnet generate {}"):  # As the template has them.
        text = text.replace(line.format(card.address), line.format(repository))
    return seal(text, repository)


def seal(text: str, address: str) -> bytes:
    """The card with its last line, by which Linnet knows its own work."""
    text = text.rstrip("\n") + "\n"
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return f"{text}\n<!-- linnet card of {address}, sha256 {digest} -->\n".encode(errors="replace")


def unseal(path: Path) -> Sealed | None:
    """The card at `path` if it is just as Linnet wrote it; None if it was changed by hand, or is missing.

    Other line ends are no change.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = SEAL.search(text)
    if found is None or hashlib.sha256(text[: found.start()].encode()).hexdigest() != found["sha256"]:
        return None
    return Sealed(text[: found.start()], found["address"])


def render(facts: Facts, *, address: str, picture: bool) -> str:
    """The card's text.

    Args:
        address: the model's name in the lines to paste, a folder or a repository.
        picture: loss.png lies beside the card.
    """
    prompts = list(texts(facts.key("sample", "prompts")))
    prompt = next((prompt for prompt in prompts if prompt.strip()), "")
    return _template().render(
        facts=facts,
        metadata=metadata_of(facts),
        address=address,
        picture=PICTURE if picture else None,
        prompt=json.dumps(printable(prompt), ensure_ascii=False),
        quoted_prompt=shlex.quote(printable(prompt)),
        sources=sources_of(facts),
        parents=[_parent_name(parent) for parent in parents_of(facts.environment.get("parent"))],
        license=license_of(facts.environment.get("parent")),
        licensor=_licensor(facts.environment.get("parent")),
        details=details_of(facts),
        samples=facts.best_samples[:MOST_SAMPLES],
        command=command_of(facts.recipe),
        recipe=tomli_w.dumps(without_places(facts.recipe)),
    )


@functools.cache
def _template() -> Template:
    """Parsed once: 10 ms."""
    environment = Environment(
        loader=PackageLoader("linnet"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"plain": plain, "code": code, "fence": fence, "number": "{:,}".format}
    return environment.get_template("card.md.j2")


def metadata_of(facts: Facts) -> str:
    """The YAML at the card's head, by the hub's own class. What is not known has no key."""
    no_telemetry()
    from huggingface_hub import EvalResult, ModelCardData

    parent = facts.environment.get("parent")
    built_in = [facts.recipe_name] if facts.recipe_name in recipe_names() else []
    results = []
    if facts.best:
        loss = facts.best[1]
        data = ", ".join(sources_of(facts)) or "held-out part of the training data"
        for kind, name, value in (
            ("loss", "Loss, nats per token", round(loss, 4)),
            ("perplexity", "Perplexity", perplexity(loss)),
        ):
            result = EvalResult(
                task_type="text-generation",
                dataset_type=", ".join(facts.data_sets) or data,
                dataset_name=data,
                dataset_split="held-out",
                metric_type=kind,
                metric_name=name,
                metric_value=value,
            )
            results.append(result)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", "linnet", *built_in],
        base_model=base_model_of(parent),
        license=license_of(parent),
        language=[word for word in texts(_language(facts)) if re.fullmatch(r"[a-z]{2,3}", word)] or None,
        datasets=facts.data_sets or None,
        model_name=printable(facts.name),
        eval_results=results or None,
    ).to_yaml()


def sources_of(facts: Facts) -> list[str]:
    """The data by name: data sets of the hub, else the last name of each path."""
    named = [
        place if place.startswith("hf:") else last_name(place) for place in texts(facts.key("data", "source"))
    ]
    return facts.data_sets or [printable(name.removeprefix("hf:")) for name in named if name]


def command_of(recipe: Mapping[str, Any]) -> str:
    """The command that trains the same: the recipe, and the keys in which it differs from the built-in one."""
    name = str(recipe.get("name") or "recipe")
    if name not in recipe_names():
        return shlex.join(["linnet", "train", f"{name}.toml"])
    with contextlib.suppress(LinnetError):
        built_in = build_recipe(read_recipe_values(name), {}, where=name).model_dump(exclude_none=True)
        usual, own = flatten(built_in), flatten(without_places(recipe))
        changed = {key: value for key, value in own.items() if value != usual.get(key) and key not in UNSAID}
        words = [
            f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
            for key, value in changed.items()
        ]
        return shlex.join(["linnet", "train", name, *words])
    return shlex.join(["linnet", "train", f"{name}.toml"])


def _parent_name(parent: Mapping[str, Any]) -> str:
    """An ancestor's name on the hub, else the last name of its path."""
    hub = parent.get("hub")
    return hub if isinstance(hub, str) else model_name(str(parent["init_from"]))


def _licensor(parent: object) -> str:
    """The name of the ancestor whose card has the licence; "" for none."""
    found = license_of(parent)
    return next((_parent_name(one) for one in parents_of(parent) if one.get("license") == found), "")


def _address(root: Path) -> str:
    """The model's folder in the lines to paste: `runs/mine/model` where the run lies in a folder runs."""
    place = own_path(root)
    address = f"{'runs/' if place.parent.name == 'runs' else ''}{place.name}/model"
    return address if ADDRESS.fullmatch(address) else "path/to/model"


def _language(facts: Facts) -> Any:
    filters = facts.key("data", "filters")
    return filters.get("language") if isinstance(filters, Mapping) else None
