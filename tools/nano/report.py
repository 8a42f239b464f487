"""Held-out accuracy of a checkpoint by tier, top-k and blocks, block importance, and what the questions predict.

`python -m knobctl.tools.nano.report --help`
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from ...data.plans import ImportanceScores, block_plan
from ...precompute.models.molmoe.checkpoint import load_molmoe
from ...precompute.models.molmoe.model import Molmoe
from ...precompute.models.molmoe.prompt import PromptTokenizer
from .accuracy import correct_answers
from .batches import Batch, BatchSource, Picture
from .bundle import training_rng
from .easy_pool import read_pool
from .forward import Plan, encode, full_plan
from .pixels import TIER_SIDES
from .questions import Question

DATASETS = ("easy_vqa", "small_print")
INSERTION_POSITION = 3
"""Default insertion position of the tables: that many first blocks run with the native top-k."""
IMAGES_PER_BATCH = 64


def read_pictures(path: Path, images: int) -> list[Picture]:
    """Returns the first `images` images of a bundled Parquet file with their questions and families."""
    pictures: dict[str, Picture] = {}
    for row in pq.read_table(path).to_pylist():
        if row["image_id"] not in pictures:
            if len(pictures) == images:
                break
            rgb = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
            pictures[row["image_id"]] = Picture(rgb, [], None, None)
        family = row["question_id"].rsplit("-", 1)[1]
        family = "easy" if family.isdigit() else family
        pictures[row["image_id"]].questions.append(Question(family, row["question"], row["answers"][0]))
    return list(pictures.values())


class HeldOut:
    """Images in batches for each tier, with their image features computed once."""

    def __init__(self, model: Molmoe, source: BatchSource, pictures: list[Picture]) -> None:
        self.model = model
        self.batches: dict[str, list[tuple[Batch, torch.Tensor]]] = {}
        for tier, side in TIER_SIDES.items():
            chunks = [pictures[i : i + IMAGES_PER_BATCH] for i in range(0, len(pictures), IMAGES_PER_BATCH)]
            packed = [source.pack(chunk, side) for chunk in chunks]
            with torch.inference_mode():
                self.batches[tier] = [(batch, encode(model, batch, bfloat16=False)) for batch in packed]

    def outcomes(self, tier: str, plan: Plan) -> list[tuple[str, bool]]:
        """Returns (family, whether the answer is right) of every question."""
        return [
            outcome
            for batch, features in self.batches[tier]
            for outcome in correct_answers(self.model, batch, features, plan)
        ]

    def accuracy(self, tier: str, plan: Plan) -> float:
        return float(np.mean([is_right for _, is_right in self.outcomes(tier, plan)]))


def measured_importance(model: Molmoe, samples: dict[str, HeldOut]) -> tuple[float, ...]:
    """Returns the accuracy lost by leaving out each block (medium tier, native top-k), averaged over the datasets."""

    def accuracy(plan: Plan) -> float:
        return float(np.mean([held_out.accuracy("medium", plan) for held_out in samples.values()]))

    plan = full_plan(model)
    whole = accuracy(plan)
    return tuple(whole - accuracy((*plan[:index], 0, *plan[index + 1 :])) for index in range(len(plan)))


def knob_table(
    model: Molmoe,
    samples: dict[str, HeldOut],
    scores: tuple[float, ...],
    grid: Iterator[tuple[str, int, int]],
    insertion_position: int = INSERTION_POSITION,
) -> Iterator[dict[str, Any]]:
    """Yields the accuracy of each dataset and family for each (tier, top-k, blocks)."""
    for tier, top_k, num_blocks in grid:
        plan = block_plan(
            insertion_position,
            top_k,
            num_blocks,
            importance=ImportanceScores(scores),
            native_top_k=(model.config.native_top_k,) * model.config.num_blocks,
        )
        row: dict[str, Any] = {"tier": tier, "top_k": top_k, "num_blocks": num_blocks}
        for name, held_out in samples.items():
            outcomes = held_out.outcomes(tier, plan)
            row[name] = float(np.mean([is_right for _, is_right in outcomes]))
            families = sorted({family for family, _ in outcomes})
            row.update({f"{name}/{f}": float(np.mean([r for g, r in outcomes if g == f])) for f in families})
        yield row


def gain_auc(model: Molmoe, source: BatchSource, pictures: list[Picture], held_out: HeldOut) -> float:
    """Returns the area under the ROC curve for predicting "low wrong, high right" from the language feature alone.

    Uses ridge regression on the mean word embedding of the question, fitted on one half of the images and evaluated on
    the other.
    """
    plan = full_plan(model)
    low, high = (held_out.outcomes(tier, plan) for tier in ("low", "high"))
    is_gain = np.array([not at_low and at_high for (_, at_low), (_, at_high) in zip(low, high, strict=True)])
    texts = [
        question.text
        for (batch, _), start in zip(held_out.batches["low"], range(0, len(pictures), IMAGES_PER_BATCH), strict=True)
        for families, picture in zip(batch.families, pictures[start : start + IMAGES_PER_BATCH], strict=True)
        for question in picture.questions[: len(families)]
    ]
    with torch.inference_mode():
        ids = [torch.tensor(source.tokenizer.encode(text)) for text in texts]
        feature = np.stack([model.word_embeddings(i).float().mean(dim=0).numpy() for i in ids])
    half = len(texts) // 2
    feature = np.hstack([(feature - feature[:half].mean(0)) / (feature[:half].std(0) + 1e-6), np.ones((len(texts), 1))])
    fitted = feature[:half]
    weight = np.linalg.solve(fitted.T @ fitted + 10 * np.eye(feature.shape[1]), fitted.T @ is_gain[:half])
    return area_under_roc(feature[half:] @ weight, is_gain[half:])


def area_under_roc(score: NDArray[np.float64], is_positive: NDArray[np.bool_]) -> float:
    """Returns the probability that a positive scores higher than a negative, counting ties as half."""
    positive, negative = score[is_positive], np.sort(score[~is_positive])
    below = np.searchsorted(negative, positive, "left")
    not_above = np.searchsorted(negative, positive, "right")
    return float((below + not_above).sum() / 2 / (len(positive) * len(negative)))


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path), default=Path(__file__).parents[2] / "data/bundled")
@click.option("--images", default=600, show_default=True, help="Held-out images of each dataset.")
@click.option("--trained-images", default=200, show_default=True, help="Training images for the importance scores.")
@click.option("--corners", is_flag=True, help="Only the lowest and the highest top-k and number of blocks.")
@click.option("--position", default=INSERTION_POSITION, show_default=True, help="Insertion position of the table.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def main(
    checkpoint: Path, data: Path, images: int, trained_images: int, corners: bool, position: int, threads: int
) -> None:
    """Print figures of a checkpoint as JSON lines. Example: python -m knobctl.tools.nano.report data/bundled/nano"""
    torch.set_num_threads(threads)
    model = load_molmoe(checkpoint, dtype=torch.float32, device="cpu", experts_implementation="dense")
    tokenizer = PromptTokenizer.from_directory(checkpoint)
    source = BatchSource(model.config, tokenizer, read_pool(data / "easy_vqa/train.parquet"))
    pictures = {name: read_pictures(data / name / "test.parquet", images) for name in DATASETS}
    seen = training_rng(0, "importance", 0)
    trained = {name: [source.picture(seen, name) for _ in range(trained_images)] for name in DATASETS}
    scores = measured_importance(model, {name: HeldOut(model, source, found) for name, found in trained.items()})
    click.echo(json.dumps({"importance": [round(score, 4) for score in scores]}))
    samples = {name: HeldOut(model, source, found) for name, found in pictures.items()}
    auc = gain_auc(model, source, pictures["small_print"], samples["small_print"])
    click.echo(json.dumps({"auc_low_wrong_high_right": round(auc, 3)}))
    top_ks, blocks = ((8, 4), (16, 12)) if corners else ((8, 7, 6, 5, 4), (16, 15, 14, 13, 12))
    for row in knob_table(model, samples, scores, product(TIER_SIDES, top_ks, blocks), position):
        click.echo(
            json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        )


if __name__ == "__main__":
    main()
