"""Generated structures have the declared properties: how visible needs are, linearly and to nearest neighbours."""

import numpy as np
import pytest

from knobctl.data.generated.population import STRUCTURES, GeneratedCache, GeneratedConfig, generate

LATENTS = slice(0, 3)  # the needs that folding changes


def cache_of(structure: str) -> GeneratedCache:
    return generate(GeneratedConfig(1200, 200, 200, d_model=32, n_budgets=2, structure=structure, seed=5))


def linear_share(made: GeneratedCache) -> float:
    """Returns how well a linear regression on the question predicts the visible needs of held-out samples: mean R^2."""
    fit, rest = slice(0, 1200), slice(1200, None)
    mean_D = made.language_feature_SD[fit].mean(axis=0)
    shown_L = made.shown_SL[fit, LATENTS].mean(axis=0)
    weights, *_ = np.linalg.lstsq(
        made.language_feature_SD[fit] - mean_D, made.shown_SL[fit, LATENTS] - shown_L, rcond=None
    )
    true = made.shown_SL[rest, LATENTS]
    missed = true - shown_L - (made.language_feature_SD[rest] - mean_D) @ weights
    return float((1 - (missed**2).mean(axis=0) / true.var(axis=0)).mean())


def neighbour_share(made: GeneratedCache) -> float:
    """Returns the correlation of the visible needs with their mean over the five nearest questions."""
    feature = made.language_feature_SD.astype(np.float64)
    distance = (feature**2).sum(axis=1) - 2 * feature @ feature.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :5]
    pairs = zip(made.shown_SL[:, LATENTS].T, made.shown_SL[nearest][:, :, LATENTS].mean(axis=1).T, strict=True)
    return float(np.mean([np.corrcoef(own, theirs)[0, 1] for own, theirs in pairs]))


@pytest.fixture(scope="module")
def shares() -> dict[str, tuple[float, float]]:
    made = {structure: cache_of(structure) for structure in STRUCTURES}
    return {structure: (linear_share(cache), neighbour_share(cache)) for structure, cache in made.items()}


def test_needs_are_linearly_visible_unless_folded(shares):
    linear = {structure: share for structure, (share, _) in shares.items()}
    assert linear["near"] > 0.6
    assert linear["linear"] > 0.04  # little remains of 300 words in 32 dimensions, but more than nothing
    assert max(linear["nonlinear"], linear["faint"], linear["near_folded"]) < 0.02


def test_only_near_structures_make_neighbours_informative(shares):
    neighbour = {structure: share for structure, (_, share) in shares.items()}
    assert neighbour["near"] > 0.7
    assert neighbour["near_folded"] > 0.4
    assert max(neighbour["linear"], neighbour["nonlinear"], neighbour["faint"]) < 0.3


def test_the_same_seed_gives_the_same_cache():
    first, second = cache_of("near"), cache_of("near")
    assert np.array_equal(first.token_STPMD, second.token_STPMD)
    assert np.array_equal(first.accuracy_SX, second.accuracy_SX)
