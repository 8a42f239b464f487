"""The trained controllers as a policy, for replay and for the live model.

Shapes: B requests, D d_model, X settings, J (tier, position) pairs, A (top-k, num_blocks) pairs.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.errors import KnobctlError, UnknownSetting
from ..data.protocols import Requests
from .checkpoint import Controllers

ROWS_AT_ONCE = 4096


class TwoStagePolicy:
    """Picks the most likely allowed pair at each stage (`data.protocols.Policy`).

    Args:
        budget_factor: allows only settings whose expected latency is at most this multiple of the budget; a request
            without such a setting gets the one with the lowest expected latency. None: all settings.

    Computes in float64, so that a request gets the same choice alone (live) as among thousands (replay): float32
    products round differently in different batch shapes, which could decide a near tie either way.
    """

    uses_latency_token = True

    def __init__(
        self, controllers: Controllers, name: str = "controllers", *, budget_factor: float | None = None
    ) -> None:
        self.name = name
        self.space = controllers.space
        self._budget_factor = budget_factor
        self._expected_latency = controllers.expected_latency
        self._stage1 = copy.deepcopy(controllers.stage1).double().eval()
        self._stage2 = copy.deepcopy(controllers.stage2).double().eval()
        self._encoder = copy.deepcopy(controllers.stage1_budget_encoder).double().eval()
        self._encoded: dict[float, Tensor] = {}

    @torch.no_grad()
    def choose_image(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns Stage1's choice: (tier index [B], insertion-position index [B])."""
        available_BJA = self._available(requests)
        choice_B = np.empty(len(requests), dtype=np.int64)
        for rows in _slices(len(requests)):
            budgets = requests.budget_ms_B[rows]
            encoded_BD = torch.stack([self._encode(float(budget)) for budget in budgets])
            language_BD = torch.from_numpy(np.asarray(requests.language_feature_BD[rows], dtype=np.float64))
            log_prob_BJ = self._stage1(language_BD, encoded_BD)
            if available_BJA is not None:
                log_prob_BJ = log_prob_BJ.masked_fill(~available_BJA[rows].any(dim=2), -torch.inf)
            choice_B[rows] = _most_likely(log_prob_BJ, requests, rows)
        return np.divmod(choice_B, len(self.space.insertion_positions))

    @torch.no_grad()
    def choose_compute(
        self,
        requests: Requests,
        tier_B: NDArray[np.int64],
        position_B: NDArray[np.int64],
        token_BD: NDArray[np.float16] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns Stage2's choice: (top-k index [B], num_blocks index [B]). Raises ValueError without a token."""
        if token_BD is None:
            raise ValueError("Stage2 needs the latency token, and none was given")
        available_BJA = self._available(requests)
        choice_B = np.empty(len(requests), dtype=np.int64)
        for rows in _slices(len(requests)):
            tier, position = torch.from_numpy(tier_B[rows]), torch.from_numpy(position_B[rows])
            token = torch.from_numpy(np.asarray(token_BD[rows], dtype=np.float64))
            log_prob_BA = self._stage2(token, tier, position)
            if available_BJA is not None:
                pair = tier * len(self.space.insertion_positions) + position
                allowed_BA = available_BJA[rows][torch.arange(len(pair)), pair]
                log_prob_BA = log_prob_BA.masked_fill(~allowed_BA, -torch.inf)
            choice_B[rows] = _most_likely(log_prob_BA, requests, rows)
        return np.divmod(choice_B, len(self.space.num_blocks))

    def _encode(self, budget_ms: float) -> Tensor:
        """Returns one encoded budget, [D]. Each is computed once, in a batch of its own."""
        if budget_ms not in self._encoded:
            if len(self._encoded) >= ROWS_AT_ONCE:  # a server may get a new budget with every request
                self._encoded.clear()
            self._encoded[budget_ms] = self._encoder(torch.tensor([budget_ms]))[0]
        return self._encoded[budget_ms]

    def _available(self, requests: Requests) -> Tensor | None:
        """Returns which choices are left to each request, [B, J, A]; None: all of them.

        A choice is left if its sample has it, training had it, and it is expected to meet the budget.
        """
        available_BX = requests.available_BX
        if self._budget_factor is not None:
            available_BX = self._fitting(requests, self._budget_factor)
        if available_BX is None:
            return None
        trained_JA = self._stage2.allowed_JA & self._stage1.allowed_J[:, None]
        return torch.from_numpy(self.space.by_choice(np.asarray(available_BX), False)) & trained_JA

    def _fitting(self, requests: Requests, budget_factor: float) -> NDArray[np.bool_]:
        """Returns the available settings that are expected to meet the budget, or else the fastest one, [B, X]."""
        expected_BX = self.expected_ms(requests)
        expected_BX = np.where(np.isnan(expected_BX), np.inf, expected_BX)
        if requests.available_BX is not None:
            expected_BX = np.where(requests.available_BX, expected_BX, np.inf)
        fits_BX = expected_BX <= budget_factor * requests.budget_ms_B[:, None].astype(np.float64)
        fastest_BX = (expected_BX == expected_BX.min(axis=1, keepdims=True)) & np.isfinite(expected_BX)
        return np.where(fits_BX.any(axis=1, keepdims=True), fits_BX, fastest_BX)

    def expected_ms(self, requests: Requests) -> NDArray[np.float64]:
        """Returns the expected latency of every setting, [B, X]; NaN for a setting that no training sample has.

        Raises KnobctlError for controllers without expected latencies, and for requests without token counts.
        """
        if self._expected_latency is None or requests.vision_tokens_BT is None or requests.text_tokens_B is None:
            raise KnobctlError(
                f"{self.name}: the latency of a request cannot be expected, because "
                + (
                    "the request does not say how many tokens it has"
                    if self._expected_latency is not None
                    else "the checkpoint has no expected latencies: train on a cache with latencies"
                )
            )
        return self._expected_latency.expected_ms(requests.datasets, requests.vision_tokens_BT, requests.text_tokens_B)


def _slices(total: int) -> list[slice]:
    return [slice(start, min(start + ROWS_AT_ONCE, total)) for start in range(0, total, ROWS_AT_ONCE)]


def _most_likely(log_prob_BC: Tensor, requests: Requests, rows: slice) -> NDArray[np.int64]:
    best_B, choice_B = log_prob_BC.max(dim=1)
    if not bool(torch.isfinite(best_B).all()):
        row = int((~torch.isfinite(best_B)).nonzero()[0])
        raise UnknownSetting(
            f"sample {requests.sample_ids[rows][row]!r} has no setting that the controllers may choose: "
            "its outcomes are missing, or the controllers were trained on a cache without its settings"
        )
    return choice_B.numpy()
