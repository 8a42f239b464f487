"""The warm-up of an engine: whether latencies on this device are those that the controllers expect."""

from __future__ import annotations

from ..data.datasets.sample_set import load_samples
from ..data.errors import KnobctlError
from ..data.progress import Progress

WARM_UP_REQUESTS = 16
SET_UP_REQUESTS = 2  # before those: the first requests include one-time work
RATIOS = (0.8, 1.25)  # of measured to expected latency
_DATASET = "easy_vqa"  # bundled: real images, with questions of usual length and short answers


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
        text = (
            f"requests take {ratio:.2f} times the expected latency, which was measured on {expected_on}; this is "
            f"{here}. Budgets will be missed or left unused: train controllers on a cache that was made on this device"
        )
    if within is not None:
        raise KnobctlError(f"--within {within:g} cannot be kept: {text}.")
    if ratio is not None:
        progress.note(f"warning: {text}.")
