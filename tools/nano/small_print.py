"""The rows of the bundled dataset small_print, generated from a seed, without Parquet or files."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import Any

from PIL import Image

from .questions import sample_questions
from .render import render_scene
from .scenes import sample_scene

SMALL_PRINT_SEED = 20_240_924
SMALL_PRINT_IMAGES = 2400
QUESTIONS_PER_IMAGE = 3


def small_print_rows(seed: int, images: int) -> Iterator[dict[str, Any]]:
    """Yields the held-out questions of small_print; training uses the seeds of `bundle.training_rng`."""
    for index in range(images):
        rng = random.Random(f"small_print/test/{seed}/{index}")
        scene = sample_scene(rng)
        content = io.BytesIO()
        Image.fromarray(render_scene(scene, rng)).save(content, "PNG", optimize=True)
        for number, question in enumerate(sample_questions(scene, rng, QUESTIONS_PER_IMAGE)):
            image_id = f"small_print-{index:05d}"
            yield {
                "image": {"bytes": content.getvalue(), "path": f"{image_id}.png"},
                "question": question.text,
                "answers": [question.answer],
                "image_id": image_id,
                "question_id": f"{image_id}-{number}-{question.family}",
                "split": "test",
            }
