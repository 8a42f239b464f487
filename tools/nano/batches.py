"""Training batches, generated on the fly: scenes and easy_vqa images with several questions packed after each image.

The image's tokens occur once. Each question with its answer attends to the image and to itself, and its positions
continue from the image's, so every question is trained as if it were alone.

Shapes: B images, N crops, Q features per crop, T positions: begin token, image tokens, then TEXT_BUDGET of text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...precompute.models.molmoe.config import MolmoeConfig
from ...precompute.models.molmoe.preprocess import image_tokens
from ...precompute.models.molmoe.prompt import PromptTokenizer
from .easy_pool import EasyImage, turned
from .pixels import TIER_SIDES, crop_images, crop_masks
from .questions import COLUMN_NAMES, ROW_NAMES, Question, sample_questions
from .render import render_scene
from .scenes import COLORS, Scene, sample_scene
from .vision_targets import Targets, easy_targets, scene_targets

TEXT_BUDGET = 96
IGNORED = -100
MANY_INNER = 0.4
"""Probability of a card in an inner place in the images of `inner_share`: zero, one and two such cards are common."""


@dataclass(frozen=True)
class Batch:
    """One training step's images of one tier, and their packed questions."""

    crops: Tensor  # [B, N, P, X]
    masks: Tensor  # [B, N, P]
    input_ids: Tensor  # [B, T]
    image_input_idx: Tensor  # [B, N, Q]
    position_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, 1, T, T] additive
    labels: Tensor  # [B, T] the next token if it belongs to an answer, else IGNORED
    hints: Tensor  # [B, T] at question words that refer to a card, the first digit of its number; else IGNORED
    targets: dict[str, Tensor]  # [B, N * Q] each: training targets of the features
    segments: Tensor  # [B, T] number of the question at a position; 0 for the image, -1 for padding
    families: list[list[str]]  # of each image's packed questions


@dataclass(frozen=True)
class Picture:
    """An image with its questions, before it is cut into crops."""

    rgb: np.ndarray
    questions: list[Question]
    scene: Scene | None
    easy: EasyImage | None

    def targets(self, side: int) -> Targets:
        """Returns the training targets of the features; empty if only the pixels are known."""
        if self.scene is not None:
            return scene_targets(self.scene, side)
        if self.easy is not None:
            return easy_targets(self.easy, self.rgb, side)
        return {}


