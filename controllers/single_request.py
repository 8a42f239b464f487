"""The controllers' choices for one request at a time, with little overhead.

The same functions as `two_stage.py` with the same choices: a test compares thousands of requests. What depends only on
the budget, or only on the chosen pair, is computed once; the rest of a stage is a short chain of products of a vector
with a matrix, because calls of torch, and not arithmetic, would take most of the time. Within a request the weights
come from main memory, so they are read in float32. Where the two best logits are close, the stage is computed again in
float64, as `two_stage.py` computes.

Shapes: D d_model, F features, C leading components, W waves, H hidden units; J (tier, position) pairs, A (top-k,
num_blocks) pairs, X settings.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from ..data.errors import UnknownSetting
from .bases import CLAMP
from .checkpoint import Controllers
from .mlp import Mlp

MAX_BUDGETS = 4096  # encodings kept; a server may get a new budget with every request
NEAR_TIE = 1e-3  # between logits, which float32 changes by far less (`tests/test_controllers_single_request.py`)


class StageChoice(NamedTuple):
    """What one stage chose, and the logits of its choices; -inf for one that is not allowed."""

    choice: int
    logit_C: NDArray[np.floating]

    @property
    def probability_C(self) -> NDArray[np.float64]:
        logit_C = self.logit_C.astype(np.float64)
        share_C = np.exp(logit_C - logit_C.max())
        return np.asarray(share_C / share_C.sum())


class SingleRequestChooser:
    """Picks the most likely allowed pair at each stage. Call it on one thread, so that sums have one order.

    Args:
        budget_factor: as in `TwoStagePolicy`.
    """

    def __init__(self, controllers: Controllers, *, budget_factor: float | None = None) -> None:
        space, stage1, stage2 = controllers.space, controllers.stage1, controllers.stage2
        self._budget_factor = budget_factor
        self._setting_JA = np.maximum(space.setting_JA, 0)
        trained_JA = (stage2.allowed_JA & stage1.allowed_J[:, None]).numpy()
        self._allowed_JA = trained_JA & (space.setting_JA >= 0)
        self._allowed_J = _any_compute(self._allowed_JA)
        self._networks = _Networks(controllers, torch.float32), _Networks(controllers, torch.float64)

    def allowed(self, expected_ms_X: NDArray[np.float64], budget_ms: float) -> NDArray[np.bool_]:
        """Returns the pairs of choices that a request may get, [J, A].

        Args:
            expected_ms_X: expected latencies; NaN for a setting that no training sample has.
        """
        if self._budget_factor is None:
            return self._allowed_JA
        fits_X = expected_ms_X <= self._budget_factor * budget_ms
        return self._of_settings(fits_X) if fits_X.any() else self.fastest(expected_ms_X)

    def fastest(self, expected_ms_X: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns the pair of choices with the lowest expected latency, [J, A] with one True, or several that tie."""
        return self._of_settings(expected_ms_X == np.nanmin(expected_ms_X))

    def choose_image(
        self, language_feature_D: NDArray[np.float32], budget_ms: float, allowed_JA: NDArray[np.bool_]
    ) -> StageChoice:
        """Returns Stage1's choice of a (tier, position) pair."""
        whole = allowed_JA is self._allowed_JA
        allowed_J = self._allowed_J if whole else _any_compute(allowed_JA)
        return self._chosen(allowed_J, lambda networks: networks.image_logits(language_feature_D, budget_ms))

    def choose_compute(self, token_D: NDArray[np.float16], pair: int, allowed_JA: NDArray[np.bool_]) -> StageChoice:
        """Returns Stage2's choice of a (top-k, num_blocks) pair, after Stage1 chose `pair`."""
        return self._chosen(allowed_JA[pair], lambda networks: networks.compute_logits(token_D, pair))

    def _of_settings(self, fits_X: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.asarray(fits_X[self._setting_JA] & self._allowed_JA)

    def _chosen(self, allowed_C: NDArray[np.bool_], logits: Callable[[_Networks], Tensor]) -> StageChoice:
        fast, exact = self._networks
        logit_C = np.where(allowed_C, logits(fast).numpy(), -np.inf)
        *_, second, best = sorted([-math.inf, *logit_C.tolist()])
        if not best > second + NEAR_TIE:  # also for NaN
            logit_C = np.where(allowed_C, logits(exact).numpy(), -np.inf)
        index = int(logit_C.argmax())
        if not math.isfinite(logit_C[index]):  # NaN, for an input that is not finite, comes first in argmax
            raise UnknownSetting("no setting is left that the controllers may choose: train them on a complete cache")
        return StageChoice(index, logit_C)


class _Networks:
    """Both stages' functions of one request, in one number type."""

    def __init__(self, controllers: Controllers, dtype: torch.dtype) -> None:
        stage1, stage2 = controllers.stage1, controllers.stage2
        self._dtype = dtype
        # Computed once for each budget, so float64 costs nothing.
        self._encoder = copy.deepcopy(controllers.stage1_budget_encoder).double()
        self._budget_basis = copy.deepcopy(stage1.budget_basis).double()
        self._budgets: dict[float, Tensor] = {}
        language, token = stage1.language_basis, stage2.token_basis
        with torch.no_grad():
            linear_DF = _double(torch.cat([language.projection_DF, language.direction_DC], dim=1))
            self._language = _Basis(linear_DF, language.wave_CW, language.phase_W, language.smooth_WF, dtype)
            self._language_offset_F = (-_double(language.mean_D) @ linear_DF).to(dtype)
            self._head1 = _Head(stage1.head, language.features, dtype)
            self._token_P = [
                _Basis(_double(torch.cat(maps, dim=1)), wave_CW, token.phase_W, smooth_WF, dtype)
                for *maps, wave_CW, smooth_WF in zip(
                    token.projection_PDF, token.direction_PDC, token.wave_PCW, token.smooth_PWF, strict=True
                )
            ]
            offset_JF = -_double(torch.cat([token.offset_TPF, token.centre_TPC], dim=2).flatten(0, 1))
            self._token_offset_JF = offset_JF.to(dtype)
            self._head2 = _Head(stage2.head, token.features, dtype)
            self._place_JH = self._head2.constant(_double(stage2.place_JH))

    def image_logits(self, language_feature_D: NDArray[np.float32], budget_ms: float) -> Tensor:
        feature_F = self._language(torch.from_numpy(language_feature_D), self._language_offset_F)
        return self._head1(feature_F, self._budget_constant(budget_ms))

    def compute_logits(self, token_D: NDArray[np.float16], pair: int) -> Tensor:
        basis = self._token_P[pair % len(self._token_P)]
        return self._head2(basis(torch.from_numpy(token_D), self._token_offset_JF[pair]), self._place_JH[pair])

    def _budget_constant(self, budget_ms: float) -> Tensor:
        """Returns what a budget adds to Stage1's first layer, [H]. Computed once for each budget."""
        constant_H = self._budgets.get(budget_ms)
        if constant_H is None:
            if len(self._budgets) >= MAX_BUDGETS:
                self._budgets.clear()
            with torch.no_grad():
                feature_1F = self._budget_basis(self._encoder(torch.tensor([budget_ms])))
                constant_H = self._budgets[budget_ms] = self._head1.constant(feature_1F)[0]
        return constant_H


class _Basis:
    """A basis of `bases.py` for one vector: its linear and its smooth part read the input in one product."""

    def __init__(
        self, linear_DF: Tensor, wave_CW: Tensor, phase_W: Tensor, smooth_WF: Tensor, dtype: torch.dtype
    ) -> None:
        """
        Args:
            linear_DF: the projection, then the directions of the leading components: F + C columns.
        """
        self._features = smooth_WF.shape[1]
        self._dtype = dtype
        self._linear_FD, self._wave_WC, self._smooth_FW = (
            _double(matrix).T.to(dtype).contiguous() for matrix in (linear_DF, wave_CW, smooth_WF)
        )
        self._phase_W = phase_W.detach().to(dtype)

    def __call__(self, x_D: Tensor, offset_F: Tensor) -> Tensor:
        linear_F = torch.addmv(offset_F, self._linear_FD, x_D.to(self._dtype))
        wave_W = torch.addmv(self._phase_W, self._wave_WC, linear_F[self._features :]).cos_()
        return torch.addmv(linear_F[: self._features], self._smooth_FW, wave_W).clamp_(-CLAMP, CLAMP)


class _Head:
    """A perceptron for one vector whose first inputs vary, while the others are known before."""

    def __init__(self, head: Mlp, varying: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        first, *later = [_double(weight).T for weight in head.weights]
        self._first_HF = first[:, :varying].to(dtype).contiguous()
        self._known_HF, self._first_bias = first[:, varying:].contiguous(), _double(head.biases[0])[0]
        self._later = [weight.to(dtype).contiguous() for weight in later]
        self._biases = [bias.detach()[0].to(dtype) for bias in head.biases[1:]]

    def constant(self, known_BF: Tensor) -> Tensor:
        """Returns what known inputs [B, F] add to the first layer, with its bias, [B, H]."""
        return (known_BF @ self._known_HF.T + self._first_bias).to(self._dtype)

    def __call__(self, varying_F: Tensor, constant_H: Tensor) -> Tensor:
        hidden = torch.addmv(constant_H, self._first_HF, varying_F)
        for weight, bias in zip(self._later, self._biases, strict=True):
            hidden = torch.addmv(bias, weight, silu(hidden, inplace=True))
        return hidden


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().contiguous()


def _any_compute(allowed_JA: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the pairs of Stage1 that leave Stage2 some choice, [J]."""
    return np.asarray(allowed_JA.any(axis=1), dtype=np.bool_)
