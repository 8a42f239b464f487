"""easy_vqa's training images in memory, with what their questions reveal about the single shape on each."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

COLORS = ("red", "green", "blue", "yellow", "brown", "gray", "teal", "black")
SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True)
class EasyImage:
    """One image; `color` and `shape` are None if its questions do not reveal them."""

    rgb: NDArray[np.uint8]  # [64, 64, 3]
    questions: tuple[tuple[str, str], ...]
    color: str | None
    shape: str | None


def read_pool(path: Path) -> list[EasyImage]:
    """Returns the images of an easy_vqa Parquet file, each once with all its questions."""
    table = pq.read_table(path, columns=["image", "question", "answers", "image_id"])
    contents: dict[str, bytes] = {}
    questions: dict[str, list[tuple[str, str]]] = {}
    for row in table.to_pylist():
        contents[row["image_id"]] = row["image"]["bytes"]
        questions.setdefault(row["image_id"], []).append((row["question"], row["answers"][0]))
    pool = []
    for image_id, content in contents.items():
        rgb = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        asked = tuple(questions[image_id])
        pool.append(EasyImage(rgb, asked, _known(asked, COLORS), _known(asked, SHAPES)))
    return pool


def _known(questions: tuple[tuple[str, str], ...], words: tuple[str, ...]) -> str | None:
    """Returns the word that describes the image according to its questions; None if they do not reveal it."""
    for text, answer in questions:
        tokens = text.rstrip("?").split()
        if answer in words:
            return answer
        named = next((word for word in words if word in tokens), None)
        is_negated = "not" in tokens or "no" in tokens
        if named and (answer not in ("yes", "no") or (answer == "yes") != is_negated):
            return named
    return None


def turned(rgb: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Returns the image randomly flipped and rotated, which does not change the answers."""
    rgb = np.rot90(rgb, rng.randrange(4))
    return rgb[:, ::-1] if rng.random() < 0.5 else rgb


def foreground(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns which pixels [height, width] differ from the background, whose colour is the median of the corners."""
    corners = rgb[[0, 0, -1, -1], [0, -1, 0, -1]].astype(np.int32)
    paper = np.median(corners, axis=0)
    return np.abs(rgb.astype(np.int32) - paper).sum(axis=-1) > 60
