"""Prompts in a checkpoint's own chat template: one image, the question, and an instruction.

Text from datasets cannot write special tokens: those it spells out are broken up, and every prompt is compared with one
of a harmless question. Thinking is switched off where the template allows it; a template that always starts it is
refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ....data.errors import CheckpointError, DatasetError
from .processor import Processor
from .views import View, Views

DEFAULT_INSTRUCTION = "Answer the question using a single word or phrase."
DEFAULT_MAX_NEW_TOKENS = 32  # chat models may write a sentence although asked for a word

# Names under which chat templates let a caller switch thinking off.
_NO_THINKING = ("enable_thinking", "thinking")
_OPEN_THINKING = re.compile(r"<(think|thinking|thought)>(?!.*</\1>)|<\|channel>thought\b(?!.*<channel\|>)", re.DOTALL)
_HARMLESS = "question"


class Prompts:
    """Encodes questions about images and decodes answers.

    Raises:
        CheckpointError: the template takes no image or no text, or the model always thinks before it answers.
    """

    def __init__(self, processor: Processor, views: Views, *, vocabulary: int) -> None:
        self.processor, self.views = processor, views
        self._vocabulary = vocabulary
        self._control_tokens = _control_tokens(processor)
        self._no_thinking = {n: False for n in _NO_THINKING if re.search(rf"\b{n}\b", processor.chat_template)}
        self._content_is_list = self._find_content_form()
        rendered = self._render(_HARMLESS, None)
        if _OPEN_THINKING.search(rendered):
            raise CheckpointError(
                "the chat template always makes the model think before it answers, which no token limit of short "
                "answers allows: take the instruct variant of the model."
            )
        tokenizer = processor.tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._expected_special = self._specials(self._text_ids(_HARMLESS, None))

    @property
    def template(self) -> str:
        """The prompt of a question, with marks for question and image, as recorded in a cache."""
        return self._render("{question}", "{instruction}").replace(self.processor.image_token, "{image}")

    def inputs(self, question: str, instruction: str | None, rgb: NDArray[np.uint8], view: View) -> dict[str, Tensor]:
        """Returns what the model is called with, on the CPU: input_ids [1, S], pixel_values and more.

        Raises:
            DatasetError: the question cannot be encoded, or the image cannot be prepared.
        """
        self._checked(self._text_ids(question, instruction), question)
        processor, text = self.views.adjusted(view.settings), self._render(question, instruction)
        try:
            made = processor(text=[text], images=[Image.fromarray(rgb)], return_tensors="pt", **self._no_extra(text))
        except ValueError as error:
            shape = f"{rgb.shape[0]} x {rgb.shape[1]} pixels"
            raise DatasetError(f"an image of {shape} cannot be prepared: {error}") from error
        tokens = int((made["input_ids"] == processor.image_token_id).sum())
        if tokens != view.vision_tokens:
            raise DatasetError(f"an image was prepared as {tokens} visual tokens, and not as {view.vision_tokens}.")
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def length(self, question: str, instruction: str | None, view: View) -> int:
        """Returns the positions of a prompt, from no pixels. Raises DatasetError for a text that cannot be encoded."""
        return len(self._checked(self._text_ids(question, instruction), question)) - 1 + view.image_positions

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without template. Raises DatasetError if there are none, or one is unknown."""
        ids: list[int] = self.processor.tokenizer(self._plain(text), add_special_tokens=False)["input_ids"]
        if not ids:
            raise DatasetError(f"the question {text[:40]!r} has no token that the model knows: rephrase it.")
        return self._known(ids, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns an answer's text without special tokens, stripped."""
        text: str = self.processor.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def _render(self, question: str, instruction: str | None) -> str:
        text = self._plain(question) if instruction is None else f"{self._plain(question)}\n{self._plain(instruction)}"
        return self._render_content(text, as_list=self._content_is_list)

    def _render_content(self, text: str, *, as_list: bool) -> str:
        content: Any = [{"type": "image"}, {"type": "text", "text": text}]
        if not as_list:
            content = f"{self.processor.image_token}\n{text}"
        rendered: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False, **self._no_thinking
        )
        return rendered

    def _find_content_form(self) -> bool:
        """Returns whether the template takes a list of parts; older ones take one string."""
        problem = "it does not write the image and the question exactly once"
        for as_list in (True, False):
            try:
                rendered = self._render_content(_HARMLESS, as_list=as_list)
            except (TemplateError, TypeError, ValueError) as error:
                problem = str(error)
                continue
            if rendered.count(self.processor.image_token) == 1 and rendered.count(_HARMLESS) == 1:
                return as_list
        raise CheckpointError(f"the chat template cannot be used for one image and one question: {problem}.")

    def _text_ids(self, question: str, instruction: str | None) -> list[int]:
        """Returns the ids of a prompt in which the image takes one position."""
        text = self._render(question, instruction)
        ids: list[int] = self.processor.tokenizer(text, **self._no_extra(text))["input_ids"]
        return ids

    def _no_extra(self, text: str) -> dict[str, bool]:
        """Keeps the tokenizer from adding a begin token to a prompt that has one."""
        begin = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if begin and text.startswith(begin) else {}

    def _plain(self, text: str) -> str:
        """Returns the text with a space inside every special token that it spells out."""
        while self._control_tokens is not None and self._control_tokens.search(text):
            text = self._control_tokens.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return text

    def _checked(self, ids: list[int], question: str) -> list[int]:
        """Returns `ids`. Raises DatasetError if the text brought special tokens into the prompt."""
        if self._specials(ids) != self._expected_special:
            raise DatasetError(f"the question {question[:40]!r} contains a special token of the model: rephrase it.")
        return self._known(ids, question)

    def _specials(self, ids: list[int]) -> Counter[int]:
        return Counter(token for token in ids if token in self._special_ids)

    def _known(self, ids: list[int], text: str) -> list[int]:
        if ids and max(ids) >= self._vocabulary:
            raise DatasetError(
                f"the question {text[:40]!r} has token {max(ids)}, but the model has embeddings of {self._vocabulary} "
                "tokens only."
            )
        return ids


def _control_tokens(processor: Processor) -> re.Pattern[str] | None:
    """Returns what matches any special token, and any other added token that the chat template writes."""
    added = processor.tokenizer.added_tokens_decoder.values()
    found = {
        token.content
        for token in added
        if not token.content.isspace()
        and len(token.content) > 1
        and (token.special or token.content in processor.chat_template)
    }
    if not found:
        return None
    return re.compile("|".join(re.escape(token) for token in sorted(found, key=len, reverse=True)))
