"""Writes the bundled datasets: Parquet files of images, questions and answers.

`python -m knobctl.tools.nano.bundle --help`
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from .small_print import SMALL_PRINT_IMAGES, SMALL_PRINT_SEED, small_print_rows

SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("image_id", pa.string()),
        ("question_id", pa.string()),
        ("split", pa.string()),
    ]
)


def training_rng(seed: int, stage: str, step: int) -> random.Random:
    """Returns the random generator of one training step; `small_print_rows` uses different seeds."""
    return random.Random(f"small_print/train/{seed}/{stage}/{step}")


def easy_vqa_rows(split: str) -> Iterator[dict[str, Any]]:
    """Yields the questions of the `easy-vqa` package, which has to be installed (extra `nano`)."""
    import easy_vqa

    read_questions, read_paths = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }[split]
    contents = {image: Path(path).read_bytes() for image, path in read_paths().items()}
    for number, (question, answer, image) in enumerate(zip(*read_questions(), strict=True)):
        image_id = f"easy_vqa-{split}-{image}"
        yield {
            "image": {"bytes": contents[image], "path": f"{split}/{image}.png"},
            "question": question,
            "answers": [answer],
            "image_id": image_id,
            "question_id": f"easy_vqa-{split}-{number}",
            "split": split,
        }


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Writes rows as Parquet, storing equal images once, and returns the number of rows."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=64 << 20, write_page_checksum=True)
    return int(table.num_rows)


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Output directory; each dataset gets a subdirectory."
)
@click.option("--seed", default=SMALL_PRINT_SEED, show_default=True, help="Seed of small_print's held-out images.")
@click.option(
    "--images", default=SMALL_PRINT_IMAGES, show_default=True, help="Number of held-out images of small_print."
)
def main(out: Path, seed: int, images: int) -> None:
    """Write both datasets. Example: python -m knobctl.tools.nano.bundle --out data/bundled"""
    click.echo(f"small_print test: {write_rows(small_print_rows(seed, images), out / 'small_print/test.parquet')} rows")
    for split in ("train", "test"):
        click.echo(f"easy_vqa {split}: {write_rows(easy_vqa_rows(split), out / f'easy_vqa/{split}.parquet')} rows")


if __name__ == "__main__":
    main()
