"""Writes small datasets in the formats that are read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image


def png(seed: int, size: tuple[int, int] = (8, 6)) -> bytes:
    """Returns an image that differs for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def ten(*texts: str, **fields: str) -> list[dict[str, object]]:
    """Returns ten answer objects that cycle through `texts`."""
    return [{"answer_id": i + 1, "answer": texts[i % len(texts)], **fields} for i in range(10)]


def coco_vqa(folder: Path, *, n: int = 12, prefix: str = "v2_", subtype: str = "val2014") -> Path:
    """Writes official files of VQA v2 (prefix "v2_") or OK-VQA (prefix ""), three questions per image."""
    questions, annotations = [], []
    for i in range(n):
        image_id = 42 + i // 3
        question_id = image_id * 1000 + i % 3
        questions.append({"image_id": image_id, "question": f"what is number {i}?", "question_id": question_id})
        answers = ten("race", raw_answer="racing") if prefix == "" else ten("down", "up", answer_confidence="yes")
        annotations.append({"question_id": question_id, "image_id": image_id, "answers": answers})
        image = folder / subtype / f"COCO_{subtype}_{image_id:012d}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(png(image_id))
    head = {"data_type": "mscoco", "data_subtype": subtype}
    write_json(folder / f"{prefix}OpenEnded_mscoco_{subtype}_questions.json", {**head, "questions": questions})
    write_json(folder / f"{prefix}mscoco_{subtype}_annotations.json", {**head, "annotations": annotations})
    return folder


def text_vqa(folder: Path, *, n: int = 6, split: str = "val") -> Path:
    """Writes the official file of TextVQA; the images of val are in train_images."""
    items = []
    for i in range(n):
        image_id = f"{i // 2:016x}"
        item = {"question": f"what does sign {i} say?", "question_id": 34602 + i, "image_id": image_id}
        if split != "test":
            item["answers"] = ["stop"] * 6 + ["go"] * 4
        items.append(item)
        images = folder / ("test_images" if split == "test" else "train_images")
        images.mkdir(parents=True, exist_ok=True)
        (images / f"{image_id}.jpg").write_bytes(png(i // 2))
    write_json(folder / f"TextVQA_0.5.1_{split}.json", {"dataset_name": "textvqa", "data": items})
    return folder


def rows(n: int = 10, *, questions_per_image: int = 2, **columns: object) -> pl.DataFrame:
    """Returns a table with image, question, answers, image_id and question_id; `columns` replace these or add more."""
    images = [i // questions_per_image for i in range(n)]
    table: dict[str, object] = {
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in images],
        "question": [f"what is number {i}?" for i in range(n)],
        "answers": [["cat"] * 10] * n,
        "image_id": images,
        "question_id": list(range(n)),
    }
    return pl.DataFrame({name: values for name, values in (table | columns).items() if values is not None})


def write_parquet(path: Path, table: pl.DataFrame, row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(path, row_group_size=row_group_size)
    return path


def write_json_lines(path: Path, entries: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path
