"""Caches of known structure, for tests and benchmarks: how much a controller can learn from one is chosen here.

Each sample has needs (detail, depth, width, hardness), which are sums of latent variables that a policy partly sees:

* *language* latents depend on some words of the question. The language feature is the mean of the question's word
  vectors, so it contains them among many uninformative words;
* *visual* latents are visible in the latency token only, along a few directions, and more clearly at later positions;
* *luck* is in no input.

`STRUCTURES` sets how visible they are: in the first three, uninformative words separate questions, so that neighbours
say little; in the `near` ones, the nearest neighbours are a strong baseline.

A setting answers correctly when its tier, blocks and experts cover the sample's needs. The token also contains the
budget, the position and the tier (large components), anisotropic noise, and a few dimensions of massive activation, as
in language models (Sun et al., 2024, "Massive Activations in Large Language Models").

`python -m knobctl.data.generated.cache OUT` writes a cache to disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..knobs import KnobSpace

LATENTS = ("detail", "depth", "width", "hardness")
N_BLOCKS = 16
NATIVE_TOP_K = 8
TOKENS_PER_CROP = 36
NEAR_FACTORS = 6  # uninformative leading directions of a `near` question


@dataclass(frozen=True)
class Structure:
    """How visible a sample's needs are in its question and its tokens."""

    meaning: str
    near: bool = False  # in the leading directions of the language feature, instead of in some words
    folded: bool = False  # needs are non-monotonic in what is visible, and one changes sign with another
    mixed: bool = False  # tokens contain them through 24 tanh units
    told: float = 0.9  # correlation of a language latent with the question
    token_strength: float = 1.0  # factor on GeneratedConfig.signal


STRUCTURES = {
    "linear": Structure("needs are visible along few directions, among many uninformative words"),
    "nonlinear": Structure("needs are folded before they become visible", folded=True, mixed=True),
    "faint": Structure("a fifth of the signal", told=0.45, token_strength=0.3),
    "near": Structure(
        "samples with similar needs are near one another", near=True, mixed=True, told=1.0, token_strength=16
    ),
    "near_folded": Structure(
        "near, with folded needs", near=True, folded=True, mixed=True, told=1.0, token_strength=16
    ),
}


@dataclass(frozen=True)
class GeneratedConfig:
    """Size of a generated cache, and how visible the samples' needs are in its inputs."""

    train: int = 8000
    val: int = 2000
    test: int = 2000
    d_model: int = 256
    n_budgets: int = 4
    structure: str = "linear"  # one of STRUCTURES
    signal: float = (
        0.5  # shift of a token per unit of a latent, where the noise of a dimension is about 1 (d_model 256)
    )
    hole_share: float = 0.0  # share of outcomes that are missing
    seed: int = 0
    space: KnobSpace = field(default_factory=KnobSpace)

    @property
    def samples(self) -> int:
        return self.train + self.val + self.test


@dataclass(frozen=True)
class GeneratedCache:
    """The arrays of a cache, in the reader's layout.

    S samples, X settings, T tiers, P insertion positions, M budgets, D d_model, L needs.
    """

    config: GeneratedConfig
    sample_ids: tuple[str, ...]
    split_S: NDArray[np.str_]
    dataset_S: NDArray[np.str_]
    budgets_ms_M: NDArray[np.float32]
    accuracy_SX: NDArray[np.float32]
    latency_ms_SX: NDArray[np.float32]
    language_feature_SD: NDArray[np.float32]
    token_STPMD: NDArray[np.float16]
    crops_ST: NDArray[np.int64]
    text_tokens_S: NDArray[np.int64]
    output_tokens_S: NDArray[np.int64]
    need_SL: NDArray[np.float32]  # needs of each sample, which decide its outcomes
    shown_SL: NDArray[np.float32]  # the part of them that language feature and token together reveal


