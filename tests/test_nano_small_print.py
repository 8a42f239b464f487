"""The generator of small_print: scenes, questions and answers."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from knobctl.tools.nano.bundle import training_rng
from knobctl.tools.nano.questions import FAMILIES, FAMILY_WEIGHTS, sample_questions
from knobctl.tools.nano.render import CARD_RGB, render_scene
from knobctl.tools.nano.scenes import COLORS, IMAGE_SIZE, INNER_PLACE, KINDS, OUTER_PLACE, Scene, sample_scene
from knobctl.tools.nano.small_print import small_print_rows


def scenes(count: int) -> list[Scene]:
    rng = random.Random(5)
    return [sample_scene(rng) for _ in range(count)]


def independent_answer(scene: Scene, text: str) -> str:
    """Derives the answer from the words of the question and the rectangles of the cards, unlike the generator."""
    number_of = {card.color: card.number for card in scene.cards}
    colors = [word for word in re.findall(r"[a-z]+", text) if word in COLORS]
    corners = {  # outer cards by the half of the image that contains their centre
        (2 * card.top + card.height > IMAGE_SIZE, 2 * card.left + card.width > IMAGE_SIZE): card
        for card in scene.cards
        if not card.inner
    }
    if text.startswith("how many cards"):
        return str(len(number_of))
    if " plus " in text:
        return str(number_of[colors[0]] + number_of[colors[1]])
    if found := re.search(r"is (larger|smaller), ", text):
        ranked = sorted(colors, key=number_of.__getitem__)
        return ranked[-1] if found[1] == "larger" else ranked[0]
    if found := re.search(r"the (top|bottom) (left|right)", text):
        card = corners[found[1] == "bottom", found[2] == "right"]
    elif found := re.search(r"(largest|smallest) number", text):
        ranked_cards = sorted(scene.cards, key=lambda card: card.number)
        card = ranked_cards[-1] if found[1] == "largest" else ranked_cards[0]
        return card.color if text.startswith("what color") else str(card.number)
    elif found := re.search(r"is (left of|right of|above|below) the", text):
        (row, column), _ = next(item for item in corners.items() if item[1].color == colors[0])
        card = corners[(not row, column) if found[1] in ("above", "below") else (row, not column)]
    else:
        return str(number_of[colors[0]])
    return card.color if text.startswith("what color") else str(card.number)


def test_every_answer_follows_from_the_scene():
    seen = set()
    for index, scene in enumerate(scenes(150)):
        for question in sample_questions(scene, random.Random(index), 8, dict.fromkeys(FAMILIES, 1.0)):
            assert independent_answer(scene, question.text) == question.answer, question.text
            seen.add(question.family)
    assert seen == set(FAMILIES)
    assert set(FAMILY_WEIGHTS) < seen


def test_neighbouring_cards_lie_on_the_named_side():
    for scene in scenes(60):
        for card in scene.cards:
            right, below = scene.beside(card, "right"), scene.beside(card, "below")
            assert right is None or right.left > card.left
            assert below is None or below.top > card.top


def test_the_same_seed_draws_the_same_rows():
    assert list(small_print_rows(3, 4)) == list(small_print_rows(3, 4))
    assert list(small_print_rows(3, 4)) != list(small_print_rows(4, 4))


def test_cards_stay_in_their_places_and_differ_in_colour_and_number():
    for scene in scenes(200):
        assert len({card.color for card in scene.cards}) == len(scene.cards) == len({c.number for c in scene.cards})
        for card in scene.cards:
            start = (IMAGE_SIZE // 2 - INNER_PLACE, IMAGE_SIZE // 2) if card.inner else (0, IMAGE_SIZE - OUTER_PLACE)
            side = INNER_PLACE if card.inner else OUTER_PLACE
            for begin, length, place in (
                (card.left, card.width, start[card.column]),
                (card.top, card.height, start[card.row]),
            ):
                assert place <= begin <= begin + length <= place + side


def test_a_card_is_drawn_in_its_color():
    rng = random.Random(1)
    for scene in scenes(20):
        image = render_scene(scene, rng).astype(int)
        for card in scene.cards:
            corner = image[card.top, card.left]
            assert np.abs(corner - CARD_RGB[card.color]).max() <= 10


@pytest.mark.parametrize(("kind", "expected"), [("poster", "large"), ("contract", "small")])
def test_the_kind_of_a_scene_makes_a_card_size_likely_but_not_certain(kind, expected):
    sizes = [card.size for scene in scenes(1500) if scene.kind == kind for card in scene.cards]
    share = sizes.count(expected) / len(sizes)
    assert 0.6 < share < 0.95
    assert kind in KINDS


def test_training_scenes_differ_from_the_held_out_ones():
    held_out = {sample_scene(random.Random(f"small_print/test/20240924/{index}")) for index in range(200)}
    drawn = {sample_scene(training_rng(7, "answers", step)) for step in range(200)}
    assert not held_out & drawn
