"""`knobctl importance`: measures the scores of a model on a dataset and writes them to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...data.importer import save_importance
from .config import PrecomputeConfig
from .inputs import find_importance, load_inputs


def run_importance(config: PrecomputeConfig, out: Path) -> dict[str, Any]:
    """Measures every block's importance as `precompute` would, and writes `out`, which `--importance` reads.

    Scores that an earlier run kept beside the model for the same samples are not measured again.

    Args:
        config: model, datasets, samples, seed, device and knob space count; `config.out` is not touched.

    Returns:
        JSON-able: path, samples, scores, std and runs, and the blocks from the least important.
    """
    inputs = load_inputs(config)
    scores = find_importance(config, inputs)
    save_importance(scores, out)
    known = [(score, block) for block, score in enumerate(scores.scores) if score is not None]
    return {
        "out": str(out),
        "model": inputs.loaded.name,
        **scores.to_dict(),
        "least_first": [b for _, b in sorted(known)],
    }
