"""`python -m linnet` is the command `linnet` (torchrun starts it so)."""

from linnet.cli import main

main()
