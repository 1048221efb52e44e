"""Text to ids and back: one class over GPT-2's BPE, a BPE trained here, and characters.

What   `Tokenizer` wraps the Rust library `tokenizers`; `load_tokenizer`, `train_bpe` and `train_char` make one.
Why    Every tokenizer is saved as the same tokenizer.json that transformers reads, with end-of-text in front of each
       text. What a user typed never becomes a control token: `<|endoftext|>` in a file is 13 plain characters.
How    `encode` / `decode` for one text, `encode_batch` for many, `encode_stream` for one that is larger than memory;
       `encode_flat` and `stream_flat` give numpy arrays and spare a Python object for each id. With GPT-2's
       pre-tokenizer the ids come from a table of words (`words`) or, for much text and where it is installed, from
       gigatoken (`fast`): the same ids from each. Ids come without the leading end-of-text; `prefix` says
       what the saved file puts there.
"""

from linnet.tokenizer.layout import END_OF_TEXT
from linnet.tokenizer.make import HUB_FILES, load_tokenizer, train_bpe, train_char
from linnet.tokenizer.tokenizer import Tokenizer
from linnet.tokenizer.words import FlatIds, cut_stream

__all__ = [
    "END_OF_TEXT",
    "HUB_FILES",
    "FlatIds",
    "Tokenizer",
    "cut_stream",
    "load_tokenizer",
    "train_bpe",
    "train_char",
]