class BatchSource:
    """Generates batches. The same state of the random generator gives the same batch."""

    def __init__(self, config: MolmoeConfig, tokenizer: PromptTokenizer, pool: list[EasyImage]) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.pool = pool
        self._color_of = {tokenizer.encode(f" {color}")[0]: color for color in COLORS}
        self._row_of = {tokenizer.encode(f" {name}")[0]: row for row, name in enumerate(ROW_NAMES)}
        self._column_of = {tokenizer.encode(f" {name}")[0]: column for column, name in enumerate(COLUMN_NAMES)}
        decisive = (*COLORS, *COLUMN_NAMES, "largest", "smallest", "cards")
        self._decisive = {tokenizer.encode(f" {word}")[0] for word in decisive}
        self._encode_prompt = lru_cache(maxsize=1 << 16)(tokenizer.encode_prompt)
        self._image_tokens = {
            side: image_tokens((side, side), config, tokenizer.special) for side in TIER_SIDES.values()
        }

    def draw(
        self,
        rng: random.Random,
        tier: str,
        images: int,
        *,
        easy_share: float,
        large_only: bool = False,
        crowded: bool = False,
        weights: dict[str, float] | None = None,
        inner_share: float = 0.0,
    ) -> Batch:
        """Returns a batch of one tier; the shares are those of easy_vqa images and of images with many inner cards."""
        pictures = []
        for index in range(images):
            if index < round(easy_share * images):
                pictures.append(self._easy_picture(rng))
            else:
                inner_chance = MANY_INNER if index >= images - round(inner_share * images) else None
                pictures.append(_scene_picture(rng, large_only, crowded, weights, inner_chance))
        return self.pack(pictures, TIER_SIDES[tier])

    def picture(self, rng: random.Random, dataset: str) -> Picture:
        """Returns one image with the distribution of training."""
        return self._easy_picture(rng) if dataset == "easy_vqa" else _scene_picture(rng, False, False, None)

    def _easy_picture(self, rng: random.Random) -> Picture:
        image = rng.choice(self.pool)
        asked = rng.sample(image.questions, k=len(image.questions))
        questions = [Question("easy", text, answer) for text, answer in asked]
        return Picture(turned(image.rgb, rng), questions, None, image)

    def pack(self, pictures: list[Picture], side: int) -> Batch:
        """Cuts the images into crops and packs their questions up to TEXT_BUDGET tokens."""
        batch = len(pictures)
        token_ids, index_NQ = self._image_tokens[side]
        prefix = 1 + len(token_ids)
        length = prefix + TEXT_BUDGET
        input_ids = np.full((batch, length), self.tokenizer.special.pad)
        labels = np.full((batch, length), IGNORED)
        hints = np.full((batch, length), IGNORED)
        segment = np.full((batch, length), -1)
        position = np.zeros((batch, length), dtype=np.int64)
        input_ids[:, :prefix] = [self.tokenizer.special.begin, *token_ids.tolist()]
        segment[:, :prefix] = 0
        position[:, :prefix] = np.arange(prefix)
        families: list[list[str]] = []
        for row, picture in enumerate(pictures):
            start = prefix
            families.append([])
            for number, question in enumerate(picture.questions, start=1):
                prompt, answer = self._encode_prompt(question.text), self.encode_answer(question.answer)
                stop = start + len(prompt) + len(answer) - 1  # the end token is a label only
                if stop > length:
                    break
                input_ids[row, start:stop] = [*prompt, *answer[:-1]]
                labels[row, start + len(prompt) - 1 : stop] = answer
                for offset, digit in self._hints(picture.scene, prompt, answer[0]):
                    hints[row, start + offset] = digit
                segment[row, start:stop] = number
                position[row, start:stop] = prefix + np.arange(stop - start)
                families[row].append(question.family)
                start = stop
        pixels, order = self._crops(pictures, side)
        targets = [picture.targets(side) for picture in pictures]
        return Batch(
            crops=pixels[order],
            masks=crop_masks(batch, side, self.config),
            input_ids=torch.from_numpy(input_ids),
            image_input_idx=index_NQ.expand(batch, -1, -1),
            position_ids=torch.from_numpy(position),
            attention_mask=packed_mask(torch.from_numpy(segment)),
            labels=torch.from_numpy(labels),
            hints=torch.from_numpy(hints),
            targets={name: torch.from_numpy(np.stack([t[name] for t in targets])) for name in targets[0]},
            segments=torch.from_numpy(segment),
            families=families,
        )

    def _hints(self, scene: Scene | None, prompt: list[int], answer: int) -> Iterator[tuple[int, int]]:
        """Yields (place in the prompt, token to predict there) for the words of a question about a scene.

        A word that refers to a card should predict the first digit of its number; after the last decisive word, every
        word should predict the answer's first token.
        """
        if scene is None:
            return
        digits = {card.color: self.encode_answer(str(card.number))[0] for card in scene.cards}
        corners = {(card.row, card.column): digits[card.color] for card in scene.cards if not card.inner}
        for offset, token in enumerate(prompt):
            if (color := self._color_of.get(token)) in digits:
                yield offset, digits[color]
            before = self._row_of.get(prompt[offset - 1])
            if before is not None and (before, self._column_of.get(token)) in corners:
                yield offset, corners[before, self._column_of[token]]
        last = max(offset for offset, token in enumerate(prompt) if token in self._decisive)
        for offset in range(last + 1, len(prompt) - 1):
            yield offset, answer

    def encode_answer(self, answer: str) -> tuple[int, ...]:
        """Returns the token ids of the answer, including its leading space, and the end token."""
        return _encode_answer(self.tokenizer, answer)

    def _crops(self, pictures: list[Picture], side: int) -> tuple[Tensor, Tensor]:
        """Returns the crops grouped by image size, and the position of each picture in them."""
        sizes = sorted({len(picture.rgb) for picture in pictures})
        groups = [[index for index, picture in enumerate(pictures) if len(picture.rgb) == size] for size in sizes]
        crops = [crop_images(np.stack([pictures[i].rgb for i in group]), side, self.config) for group in groups]
        return torch.cat(crops), torch.tensor([i for group in groups for i in group]).argsort()


@lru_cache(maxsize=1024)
def _encode_answer(tokenizer: PromptTokenizer, answer: str) -> tuple[int, ...]:
    return (*tokenizer.encode(f" {answer}"), tokenizer.special.end)


def _scene_picture(
    rng: random.Random,
    large_only: bool,
    crowded: bool,
    weights: dict[str, float] | None,
    inner_chance: float | None = None,
) -> Picture:
    scene = sample_scene(rng, large_only=large_only, crowded=crowded, inner_chance=inner_chance)
    return Picture(render_scene(scene, rng), sample_questions(scene, rng, 8, weights), scene, None)


def packed_mask(segment_BT: Tensor) -> Tensor:
    """Returns the additive mask [B, 1, T, T] of packed rows: all attend to segment 0, and each other segment to itself.

    The mask is causal. Padding (segment -1) attends to padding, which has no effect.
    """
    length = segment_BT.shape[1]
    key, query = segment_BT[:, None, :], segment_BT[:, :, None]
    is_seen = ((key == 0) | (key == query)) & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(is_seen.shape).masked_fill(~is_seen, torch.finfo(torch.float32).min).unsqueeze(1)
