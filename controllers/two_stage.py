"""The trained controllers as a policy: the two calls that replay and the live model both make."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.errors import UnknownSetting
from ..data.knobs import KnobSpace
from ..data.protocols import Requests
from .checkpoint import Controllers

ROWS_AT_ONCE = 4096


class TwoStagePolicy:
    """Picks the most likely allowed pair at each stage (data.protocols.Policy).

    It computes in float64, so that a request gets the same choice alone (live) as among thousands (replay): float32
    products round differently by batch shape, and a near tie would fall either way.
    """

    uses_latency_token = True

    def __init__(self, controllers: Controllers, name: str = "controllers") -> None:
        self.name = name
        self.space = controllers.space
        self._stage1 = copy.deepcopy(controllers.stage1).double().eval()
        self._stage2 = copy.deepcopy(controllers.stage2).double().eval()
        self._encoder = copy.deepcopy(controllers.stage1_budget_encoder).double().eval()
        self._encoded: dict[float, Tensor] = {}
        self._setting_JA = setting_grid(controllers.space)

    @torch.no_grad()
    def choose_image(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Stage1's call: (tier index [B], insertion-position index [B])."""
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
        """Stage2's call: (top-k index [B], num_blocks index [B])."""
        if token_BD is None:
            raise ValueError("Stage2 reads the latency token, and none was given")
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
        """Returns one encoded budget, [d_model]; each is computed once, alone."""
        if budget_ms not in self._encoded:
            if len(self._encoded) >= ROWS_AT_ONCE:  # a live server may see a new budget with every request
                self._encoded.clear()
            self._encoded[budget_ms] = self._encoder(torch.tensor([budget_ms]))[0]
        return self._encoded[budget_ms]

    def _available(self, requests: Requests) -> Tensor | None:
        """Returns which pairs of choices each request may take, [B, J, A]: it has them, and training saw them."""
        if requests.available_BX is None:
            return None
        available_BX = torch.from_numpy(np.asarray(requests.available_BX))
        exists_JA = self._setting_JA >= 0
        spread_BJA = available_BX[:, self._setting_JA.clamp(min=0).flatten()].unflatten(1, self._setting_JA.shape)
        trained_JA = self._stage2.allowed_JA & self._stage1.allowed_J[:, None]
        return spread_BJA & exists_JA & trained_JA


def setting_grid(space: KnobSpace) -> Tensor:
    """Returns where each pair of choices stands in `space.settings`, [J, A] int64; -1 where it cannot run."""
    index = {
        (space.tiers.index(s.tier), space.insertion_positions.index(s.insertion_position), s.top_k, s.num_blocks): x
        for x, s in enumerate(space.settings)
    }
    rows = [
        [index.get((tier, position, top_k, num_blocks), -1) for top_k in space.top_k for num_blocks in space.num_blocks]
        for tier in range(len(space.tiers))
        for position in range(len(space.insertion_positions))
    ]
    return torch.tensor(rows, dtype=torch.int64)


def _slices(total: int) -> list[slice]:
    return [slice(start, min(start + ROWS_AT_ONCE, total)) for start in range(0, total, ROWS_AT_ONCE)]


def _most_likely(log_prob_BC: Tensor, requests: Requests, rows: slice) -> NDArray[np.int64]:
    best_B, choice_B = log_prob_BC.max(dim=1)
    if not bool(torch.isfinite(best_B).all()):
        row = int((~torch.isfinite(best_B)).nonzero()[0])
        raise UnknownSetting(
            f"sample {requests.sample_ids[rows][row]!r} has no setting left that the controllers may choose: "
            "its outcomes are missing, or they were trained on a cache without those settings"
        )
    return choice_B.numpy()
