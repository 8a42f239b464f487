"""The cache's own splits: train, val and test, assigned by image, so that no image is in two of them.

Independent of the splits of the published dataset (`source_split.py`), which only select the rows that are read.
"""

from __future__ import annotations

import hashlib

from ..schema import SPLITS

SHARES_PERCENT = {"train": 70, "val": 10, "test": 20}
_HASH_BITS = 64


def cache_split(image_id: str, seed: int) -> str:
    """Returns the split of all samples with this image: train, val or test (70/10/20 % of images), by seeded hash.

    Independent of the dataset's name, so an image that datasets share (VQA v2 and OK-VQA both use COCO) is in the same
    split for all of them. The same (image_id, seed) gives the same split on every machine.
    """
    digest = hashlib.sha256(f"{seed}/{image_id}".encode("utf-8", "surrogatepass")).digest()
    place = 100 * int.from_bytes(digest[: _HASH_BITS // 8], "big") >> _HASH_BITS  # 0 to 99, uniform
    for split in SPLITS:
        if place < SHARES_PERCENT[split]:
            return split
        place -= SHARES_PERCENT[split]
    raise AssertionError("the shares of the splits do not sum to 100")
