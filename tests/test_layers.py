"""The direction of imports that the architecture promises: cli -> api -> stages -> model, track -> config, device."""

import ast
from pathlib import Path

import pytest

import linnet

ROOT = Path(linnet.__file__).parent

# Who may import whom, by the first name below `linnet`. A module may always import its own package.
BASE = {"errors", "files", "config", "recipe", "device"}
SHARED = BASE | {"model", "tokenizer", "turns", "track", "hub"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "config": {"errors"},
    "recipe": {"errors", "config"},
    "device": {"errors"},
    "hub": {"errors", "files"},
    "tokenizer": {"errors", "files", "hub"},
    "turns": {"errors", "tokenizer"},
    "model": BASE | {"tokenizer", "turns", "hub"},
    "track": BASE | {"hub"},  # The card's metadata is written and read with the hub's own classes.
    "data": SHARED,
    "training": SHARED,
    "generate": SHARED,
    "evaluate": SHARED | {"data", "generate"},
    "export": SHARED,
    "serve": SHARED | {"generate", "turns"},
    "mirror": BASE | {"training"},
    "run": SHARED | {"training"},
}
COMPOSERS = {
    "__init__",
    "__main__",
    "cli",
    "api",
    "opening",
    "overview",
    "session",
    "setup",
    "show",
    "demo",
    "evaluation",
    "inspection",
    "look",
    "preparing",
    "following",
    "known",
    "planning",
}


def imports_of(path: Path) -> set[str]:
    """First names below `linnet` that a module imports, inside functions as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "linnet":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("linnet.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    owner = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if owner in COMPOSERS:
        return
    wrong = imports_of(path) - ALLOWED[owner] - {owner, "__version__"}
    assert not wrong, f"{path.relative_to(ROOT)} must not import {sorted(wrong)}"


def test_the_network_imports_torch_and_nothing_else_of_ours() -> None:
    """gpt2.py and attention.py together are the network."""
    assert imports_of(ROOT / "model" / "attention.py") == set()
    text = (ROOT / "model" / "gpt2.py").read_text(encoding="utf-8")
    ours = [line for line in text.splitlines() if line.startswith(("from linnet", "import linnet"))]
    assert [line.split()[1] for line in ours] == ["linnet.model.attention"]
