"""nano's tokenizer: words, single digits and punctuation marks, each with the space in front of it where there is one.

Digits are tokens of their own, so that numbers are answers of several tokens. A known text comes back unchanged but for
capitals; an unknown word is <unk>.
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
"""A word (with the colon of `User:`), a digit or a mark, each with at most one space in front."""
SPACE = "\u2581"


def pieces(text: str) -> list[str]:
    """Cuts a text as the tokenizer does, spaces marked."""
    return [piece.replace(" ", SPACE) for piece in re.findall(PIECE, text.lower())]


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer that knows every word of `texts` with and without a space, all digits and common marks."""
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
