"""Small inputs and tables for tests of training, made of seeded noise; benchmarks use `tables_of` too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from knobctl.controllers.budget_encoder import BudgetEncoder
from knobctl.controllers.conditions import ModelIdentity
from knobctl.controllers.mlp import Mlp
from knobctl.controllers.stage2 import place_codes
from knobctl.data.generated.population import TOKENS_PER_CROP, GeneratedCache, GeneratedConfig, generate
from knobctl.data.knobs import KnobSpace
from knobctl.replay.tables import ReplayTables
from knobctl.replay.token_counts import TokenCounts
from knobctl.replay.training.inputs import ReplayInputs
from knobctl.replay.training.stacked_mlp import StackedMlp

SMALL_SPACE = KnobSpace(("low", "high"), (1, 2), (2, 4), (3, 4))
# Options of a training run on `small_generated` that takes a second.
QUICK = {
    "epochs": 4,
    "min_steps": 0,
    "batch_size": 32,
    "evaluations": 4,
    "log_interval": 2,
    "basis_rows": 1,
    "warm_start_steps": 20,
}


def small_inputs(samples: int = 6, budgets: int = 2, seed: int = 0, holes: bool = False) -> ReplayInputs:
    """2 x 2 pairs for Stage1, 3 for Stage2, 5 features; in float64, which allows strict tolerances."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = ReplayInputs(
        language_NF=noise(samples, 5),
        budget_MF=noise(budgets, 4),
        token_NJMF=noise(samples, 4, budgets, 5),
        place_JH=place_codes(2, 2).double(),
        reward_NMJA=noise(samples, budgets, 4, 3),
        allowed_NMJ=None,
        allowed_NJA=None,
        holes=0,
    )
    if not holes:
        return inputs
    allowed_NJA = torch.rand(samples, 4, 3, generator=generator) < 0.6
    allowed_NJA[:, 0, 0] = True  # every sample has a setting
    allowed_NJ = allowed_NJA.any(dim=2)
    reward_NMJA = torch.where(allowed_NJA[:, None], inputs.reward_NMJA, 0.0)
    return replace(
        inputs,
        reward_NMJA=reward_NMJA,
        allowed_NMJ=allowed_NJ[:, None].expand(-1, budgets, -1).contiguous(),
        allowed_NJA=allowed_NJA | ~allowed_NJ[..., None],
    )


def small_networks(seeds: int = 1, width: int = 6, first_seed: int = 0) -> tuple[StackedMlp, StackedMlp]:
    """Networks for `small_inputs`, with heads so large that choices are far from equally likely."""
    stages = []
    for inputs, outputs in ((9, 4), (9, 3)):
        networks = []
        for seed in range(first_seed, first_seed + seeds):
            network = Mlp((inputs, width, width, outputs)).double()
            network.reset(torch.Generator().manual_seed(seed), head_gain=1.5)
            networks.append(network)
        stages.append(StackedMlp(networks))
    return stages[0], stages[1]


def small_generated(**changes: object) -> GeneratedCache:
    """A generated population on which training takes a second."""
    sizes = {"train": 120, "val": 40, "test": 40, "d_model": 24, "n_budgets": 3}
    return generate(GeneratedConfig(**{**sizes, **changes}))


def tables_of(generated: GeneratedCache, **changes: object) -> ReplayTables:
    """The arrays of a generated population as replay tables."""
    splits = {split: np.flatnonzero(generated.split_S == split) for split in ("train", "val", "test")}
    tables = ReplayTables(
        space=generated.config.space,
        n_blocks=16,
        native_top_k=8,
        sample_ids=generated.sample_ids,
        cluster_S=np.arange(len(generated.sample_ids)),
        datasets=("generated",) * len(generated.sample_ids),
        split_indices=splits,
        budgets_ms_M=generated.budgets_ms_M,
        accuracy_SX=generated.accuracy_SX,
        latency_ms_SX=generated.latency_ms_SX,
        language_feature_SD=generated.language_feature_SD,
        token_STPMD=generated.token_STPMD,
        token_present_STPM=np.ones(generated.token_STPMD.shape[:4], dtype=bool),
        fingerprint="generated",
        recorded_counts=TokenCounts(
            generated.text_tokens_S.astype(np.float32),
            (TOKENS_PER_CROP * generated.crops_ST).astype(np.float32),
            np.full(len(generated.sample_ids), 2.0, np.float32),
        ),
        model=ModelIdentity("generated", generated.config.d_model, 16, 8),
    )
    return replace(tables, **changes)


def encoder_for(tables: ReplayTables) -> BudgetEncoder:
    return BudgetEncoder.from_seed(tables.d_model, 0)
