"""What the tests of the server share: small models, and one server for the tests that change nothing in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from linnet import api
from linnet.generate.engine import Model
from tests.browser import Browser, chromium
from tests.serve.pages import Reader
from tests.serve.servers import Served, serving, write_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Served]:
    """Three models in fp32."""
    names = [str(models / name) for name in ("talk", "plain", "endless")]
    with serving(*names, "--precision", "fp32") as served:
        yield served


@pytest.fixture(scope="session")
def talk(models: Path) -> Model:
    """The same models in this process: what the server has to say."""
    return api.load(models / "talk", together=True)


@pytest.fixture(scope="session")
def plain(models: Path) -> Model:
    return api.load(models / "plain", together=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def reader(browser: Browser, server: Served) -> Reader:
    """Before the chat of the server, with nothing kept from before."""
    return Reader(browser, server.url)
