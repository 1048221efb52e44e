"""A model for others: what `linnet export MODEL --to TARGET PLACE` does, a module for each target.

`hub` sends the model folder to a repository on the Hugging Face hub. Each target takes the model's name and a place,
and gives back a report of its own.
"""

TARGETS = ("hub",)
