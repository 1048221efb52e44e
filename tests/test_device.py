"""What is said of the machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

CODE = "from linnet.device import memory_gb; print(memory_gb('cpu'))"


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process alone"
)
def test_the_peak_is_this_process_own() -> None:
    """`ru_maxrss` would begin with that of the process which started it: over 1.2 GB here."""
    held = torch.ones(300_000_000)  # 1.2 GB
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert len(held)
    assert 0.05 < float(done.stdout) < 1
