"""A digest of a model's config and weights as loaded."""

from __future__ import annotations

import hashlib
import json

from ..tensor_digest import add_tensor
from .model import Molmoe
from .tensor_names import published_tensors


def model_fingerprint(model: Molmoe) -> str:
    """Returns the sha256, in hex, of config, dtype, and every published tensor's name, shape and values.

    Every tensor of the bundled model is read in full (`add_tensor`). A training step, another seed or another dtype
    changes the result.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, target in sorted(published_tensors(model).items()):
        add_tensor(digest, name, target.view)
    return digest.hexdigest()
