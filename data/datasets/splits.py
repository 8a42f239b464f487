"""Which split a sample belongs to: by its image, so that no image is in two. The one home of that rule."""

from __future__ import annotations

import hashlib

from ..schema import SPLITS

SHARES_PERCENT = {"train": 70, "val": 10, "test": 20}
_HASH_BITS = 64


def split_of(image_id: str, seed: int) -> str:
    """Returns the split of an image: train, val or test, 70/10/20 of all images, by seeded hash.

    The dataset's name takes no part: datasets that share images (VQA v2 and OK-VQA both use COCO) put one image in one
    split. The same (image_id, seed) gives the same split on every machine.
    """
    digest = hashlib.sha256(f"{seed}/{image_id}".encode("utf-8", "surrogatepass")).digest()
    place = 100 * int.from_bytes(digest[: _HASH_BITS // 8], "big") >> _HASH_BITS  # 0 to 99, as even as the hash
    for split in SPLITS:
        if place < SHARES_PERCENT[split]:
            return split
        place -= SHARES_PERCENT[split]
    raise AssertionError("the shares of the splits do not sum to 100")
