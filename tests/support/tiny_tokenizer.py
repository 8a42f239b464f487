"""A made-up word tokenizer and chat templates, for tiny models whose real tokenizers cannot be downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

VOCABULARY_SIZE = 256
PAD, BEGIN, END, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
_WORDS = """
    a an and any answer are at background ball big black blue bottom brown center circle color colour colors contain
    contains corner count cyan describe dark describes does exist few find for from gray green grey has have here how
    i image in inside is it itself large left light like list look looks many me more most name no not object of on
    one or orange outside pick picture pink present purple question rectangle red right same shape shapes short show
    shown side single small square tell than that the there this top triangle true two three four five six seven eight
    nine ten using user assistant system human turn was what where which white who why with without word phrase yes
    yellow you zero visible teal lime navy gold silver line dot oval star cross think model
"""
_MARKS = ".,?!:;'\"-_()/<>|=+*#@&%$[]{}\\~^`"
_DIGITS = "0123456789"


def write_tokenizer(
    directory: Path,
    special: Sequence[str],
    *,
    chat_template: str,
    template_home: str = "chat_template.jinja",
    attributes: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Writes tokenizer.json, tokenizer_config.json and the chat template; returns the id of each special token.

    Args:
        special: the family's own special tokens, in addition to the usual four.
        template_home: chat_template.jinja, chat_template.json or tokenizer_config.json.
        attributes: names under which the processor finds special tokens, such as image_token.
    """
    ordered = [PAD, BEGIN, END, UNKNOWN, *special]
    vocabulary = {token: index for index, token in enumerate(ordered)}
    for word in (*_MARKS, *_DIGITS, *_WORDS.split()):
        vocabulary.setdefault(word, len(vocabulary))
    while len(vocabulary) < VOCABULARY_SIZE:
        vocabulary[f"filler{len(vocabulary)}"] = len(vocabulary)
    assert len(vocabulary) == VOCABULARY_SIZE
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # words joined by spaces
    tokenizer.add_special_tokens(ordered)
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": dict(attributes or {}),
    }
    if template_home == "tokenizer_config.json":
        config["chat_template"] = chat_template
    elif template_home == "chat_template.json":
        (directory / template_home).write_text(json.dumps({"chat_template": chat_template}), encoding="utf-8")
    else:
        (directory / template_home).write_text(chat_template, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return {token: vocabulary[token] for token in ordered}


def chat_template(image: str, *, begin: str = "", turn_end: str = END, tail: str = "") -> str:
    """Returns a Jinja template with one turn per message, the image's token, and a generation prompt.

    Args:
        image: what the template writes for an image.
        begin: written before the first turn.
        tail: written after the generation prompt's role; may use template variables.
    """
    return (
        begin + "{% for message in messages %}{{ message['role'] }} : "
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}" + turn_end + "{% endfor %}"
        "{% if add_generation_prompt %}assistant :" + tail + "{% endif %}"
    )


THINKING_OFF = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
"""As GLM's and Qwen3.5's templates: thinking unless `enable_thinking=False`."""
