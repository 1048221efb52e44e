"""Linnet makes GPT-2 models out of your text on the machine you have.

    import linnet
    run = linnet.train("lines", data={"source": "data.txt"}, run="runs/mine")
    model = linnet.load("runs/mine")
    print(model.generate("Once upon a time", max_new_tokens=80, seed=1))

Importing this package does not import torch: `train` and `load` do so when they are first used.
"""

import os
from typing import TYPE_CHECKING, Any

# torch's threads wait for each other by spinning. Where another program wants a core, too, they burn the time that
# the others need: on two cores beside a second training, a demo of 32 s got 31 steps far with this limit, 6 without.
# Read when torch is first imported; whoever sets it keeps their own value.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"
__all__ = ["__version__", "load", "train"]

if TYPE_CHECKING:
    from linnet.api import load, train


def __getattr__(name: str) -> Any:
    if name in ("load", "train"):
        from linnet import api

        return getattr(api, name)
    raise AttributeError(f"module 'linnet' has no attribute {name!r}")
