"""What all tests share."""

from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models lose more by a second thread than they win, and the workers of pytest-xdist share the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and models beside the project; a test that needs them is skipped where they are missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is missing: real data for tests")
    return SHARED_DATA
