"""The warm-up of an engine: whether latencies on this device are those that the controllers expect.

Its images and questions are bundled ones, whatever the controllers were trained on. An expected latency includes the
length of a dataset's answers and depends on the size of its images, so the images are enlarged to about as many visual
tokens as those of the dataset have, and as many tokens are decoded as its answers have.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..data.datasets.sample_set import load_samples
from ..data.errors import KnobctlError
from ..data.progress import Progress

WARM_UP_REQUESTS = 16
SET_UP_REQUESTS = 2  # before those: the first requests include one-time work
FACTORS = (1, 2, 4, 8, 16, 32)  # bundled images have 64 x 64 pixels
RATIOS = (0.8, 1.25)  # of measured to expected latency
_DATASET = "easy_vqa"  # bundled: real images, with questions of usual length and short answers


def enlarged(rgb: NDArray[np.uint8], vision_tokens: Callable[[int, int], int], wanted: float) -> NDArray[np.uint8]:
    """Returns the image enlarged by the factor that brings its visual tokens closest to `wanted`.

    Args:
        vision_tokens: (height, width) -> visual tokens.
    """
    height, width = rgb.shape[:2]
    factor = min(FACTORS, key=lambda one: abs(math.log(vision_tokens(one * height, one * width) / wanted)))
    return rgb.repeat(factor, axis=0).repeat(factor, axis=1)


def warm_up_requests(count: int) -> list[tuple[bytes, str]]:
    """Returns images and questions: `count`, and those that set up."""
    samples = load_samples(_DATASET, limit=count + SET_UP_REQUESTS, seed=0).samples
    return [(sample.image.read_bytes(), sample.question) for sample in samples]


def check_pace(ratio: float | None, expected_on: str, here: str, within: float | None, progress: Progress) -> None:
    """Notes a median ratio of measured to expected latency that is out of range.

    Args:
        ratio: None: not measured.
        expected_on, here: the device of the expected latencies, and this one.

    Raises:
        KnobctlError: then no service level can be kept, but `within` asks for one.
    """
    low, high = RATIOS
    if ratio is not None and low <= ratio <= high:
        return
    if ratio is None:
        text = "latencies were not compared with the expected ones: no warm-up request had an expected latency"
    else:
        advice = "train controllers on a cache that was made on this device"
        if here in expected_on:  # the same kind of device
            advice = f"if other programs are running here, repeat without them; otherwise {advice}"
        text = (
            f"requests take {ratio:.2f} times the expected latency, which was measured on {expected_on}; this is "
            f"{here}. Budgets will be missed or left unused: {advice}"
        )
    if within is not None:
        raise KnobctlError(f"--within {within:g} cannot be kept: {text}.")
    if ratio is not None:
        progress.note(f"warning: {text}.")
