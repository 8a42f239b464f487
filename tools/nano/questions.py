"""Questions about a small_print scene, with answers derived from its description.

The question families, from a single lookup to several steps:

read      the number on the card of a colour
place     the number, or the colour, in a corner
count     how many cards there are
extreme   the colour of the card with the largest or smallest number
value     the largest or smallest number itself
compare   which of two colours has the larger or smaller number
sum       the sum of two one-digit numbers
beside    the number, or the colour, of the card left, right, above or below that of a colour
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .scenes import SIDES, Card, Scene, sample_scene

FAMILY_WEIGHTS = {
    "read": 0.36,
    "count": 0.10,
    "extreme": 0.14,
    "value": 0.12,
    "compare": 0.16,
    "sum": 0.12,
}
"""The dataset's shares. `place` and `beside` are omitted because nano answered them at chance level."""

ROW_NAMES = ("top", "bottom")
COLUMN_NAMES = ("left", "right")
SIDE_NAMES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Question:
    """A question and its one right answer."""

    family: str
    text: str
    answer: str


def _outer_cards(scene: Scene) -> list[Card]:
    return [card for card in scene.cards if not card.inner]


def _read(scene: Scene, rng: random.Random) -> Question:
    card = rng.choice(scene.cards)
    return Question("read", f"what number is on the {card.color} card of the {scene.kind}?", str(card.number))


def _place(scene: Scene, rng: random.Random) -> Question:
    card = rng.choice(_outer_cards(scene))
    corner = f"{ROW_NAMES[card.row]} {COLUMN_NAMES[card.column]}"
    if rng.random() < 0.5:
        return Question("place", f"what number is at the {corner} of the {scene.kind}?", str(card.number))
    return Question("place", f"what color is the card at the {corner} of the {scene.kind}?", card.color)


def _count(scene: Scene, rng: random.Random) -> Question:
    del rng
    return Question("count", f"how many cards are on the {scene.kind}?", str(len(scene.cards)))


def _extreme_card(scene: Scene, rng: random.Random) -> tuple[str, Card]:
    word = rng.choice(("largest", "smallest"))
    sign = -1 if word == "largest" else 1
    return word, min(scene.cards, key=lambda card: sign * card.number)


def _extreme(scene: Scene, rng: random.Random) -> Question:
    word, card = _extreme_card(scene, rng)
    return Question("extreme", f"what color has the {word} number on the {scene.kind}?", card.color)


def _value(scene: Scene, rng: random.Random) -> Question:
    word, card = _extreme_card(scene, rng)
    return Question("value", f"what is the {word} number on the {scene.kind}?", str(card.number))


def _compare(scene: Scene, rng: random.Random) -> Question:
    first, second = rng.sample(scene.cards, k=2)
    word = rng.choice(("larger", "smaller"))
    right = first if (first.number > second.number) == (word == "larger") else second
    text = f"which number of the {scene.kind} is {word}, {first.color} or {second.color}?"
    return Question("compare", text, right.color)


def _sum(scene: Scene, rng: random.Random) -> Question | None:
    one_digit = [card for card in scene.cards if card.number < 10]
    if len(one_digit) < 2:
        return None
    first, second = rng.sample(one_digit, k=2)
    text = f"what is {first.color} plus {second.color} on the {scene.kind}?"
    return Question("sum", text, str(first.number + second.number))


def _beside(scene: Scene, rng: random.Random) -> Question | None:
    pairs = [(card, side, scene.beside(card, side)) for card in _outer_cards(scene) for side in SIDES]
    found = [(card, side, other) for card, side, other in pairs if other is not None]
    if not found:
        return None
    card, side, other = rng.choice(found)
    where = f"{SIDE_NAMES[side]} the {card.color} card of the {scene.kind}?"
    if rng.random() < 0.5:
        return Question("beside", f"what number is {where}", str(other.number))
    return Question("beside", f"what color is {where}", other.color)


FAMILIES: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "read": _read,
    "place": _place,
    "count": _count,
    "extreme": _extreme,
    "value": _value,
    "compare": _compare,
    "sum": _sum,
    "beside": _beside,
}


def sample_questions(
    scene: Scene, rng: random.Random, number: int, weights: Mapping[str, float] | None = None
) -> list[Question]:
    """Returns up to `number` different random questions; families without a question about the scene are redrawn."""
    weights = weights or FAMILY_WEIGHTS
    names = tuple(weights)
    questions: dict[str, Question] = {}
    for _ in range(8 * number):
        question = FAMILIES[rng.choices(names, weights=tuple(weights.values()))[0]](scene, rng)
        if question is not None:
            questions.setdefault(question.text, question)
        if len(questions) == number:
            break
    return list(questions.values())


def every_template() -> tuple[str, ...]:
    """Returns questions that cover every wording, from which the tokenizer takes its vocabulary."""
    rng = random.Random(0)
    texts: set[str] = set()
    for _ in range(200):
        texts |= {question.text for question in sample_questions(sample_scene(rng), rng, 8, dict.fromkeys(FAMILIES, 1))}
    return tuple(sorted(texts))
