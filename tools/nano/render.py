"""Renders a small_print scene as an image."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .scenes import IMAGE_SIZE, Card, Scene, digit_gap, digit_width

CARD_RGB = {
    "red": (214, 40, 40),
    "green": (46, 160, 60),
    "blue": (40, 70, 210),
    "yellow": (236, 212, 40),
    "brown": (125, 75, 30),
    "gray": (130, 130, 130),
    "teal": (20, 170, 170),
    "black": (20, 20, 20),
    "orange": (245, 140, 25),
    "purple": (140, 50, 170),
}
PAPER_RGB = {
    "poster": (250, 240, 225),
    "sign": (225, 235, 250),
    "menu": (245, 228, 240),
    "label": (232, 246, 228),
    "contract": (250, 250, 250),
}
DARK_TEXT_ON = ("yellow", "orange", "teal")
ATLAS_HEIGHT = 64


@cache
def _digit_mask(digit: int, width: int, height: int) -> Image.Image:
    """Returns the digit in Pillow's default font, cropped and scaled to `width` x `height`, as an 8-bit mask."""
    font = ImageFont.load_default(ATLAS_HEIGHT)
    left, top, right, bottom = font.getbbox(str(digit))
    ink = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), str(digit), fill=255, font=font, stroke_width=1)
    narrow = digit == 1  # stretched to the width of the other digits, a 1 would look like a bar
    scaled = ink.resize((max(2, width // 2) if narrow else width, height), Image.Resampling.BOX)
    mask = Image.new("L", (width, height))
    mask.paste(scaled, ((width - scaled.width) // 2, 0))
    return mask


def _shade(rgb: tuple[int, int, int], amount: int, rng: random.Random) -> tuple[int, int, int]:
    return tuple(min(255, max(0, value + rng.randint(-amount, amount))) for value in rgb)  # type: ignore[return-value]


def _draw_card(image: Image.Image, draw: ImageDraw.ImageDraw, card: Card, rng: random.Random) -> None:
    box = (card.left, card.top, card.left + card.width - 1, card.top + card.height - 1)
    draw.rectangle(box, fill=_shade(CARD_RGB[card.color], 10, rng))
    ink = (15, 15, 15) if card.color in DARK_TEXT_ON else (250, 250, 250)
    digits = [int(character) for character in str(card.number)]
    width, gap = digit_width(card.text_height), digit_gap(card.text_height)
    text_width = len(digits) * width + (len(digits) - 1) * gap
    x = card.left + (card.width - text_width) // 2
    y = card.top + (card.height - card.text_height) // 2
    for digit in digits:
        image.paste(ink, (x, y), _digit_mask(digit, width, card.text_height))
        x += width + gap


def render_scene(scene: Scene, rng: random.Random) -> np.ndarray:
    """Returns the image as uint8 [96, 96, 3]. `rng` varies the shades of paper and cards slightly."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), _shade(PAPER_RGB[scene.kind], 6, rng))
    draw = ImageDraw.Draw(image)
    for card in scene.cards:
        _draw_card(image, draw, card, rng)
    return np.asarray(image)
