"""Reads the MolmoE parity fixtures; see tests/fixtures/molmoe/README.md."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from knobctl.precompute.models.molmoe.checkpoint import load_molmoe
from knobctl.precompute.models.molmoe.config import MolmoeConfig
from knobctl.precompute.models.molmoe.generate import ModelInputs
from knobctl.precompute.models.molmoe.model import Molmoe
from knobctl.precompute.models.molmoe.preprocess import preprocess_image
from knobctl.precompute.models.molmoe.prompt import SpecialTokens
from knobctl.precompute.models.molmoe.tiling import choose_tiling

FIXTURES = Path(__file__).parent.parent / "fixtures" / "molmoe"
TINY = FIXTURES / "tiny"
CASES = json.loads((FIXTURES / "cases.json").read_text())["cases"]
VARIANTS = [(case, variant) for case, entry in CASES.items() for variant in entry["variants"]]


@cache
def tiny_model(experts_implementation: str = "auto") -> Molmoe:
    return load_molmoe(TINY, experts_implementation=experts_implementation)


@cache
def case_tensors(case: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / CASES[case]["file"])


def plan_of(case: str, variant: str) -> list[int | None]:
    entry = CASES[case]["variants"][variant]
    return [None if block in entry["skip"] else top_k for block, top_k in enumerate(entry["top_k"])]


def read_rgb(name: str) -> np.ndarray:
    with Image.open(FIXTURES / "images" / name) as image:
        return np.asarray(image.convert("RGB"))


def inputs_from_image(source: dict[str, object]) -> dict[str, torch.Tensor]:
    """One row of model inputs. `source` names an image, max_crops and prompt ids, or text ids."""
    config, special = MolmoeConfig.from_json(TINY / "config.json"), SpecialTokens.from_directory(TINY)
    if "text_ids" in source:
        return {"input_ids": torch.tensor(source["text_ids"])}
    rgb = read_rgb(source["image"])
    tiling = choose_tiling(*rgb.shape[:2], source["max_crops"], config)
    assert list(tiling) == source["tiling"]
    image = preprocess_image(rgb, tiling, config, special)
    ids = [special.begin, *image.token_ids.tolist(), *source["prompt_ids"]]
    return {
        "input_ids": torch.tensor(ids),
        "images": image.crops,
        "image_masks": image.masks,
        "image_input_idx": image.image_input_idx,
    }


def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stacks rows, each padded with -1 on the right (crops: at the end)."""
    names = {name for row in rows for name in row}
    batch = {}
    for name in names:
        present = [row[name] for row in rows if name in row]
        shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in present), strict=True)]
        stacked = torch.full([len(rows), *shape], -1, dtype=present[0].dtype)
        for place, row in zip(stacked, rows, strict=True):
            if name in row:
                place[tuple(slice(size) for size in row[name].shape)] = row[name]
        batch[name] = stacked
    return batch


@cache
def case_inputs(case: str) -> ModelInputs:
    """The inputs of a case. Pixels are computed from the image unless the case stores them."""
    tensors, source = case_tensors(case), CASES[case]["source"]
    images = tensors.get("in.images")
    if images is None and source is not None:
        images = padded([inputs_from_image(row) for row in source.get("rows", [source])])["images"]
    return ModelInputs(
        input_ids=tensors["in.input_ids"].long(),
        crops=images,
        masks=tensors.get("in.image_masks"),
        image_input_idx=tensors.get("in.image_input_idx"),
    )
