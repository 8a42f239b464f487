"""Question family shares of the training stages that differ from the dataset's."""

from __future__ import annotations

LOOKUPS = (
    ("read", 0.42),
    ("beside", 0.14),
    ("place", 0.12),
    ("compare", 0.10),
    ("sum", 0.09),
    ("extreme", 0.05),
    ("value", 0.04),
    ("count", 0.04),
)
"""More of the families that are learned late."""

REASONING = (
    ("read", 0.34),
    ("compare", 0.21),
    ("sum", 0.21),
    ("extreme", 0.12),
    ("value", 0.08),
    ("count", 0.04),
)
"""The dataset's families, with more of those that take longest to learn."""

FINAL = (
    ("read", 0.32),
    ("count", 0.18),
    ("extreme", 0.14),
    ("value", 0.12),
    ("compare", 0.11),
    ("sum", 0.13),
)

COUNTING = (
    ("read", 0.20),
    ("count", 0.20),
    ("extreme", 0.17),
    ("value", 0.20),
    ("compare", 0.13),
    ("sum", 0.10),
)
"""More of the families with the lowest accuracy after `polish`."""

THIN = (
    ("read", 0.25),
    ("count", 0.10),
    ("extreme", 0.17),
    ("value", 0.14),
    ("compare", 0.19),
    ("sum", 0.15),
)
"""More of the families that are to depend on many blocks or experts."""
