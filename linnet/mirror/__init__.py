"""A second place for a run: each checkpoint is copied there, and a run that was lost here goes on from there.

What   `Mirror` copies checkpoints while the training runs; `restore` and `unpack` bring the run back before it starts.
Why    A Colab tab disconnects and its disk is gone; a mounted drive stays. But such a drive is slow, full, or away,
       and the training must not notice.
How    A process of its own copies (`copying`, `fetching`), since nothing else is safe: a thread that hangs in a write
       to a dead mount cannot be ended, and keeps its process from ending. That process is left to itself where even
       a kill does not end it. It is started and heard by `process`, imports no torch, and ends with its parent.
       What is to be copied is held by hard links (`held`), so pruning at home takes nothing away from under it.

At the mirror, DIR/RUNNAME is a run folder as at home, and opens with every verb. What makes a checkpoint complete lies
in it as well, in `run/` (recipe, environment, rows up to its step), so that one rename brings all of it. model/ has
a manifest.json there. Only create, write, fsync and rename are asked of a mirror; neither links nor locks.
"""

from linnet.mirror.fetching import unpack
from linnet.mirror.watching import Mirror, complete, restore

__all__ = ["Mirror", "complete", "restore", "unpack"]
