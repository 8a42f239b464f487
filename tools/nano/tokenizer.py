"""nano's tokenizer: words, single digits and punctuation marks, each including a preceding space if there is one.

Each digit is a token, so numbers are answers of several tokens. Encoding and decoding a known text changes only its
capitals; an unknown word becomes <unk>.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|padding|>",
    "<unk>",
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<im_col>",
    "<|image|>",
)
PIECE = r"\s?[^\W\d]+:?|\s?\d|\s?[^\w\s]"
"""A word (with the colon of `User:`), a digit or a punctuation mark, each with at most one preceding space."""
SPACE = "\u2581"


def pieces(text: str) -> list[str]:
    """Splits a text as the tokenizer does, with spaces replaced by SPACE."""
    return [piece.replace(" ", SPACE) for piece in re.findall(PIECE, text.lower())]


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer with every word of `texts`, all digits and common marks, each with and without a space."""
    words = {piece.lstrip(SPACE) for text in texts for piece in pieces(text)}
    words |= set("0123456789") | set("?.,!:;'-+=()")
    ordered = sorted(words)
    vocabulary = [*SPECIAL_TOKENS, *(SPACE + word for word in ordered), *ordered]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer
