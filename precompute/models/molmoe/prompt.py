"""Encodes prompts and decodes answers: the prompt template, special tokens, the tokenizer.

The tokenizer is the checkpoint's own `tokenizer.json`. A directory without one (a model for tests) may give its special
tokens in `token_ids.json`; it cannot encode text.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from ....data.errors import CheckpointError, DatasetError
from ....data.files.bounded_json import read_json_object

PROMPT_TEMPLATE = " User: {style: }{question} Assistant:"  # `{style: }` is empty without a style
_BEFORE, _AFTER = PROMPT_TEMPLATE.split("{style: }{question}")

_MAX_TOKENIZER_BYTES = 64 << 20

_TOKEN_NAMES = {
    "begin": "<|endoftext|>",  # the tokenizer declares no begin token; every sequence starts with the end token
    "end": "<|endoftext|>",
    "pad": "<|padding|>",
    "image_start": "<im_start>",
    "image_end": "<im_end>",
    "image_patch": "<im_patch>",
    "image_column": "<im_col>",
}
_TOKEN_ID_FIELDS = {
    "begin": "bos",
    "end": "eos",
    "pad": "pad",
    "image_start": "im_start",
    "image_end": "im_end",
    "image_patch": "im_patch",
    "image_column": "im_col",
}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that do not stand for text."""

    begin: int
    end: int
    pad: int
    image_start: int
    image_end: int
    image_patch: int
    image_column: int

    @classmethod
    def from_directory(cls, directory: Path | str) -> SpecialTokens:
        """Reads them from `tokenizer.json`, or from `token_ids.json` if there is no tokenizer.

        Raises:
            CheckpointError: neither file exists, or a token is missing.
        """
        directory = Path(directory)
        if (directory / "tokenizer.json").exists():
            return PromptTokenizer.from_directory(directory).special
        path = directory / "token_ids.json"
        fields = read_json_object(path, CheckpointError)
        ids: dict[str, int] = {}
        for name, field in _TOKEN_ID_FIELDS.items():
            token_id = fields.get(field)
            if type(token_id) is not int or token_id < 0:
                raise CheckpointError(f"{path}: field {field!r} is {token_id!r}, not a token id.")
            ids[name] = token_id
        return cls(**ids)


class PromptTokenizer:
    """Encodes questions as prompt ids and decodes answer ids to text."""

    def __init__(self, tokenizer: Tokenizer, source: str = "tokenizer") -> None:
        self._tokenizer = tokenizer
        ids: dict[str, int] = {}
        for name, token in _TOKEN_NAMES.items():
            token_id = tokenizer.token_to_id(token)
            if token_id is None:
                raise CheckpointError(f"{source} has no token {token}.")
            ids[name] = token_id
        self.special = SpecialTokens(**ids)

    @classmethod
    def from_directory(cls, directory: Path | str) -> PromptTokenizer:
        """Loads `tokenizer.json`.

        Raises:
            CheckpointError: the file is absent, too large, or not a tokenizer.
        """
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist: a checkpoint directory needs its tokenizer.")
        if path.stat().st_size > _MAX_TOKENIZER_BYTES:
            raise CheckpointError(f"{path} has more than {_MAX_TOKENIZER_BYTES} bytes: it is not a tokenizer.")
        content = path.read_bytes().removeprefix(BOM_UTF8)
        try:
            return cls(Tokenizer.from_buffer(content), str(path))
        except ValueError as error:
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text` without added special tokens. A special token spelled out in it becomes that token.

        Raises:
            DatasetError: the tokenizer cannot encode the text.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # tokenizers raises no narrower class, for example for a word outside the vocabulary
            raise DatasetError(f"the tokenizer cannot encode {text[:40]!r}: {error}.") from error

    def encode_prompt(self, question: str, style: str | None = None) -> list[int]:
        """Returns the ids of the question in `PROMPT_TEMPLATE`, without the begin token.

        Args:
            style: the dataset's prefix, from `data/datasets/registry.py`. Short answers depend on it.
        """
        text = question if style is None else f"{style}: {question}"
        return self.encode(f"{_BEFORE}{text}{_AFTER}")

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the answer's text without special tokens, stripped; inner whitespace is unchanged."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()
