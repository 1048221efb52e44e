"""The model card, model/README.md.

Its figures are in `facts` and `lineage`, their words in `details` and `markdown`, and `writing` makes the card of them.
"""

from linnet.track.card.writing import BESIDE, card_of_repository, unseal, write_card

__all__ = ["BESIDE", "card_of_repository", "unseal", "write_card"]