def generate(config: GeneratedConfig, token_path: Path | None = None) -> GeneratedCache:
    """Returns a cache of known structure; the same config gives the same arrays.

    Args:
        config: Sizes and structure.
        token_path: A new file to memory-map the latency tokens from (16 GB for 16,000 samples, d_model 2048 and 16
            budgets); None keeps them in memory.
    """
    rng = np.random.default_rng(config.seed)
    S = config.samples
    feature_SD, language_SL = _questions(config, rng)
    visual_SL = rng.standard_normal((S, len(LATENTS)), dtype=np.float32)
    luck_SL = rng.standard_normal((S, len(LATENTS)), dtype=np.float32)
    near = STRUCTURES[config.structure].near
    shown_SL = (0.8 * language_SL + 0.4 * visual_SL) if near else (0.6 * language_SL + 0.55 * visual_SL)
    need_SL = shown_SL + (0.45 if near else 0.58) * luck_SL
    crops_ST, text_tokens_S, output_tokens_S = _sizes(config, visual_SL, language_SL, rng)
    accuracy_SX = _accuracy(config, need_SL, rng)
    latency_ms_SX = _latency(config, crops_ST, text_tokens_S, output_tokens_S, rng)
    low, high = np.median(latency_ms_SX.min(axis=1)), np.quantile(latency_ms_SX.max(axis=1), 0.95)
    budgets_ms_M = np.round(np.geomspace(low, high, config.n_budgets)).astype(np.float32)
    token_STPMD = _tokens(config, np.concatenate([language_SL, visual_SL], axis=1), budgets_ms_M, rng, token_path)
    hole_SX = rng.random(accuracy_SX.shape) < config.hole_share
    accuracy_SX[hole_SX] = np.nan
    latency_ms_SX[hole_SX] = np.nan
    split_S = np.array(["train"] * config.train + ["val"] * config.val + ["test"] * config.test)
    return GeneratedCache(
        config=config,
        sample_ids=tuple(f"generated/{i:06d}" for i in range(S)),
        split_S=split_S,
        dataset_S=np.where(language_SL[:, 3] + 0.5 * rng.standard_normal(S) > 0, "generated_hard", "generated_easy"),
        budgets_ms_M=budgets_ms_M,
        accuracy_SX=accuracy_SX,
        latency_ms_SX=latency_ms_SX,
        language_feature_SD=feature_SD,
        token_STPMD=token_STPMD,
        crops_ST=crops_ST,
        text_tokens_S=text_tokens_S,
        output_tokens_S=output_tokens_S,
        need_SL=need_SL,
        shown_SL=shown_SL,
    )


