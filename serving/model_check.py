"""Whether a loaded model is the one that controllers were trained for."""

from __future__ import annotations

from ..controllers.checkpoint import Controllers
from ..controllers.conditions import ModelIdentity
from ..data.errors import CacheMismatch
from ..precompute.models.loading import LoadedModel


def check_model(controllers: Controllers, loaded: LoadedModel) -> None:
    """Raises CacheMismatch unless the controllers were trained for this model."""
    model = loaded.model
    geometry, dtype = model.geometry, str(model.dtype).removeprefix("torch.")
    if controllers.model.dtype not in (None, dtype):
        raise CacheMismatch(
            f"the controllers were trained for {controllers.model.name} in {controllers.model.dtype}, but "
            f"{loaded.name} is loaded in {dtype}: load it in {controllers.model.dtype}."
        )
    identity = ModelIdentity(
        loaded.name,
        geometry.d_model,
        geometry.n_blocks,
        geometry.largest_top_k,
        loaded.fingerprint,
        dtype,
        geometry.family,
    )
    controllers.check_fits(f"model {loaded.name}", space=controllers.space, model=identity, encoder=None)
    template = controllers.conditions.prompt_template
    if template not in (None, model.prompt_template):
        raise CacheMismatch(
            f"the controllers were trained on prompts of the form {template!r}, but {loaded.name} is asked with "
            f"{model.prompt_template!r}: train controllers on a cache that this version of knobctl made."
        )
