"""The split rule and the budget grid."""

from collections import Counter

import pytest

from knobctl.data.budgets import budget_grid
from knobctl.data.datasets.cache_split import cache_split


def test_splits_are_70_10_20_of_the_images():
    counts = Counter(cache_split(f"image{i}", seed=0) for i in range(20_000))
    assert {split: round(count / 200) for split, count in counts.items()} == {"train": 70, "val": 10, "test": 20}


def test_the_split_depends_only_on_image_and_seed():
    assert [cache_split("262148", 0) for _ in range(3)] == [cache_split("262148", 0)] * 3
    assert any(cache_split(str(i), 0) != cache_split(str(i), 1) for i in range(20))


def test_budget_grid_is_geometric_in_whole_ms():
    assert budget_grid(100.0, 400.0, 3) == (100.0, 200.0, 400.0)
    assert budget_grid(400.0, 100.0, 3) == (100.0, 200.0, 400.0)
    assert len(budget_grid(80.0, 900.0)) == 16


def test_budget_grid_of_a_narrow_range_has_each_budget_once():
    assert budget_grid(10.0, 12.0, 16) == (10.0, 11.0, 12.0)
    assert budget_grid(0.2, 0.3, 4) == (1.0,)


@pytest.mark.parametrize("ends", [(0.0, 10.0), (float("nan"), 10.0), (1.0, float("inf"))])
def test_budget_grid_refuses_invalid_ends(ends):
    with pytest.raises(ValueError, match="positive, finite"):
        budget_grid(*ends)