def _questions(config: GeneratedConfig, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the language features [S, D] and the language latents [S, L], of unit variance."""
    S, D, words, length = config.samples, config.d_model, 300, 8
    structure = STRUCTURES[config.structure]
    if structure.near:
        signal_SL = rng.standard_normal((S, len(LATENTS)), dtype=np.float32)
        other_SF = rng.standard_normal((S, NEAR_FACTORS), dtype=np.float32)
        feature_SD = signal_SL @ rng.standard_normal((len(LATENTS), D), dtype=np.float32)
        feature_SD += 0.5 * other_SF @ rng.standard_normal((NEAR_FACTORS, D), dtype=np.float32)
        feature_SD += 0.5 * rng.standard_normal((S, D), dtype=np.float32)
    else:
        vector_VD = rng.standard_normal((words, D), dtype=np.float32) + rng.standard_normal(D, dtype=np.float32)
        effect_VL = np.zeros((words, len(LATENTS)), dtype=np.float32)
        informative = rng.choice(words, 60, replace=False)
        effect_VL[informative] = rng.standard_normal((60, len(LATENTS)), dtype=np.float32)
        frequency_V = 1.0 / np.arange(8, words + 8)
        count_SV = rng.multinomial(length, frequency_V / frequency_V.sum(), size=S).astype(np.float32)
        signal_SL = _standard(count_SV @ effect_VL)
        feature_SD = (count_SV @ vector_VD / np.float32(length)).astype(np.float32, copy=False)
    latent_SL = _folded(signal_SL) if structure.folded else signal_SL
    noise_SL = rng.standard_normal(latent_SL.shape, dtype=np.float32)
    latent_SL = structure.told * latent_SL + np.float32(np.sqrt(1 - structure.told**2)) * noise_SL
    return feature_SD, latent_SL.astype(np.float32)


def _folded(signal_SL: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns latents [S, L] of which two are equal at both ends of the signal, and one changes sign with another."""
    folded_SL = signal_SL.copy()
    folded_SL[:, :2] = _standard(np.abs(signal_SL[:, :2]))
    folded_SL[:, 2] = _standard(signal_SL[:, 2] * np.sign(signal_SL[:, 3]))
    return folded_SL


def _sizes(
    config: GeneratedConfig, visual_SL: NDArray[np.float32], language_SL: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the number of crops per tier [S, T], of question tokens [S] and of answer tokens [S]."""
    S = config.samples
    shape_S = np.clip(0.5 + 0.2 * visual_SL[:, 0] + 0.25 * rng.standard_normal(S), 0.0, 0.999)
    ranges = config.space.tier_ranges or tuple((int(c), int(c)) for c in config.space.mean_tier_sizes)
    crops_ST = np.stack([low + (shape_S * (high - low + 1)).astype(np.int64) for low, high in ranges], axis=1)
    text_tokens_S = rng.integers(8, 24, S)
    output_tokens_S = 1 + rng.poisson(np.exp(0.5 + 0.4 * language_SL[:, 1].clip(-3, 3)))
    return crops_ST, text_tokens_S, output_tokens_S


def _accuracy(config: GeneratedConfig, need_SL: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns the accuracy of every setting [S, X]: 1 if it covers the sample's needs, 1/3 if nearly, else 0."""
    settings, space = config.space.settings, config.space
    tier_X = np.linspace(-0.9, 1.5, len(space.tiers))[[space.tiers.index(s.tier) for s in settings]]
    most_k, most_n = max(space.top_k), max(space.num_blocks)
    gone_X = np.array([(most_n - s.num_blocks) / N_BLOCKS for s in settings])
    early_X = np.array([(s.insertion_position or 0) / N_BLOCKS for s in settings])
    depth_X = 1.7 - 9.0 * gone_X * (1.0 - 0.6 * early_X)
    width_X = 1.7 - 4.5 * np.array([(most_k - s.top_k) / most_k for s in settings]) * (1.0 - early_X)
    margin_SX = np.minimum(tier_X - need_SL[:, :1], depth_X - need_SL[:, 1:2])
    margin_SX = np.minimum(margin_SX, width_X - need_SL[:, 2:3])
    margin_SX = np.minimum(margin_SX, 1.0 - need_SL[:, 3:4])
    margin_SX += 0.15 * rng.standard_normal(margin_SX.shape)
    return np.where(margin_SX > 0.1, 1.0, np.where(margin_SX > -0.1, 1 / 3, 0.0)).astype(np.float32)


def _latency(
    config: GeneratedConfig,
    crops_ST: NDArray[np.int64],
    text_tokens_S: NDArray[np.int64],
    output_tokens_S: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Returns latencies in ms [S, X]: vision per crop, prefill and decode per block and expert, with 2 % noise."""
    settings, space = config.space.settings, config.space
    crops_SX = crops_ST[:, [space.tiers.index(s.tier) for s in settings]] + 1
    k_X = np.array([s.top_k for s in settings])
    head_X = np.array([s.insertion_position or 0 for s in settings])
    tail_X = np.array([s.num_blocks for s in settings]) - head_X
    work_X = head_X * (1.0 + 0.35 * NATIVE_TOP_K) + tail_X * (1.0 + 0.35 * k_X)
    prefill_SX = (TOKENS_PER_CROP * crops_SX + text_tokens_S[:, None]) * work_X * 0.012
    decode_SX = (output_tokens_S[:, None] - 1) * (1.0 + work_X * 0.16)
    total_SX = 9.0 * crops_SX + prefill_SX + decode_SX
    return (total_SX * np.exp(0.02 * rng.standard_normal(total_SX.shape))).astype(np.float32)


def _tokens(
    config: GeneratedConfig,
    latent_SL: NDArray[np.float32],
    budgets_ms_M: NDArray[np.float32],
    rng: np.random.Generator,
    token_path: Path | None,
) -> NDArray[np.float16]:
    """Returns the latency tokens [S, T, P, M, D]: budget, tier and position, latents, and noise."""
    S, D = config.samples, config.d_model
    T, P, M = len(config.space.tiers), len(config.space.insertion_positions), len(budgets_ms_M)

    def directions(count: int) -> NDArray[np.float32]:
        return rng.standard_normal((count, D), dtype=np.float32)

    budget_MD = 1.0 * np.stack([np.random.default_rng(int(b)).standard_normal(D) for b in budgets_ms_M])
    slope_D, place_TPD = directions(1), 1.5 * directions(T * P).reshape(T, P, D)
    centred_M = np.log(budgets_ms_M) - np.log(budgets_ms_M).mean()
    budget_MD = (0.7 * budget_MD + 1.5 * centred_M[:, None] * slope_D).astype(np.float32)
    shown_SL = latent_SL.copy()
    structure = STRUCTURES[config.structure]
    if structure.mixed:
        mix_LH = rng.standard_normal((shown_SL.shape[1], 24), dtype=np.float32) / np.float32(1.5)
        shown_SL = np.tanh(shown_SL @ mix_LH + rng.standard_normal(24, dtype=np.float32))
    strength = structure.token_strength * config.signal * np.sqrt(256 / D) / np.sqrt(shown_SL.shape[1] / 8)
    signal_PLD = np.stack([strength * (0.6 + 0.2 * p) * directions(shown_SL.shape[1]) for p in range(P)])
    factors = 48
    factor_FD = directions(factors) * (0.8 / np.sqrt(np.arange(1, factors + 1)))[:, None].astype(np.float32)
    spread_D = np.exp(0.5 * rng.standard_normal(D)).astype(np.float32) * np.float32(0.5)
    massive_D = np.zeros(D, dtype=np.float32)
    massive_D[rng.choice(D, 3, replace=False)] = 60.0
    # Axes in the order of writing, so that a memory-mapped file is written sequentially.
    token_TPMSD: NDArray[np.float16]
    if token_path is None:
        token_TPMSD = np.empty((T, P, M, S, D), dtype=np.float16)
    else:
        token_TPMSD = np.memmap(token_path, dtype=np.float16, mode="w+", shape=(T, P, M, S, D))
    own_SF = rng.standard_normal((S, factors), dtype=np.float32)
    for t in range(T):
        seen = np.float32(0.7 + 0.3 * t / max(T - 1, 1))  # a higher tier shows more of the image
        for p in range(P):
            here_SF = 0.8 * own_SF + 0.6 * rng.standard_normal((S, factors), dtype=np.float32)
            base_SD = place_TPD[t, p] + massive_D + seen * shown_SL @ signal_PLD[p] + here_SF @ factor_FD
            base_SD += 0.8 * spread_D * rng.standard_normal((S, D), dtype=np.float32)
            for m in range(M):
                noise_SD = 0.6 * spread_D * rng.standard_normal((S, D), dtype=np.float32)
                gain_S1 = 1.0 + 0.05 * rng.standard_normal((S, 1), dtype=np.float32)  # varies the massive dimensions
                token_TPMSD[t, p, m] = (gain_S1 * (base_SD + budget_MD[m]) + noise_SD).astype(np.float16)
    return np.moveaxis(token_TPMSD, 3, 0)


def _standard(value_SL: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the columns scaled to mean 0 and variance 1."""
    spread_L = value_SL.std(axis=0)
    return ((value_SL - value_SL.mean(axis=0)) / np.where(spread_L > 0, spread_L, 1.0)).astype(np.float32)
