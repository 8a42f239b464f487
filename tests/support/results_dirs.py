"""Writes results directories as the profiler leaves them: ranks, leftovers, split groups, padding, damage, old files.

`Written.rows` records the measurements of each question in each configuration; an import is checked against them.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIER_CROPS = {"low": (1, 3), "medium": (4, 8), "high": (9, 15)}
BLOCKS = {  # the blocks that the published scores keep
    12: [0, 1, 3, 5, 6, 7, 8, 9, 11, 12, 14, 15],
    13: [0, 1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 14, 15],
    14: [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15],
    15: [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    16: list(range(16)),
}
WORDS = ["blue", "oslo", "pizza", "bus", "camera", "harbor", "winter", "basket", "umbrella", "nokia", "1985", "two"]
RUNS = 5
SHAPES = ("merged", "single", "ranks", "leftovers", "split")  # how the files of one configuration are divided

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    dataset: str
    example_id: int
    image_id: str | int | None
    text: str
    answers: tuple[str, ...]


@dataclass
class Written:
    """(dataset, tier, top_k, blocks that ran) -> example_id -> the rows that measured it, first in file order."""

    rows: dict[tuple[str, str, int, int], dict[int, list[Row]]] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)


def make_questions(dataset: str, count: int, seed: int = 66) -> list[Question]:
    """Questions whose numbers also occur in other datasets, two per image; okvqa names no image."""
    rng = random.Random(f"{dataset}/{seed}")
    questions = []
    for i in range(count):
        image_id: str | int | None = f"{i // 2:016x}" if dataset == "text_vqa" else 262_144 + i // 2
        right = rng.choice(WORDS)
        answers = tuple(right if rng.random() < 0.7 else rng.choice(WORDS) for _ in range(10))
        text = f"what is {rng.choice(WORDS)} number {i}?"
        questions.append(Question(dataset, 34_602 + 7 * i, None if dataset == "okvqa" else image_id, text, answers))
    return questions


def measure(question: Question, tier: str, top_k: int, num_blocks: int, rng: random.Random) -> Row:
    """One row without `sample_id`. Times are drawn anew, so two measurements of one question differ."""
    rows, cols = 1, rng.randint(*TIER_CROPS[tier])
    predicted = rng.choice(question.answers) if rng.random() < 0.8 else rng.choice(WORDS)
    tokens = rng.choice((1, 2, 2, 2, 3, 4))
    vision, prefill = 4.0 * cols + rng.random(), (num_blocks - 1) * (2 + top_k / 2) + rng.random()
    steps = [[7.0 + num_blocks * 0.6 + rng.random() for _ in range(RUNS)] for _ in range(tokens - 1)]
    decode = sum(sum(step) / RUNS for step in steps)
    vision_tokens = (8 * rows + 4) * (8 * cols + 4) + 144
    metadata: Row = {"image_id": question.image_id} if question.image_id is not None else {}
    metadata |= {"example_id": question.example_id, "answers": list(question.answers), "question": question.text}
    low, high = TIER_CROPS[tier]
    return {
        "tier": tier,
        "tier_range": {"min_crops": low, "max_crops": high},
        "top_k": top_k,
        "num_active_blocks": num_blocks,
        "output_tokens": tokens,
        "content_tokens": max(tokens - 1, 0),
        "ends_with_eos": True,
        "actual_image_size": [333, 500],
        "actual_num_crops": rows * cols,
        "actual_tiling": [rows, cols],
        "target_vision_tokens": (rows * cols + 1) * 144,
        "actual_vision_tokens": vision_tokens,
        "actual_text_tokens": 46,
        "total_sequence_length": vision_tokens + 46,
        "accuracy": min(question.answers.count(predicted) / 3, 1.0),
        "pred": predicted,
        "metadata": metadata,
        "T_vision_total": vision,
        "T_LLM_prefill": prefill,
        "T_LLM_decode": decode,
        "T_total": vision + prefill + decode + 5.0 + rng.random(),
        "T_decode_per_token": decode / max(tokens - 1, 1),
        "T_decode_per_step": steps,
    }


def deal(questions: Sequence[Question], ranks: int) -> list[list[tuple[int, Question]]]:
    """The (sample_id, question) pairs of each rank's loader: round robin, padded with the first questions."""
    per_rank = -(-len(questions) // ranks)
    return [[(i, questions[(i * ranks + rank) % len(questions)]) for i in range(per_rank)] for rank in range(ranks)]


def as_file(rows: Sequence[Row], tier: str, top_k: int, num_blocks: int, blocks: Sequence[int] | None) -> Row:
    """A whole file. Its statistics are wrong on purpose: the importer must not use them."""
    low, high = TIER_CROPS.get(tier, (1, 3))
    content: Row = {
        "tier": tier,
        "tier_range": {"min_crops": low, "max_crops": high},
        "max_crops": high,
        "selected_crops_distribution": dict(Counter(str(row.get("actual_num_crops", 0)) for row in rows)),
        "selected_crops_mean": 1.0,
        "actual_vision_tokens_mean": float("nan") if not rows else 123.0,
        "top_k": top_k,
        "num_active_blocks": num_blocks,
        "num_total_blocks": 16,
        "active_block_indices": None if blocks is None else list(blocks),
        "num_samples": len(rows),
        "accuracy": 0.987 if rows else 0.0,
        "accuracy_std": 0.5,
        "latency_stats": {"T_total_mean": 99_999.0, "T_total_p95": 99_999.0} if rows else {},
        "per_sample_results": list(rows),
    }
    if blocks is None:
        del content["active_block_indices"]
    return content


def file_name(dataset: str, content: Row, rank: int | None = None, crops: int | None = None) -> str:
    rows = content["per_sample_results"]
    mean = sum(row.get("actual_num_crops", 0) for row in rows) // len(rows) if rows else 0
    suffix = "" if rank is None else f"_rank{rank}"
    name = f"{dataset.replace('_', '-')}_imgsizetier-{content['tier']}_crops{mean if crops is None else crops}"
    return f"{name}_topk{content['top_k']}_blocks{content['num_active_blocks']}{suffix}.json"


def write(root: Path, dataset: str, content: Row, rank: int | None = None, crops: int | None = None) -> Path:
    directory = root / dataset.replace("_", "-")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / file_name(dataset, content, rank, crops)
    path.write_text(json.dumps(content, indent=2))
    return path


def some_rows(
    count: int = 4, tier: str = "low", top_k: int = 8, num_blocks: int = 16, dataset: str = "text_vqa"
) -> list[Row]:
    """Returns measurements of the dataset's first questions; the same arguments give the same rows."""
    rng = random.Random(1)
    asked = make_questions(dataset, count)
    return [{"sample_id": i, **measure(q, tier, top_k, num_blocks, rng)} for i, q in enumerate(asked)]


def write_rows(
    root: Path,
    rows: Sequence[Row],
    tier: str = "low",
    top_k: int = 8,
    num_blocks: int = 16,
    dataset: str = "text_vqa",
    rank: int | None = None,
    **changes: Any,
) -> Path:
    """Writes one file of `rows`, its file-level entries replaced by `changes`."""
    content = as_file(rows, tier, top_k, num_blocks, BLOCKS[num_blocks]) | changes
    return write(root, dataset, content, rank)


def write_configuration(
    root: Path,
    questions: Sequence[Question],
    tier: str,
    top_k: int,
    num_blocks: int,
    *,
    shape: str = "merged",
    ranks: int = 4,
    seed: int = 0,
    written: Written | None = None,
    blocks: Sequence[int] | None = None,
) -> list[Path]:
    """Writes one configuration of one dataset in one of SHAPES and records every measurement in `written`."""
    dataset = questions[0].dataset
    blocks = BLOCKS[num_blocks] if blocks is None else blocks
    rng = random.Random(f"{dataset}/{tier}/{top_k}/{num_blocks}/{seed}")
    dealt = deal(questions, 1 if shape == "single" else ranks)
    per_rank = [
        [{"sample_id": i, **measure(question, tier, top_k, num_blocks, rng)} for i, question in rank] for rank in dealt
    ]
    if written is not None:
        measured: dict[int, list[Row]] = defaultdict(list)
        for row in (row for rank in per_rank for row in rank):
            measured[row["metadata"]["example_id"]].append(row)
        written.rows[dataset, tier, top_k, len(set(blocks))] = dict(measured)

    def put(rows: Sequence[Row], rank: int | None = None, crops: int | None = None) -> Path:
        return write(root, dataset, as_file(rows, tier, top_k, num_blocks, blocks), rank, crops)

    everything = [row for rank in per_rank for row in rank]
    if shape in ("merged", "single"):
        return [put(everything)]
    if shape == "ranks":
        return [put(rows, rank) for rank, rows in enumerate(per_rank)]
    if shape == "leftovers":  # rank files with another number of crops than rank 0's survive the merge
        own = [put(rows, rank, crops=90 + rank) for rank, rows in enumerate(per_rank) if rank]
        return [put(everything, crops=90), *own]
    assert shape == "split", shape  # merged later by number of crops: two files with disjoint rows
    half = max(1, ranks // 2)
    groups = [per_rank[:half], per_rank[half:]]
    return [put([r for rank in group for r in rank], crops=80 + i) for i, group in enumerate(groups) if group]


def write_messy_directory(
    root: Path,
    *,
    seed: int,
    datasets: Sequence[str] = ("text_vqa", "coco_2014_vqa", "okvqa"),
    questions: int = 10,
    top_k: Sequence[int] = (4, 8),
    num_blocks: Sequence[int] = (12, 16),
    ranks: int = 4,
    damage: bool = True,
) -> Written:
    """Writes every configuration in a shape drawn by `seed`; with `damage`, also foreign and broken files."""
    rng = random.Random(seed)
    written = Written()
    for dataset in datasets:
        asked = make_questions(dataset, questions)
        for tier in TIER_CROPS:
            for k in top_k:
                for n in num_blocks:
                    shape = rng.choice(SHAPES)
                    write_configuration(
                        root, asked, tier, k, n, shape=shape, ranks=ranks, seed=seed, written=written
                    )  # fmt: skip
    if damage:
        written.damaged = write_damage(root, datasets[0], rng)
    return written


def write_damage(root: Path, dataset: str, rng: random.Random) -> list[Path]:
    """Writes files that the importer must skip without losing others; returns them."""
    directory = root / dataset.replace("_", "-")
    asked = make_questions(dataset, 3)
    rows = [{"sample_id": i, **measure(q, "low", 5, 13, rng)} for i, q in enumerate(asked)]
    text = json.dumps(as_file(rows, "low", 5, 13, BLOCKS[13]), indent=2)
    prefix = f"{dataset.replace('_', '-')}_imgsizetier-low"
    files = {
        f"{prefix}_crops2_topk5_blocks13.json": text[: rng.randrange(1, len(text) - 1)],
        f"{prefix}_crops2_topk5_blocks13_rank0.json": "",
        f"{prefix}_crops2_topk7_blocks13.json": "[1, 2, 3]",
        f"{prefix}_crops2_topk7_blocks15.json": '{"hello": "world"}',
        f"{prefix}_crops3_topk5_blocks15.json": "\0" * 512,
        "combined_profiling_results_20251220.json": "{}",
        "notes.json": "[" * 50,
        f"{dataset.replace('_', '-')}_imgsize_crops6_topk4_blocks12.json": "{}",
    }
    for name, content in files.items():
        (directory / name).write_text(content)
    (root / "logs").mkdir(exist_ok=True)
    (root / "logs" / "combined_profiling.log").write_text("INFO Experiment completed!\n")
    return [directory / name for name in files]
