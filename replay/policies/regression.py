"""Supervised regressions (multi-layer perceptrons) on the language feature and on the latency token.

They predict rewards and choose the setting with the highest prediction. Classification of the best setting would
ignore by how much it is better. Requires scikit-learn, the optional extra `baselines`.

Shapes: N samples fitted on, Q to tune on, B requests, X settings, M budgets, O outputs, F inputs, C principal
components, A choices of Stage2, D = d_model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...data.errors import KnobctlError
from ...data.protocols import Requests
from ..tables import ReplayTables
from .neighbours import FittedRewards, reward_of_best, tuning_budgets
from .scored import ScoredPolicy
from .token_neighbours import TokenPolicy, read_tokens, some_of, tokens_present, with_token

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

ALPHAS = (1e-3, 1e-1, 10.0)  # strength of the L2 penalty, chosen on `val`
HIDDEN_WIDTH = 64
INPUT_COMPONENTS = 128  # wider inputs are reduced to this many principal components
TARGET_COMPONENTS = 32  # rewards over all (budget, setting) lie close to a subspace of this dimension
MIN_SAMPLES_FOR_EARLY_STOPPING = 1000
FIT_SAMPLES = 8000
TOKEN_FIT_SAMPLES = 2000
TUNING_SAMPLES = 1000


def require_sklearn() -> None:
    """Raises KnobctlError, with the command that installs scikit-learn, if it is missing."""
    try:
        import sklearn  # noqa: F401  only tests that it can be imported
    except ImportError as error:
        raise KnobctlError(
            "the baselines `mlp_language` and `mlp_token` need scikit-learn: pip install 'knobctl[baselines]', "
            "or leave out --baseline mlp_language and --baseline mlp_token"
        ) from error


def perceptron(input_NF: NDArray[np.floating], alpha: float, seed: int) -> Pipeline:
    """Returns an unfitted model: inputs standardised and reduced to principal components, one hidden layer."""
    from sklearn.decomposition import PCA
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, width = input_NF.shape
    steps: list[Any] = [StandardScaler()]
    components = min(INPUT_COMPONENTS, rows - 1)
    if width > components >= 1:
        steps += [PCA(components, svd_solver="randomized", whiten=True, random_state=seed)]
    steps += [
        MLPRegressor(
            hidden_layer_sizes=(HIDDEN_WIDTH,),
            alpha=alpha,
            # Adam needs about a thousand steps; with few rows, full batches would make one step per epoch.
            batch_size=int(np.clip(rows // 40, 1, 200)),
            learning_rate_init=3e-3,
            # Early stopping holds out a tenth, which is too little of a small set: there, only the penalty regularises.
            early_stopping=rows >= MIN_SAMPLES_FOR_EARLY_STOPPING,
            n_iter_no_change=8,
            max_iter=60,
            random_state=seed,
        )
    ]
    return make_pipeline(*steps)


def fit_quietly(model: Pipeline, input_NF: NDArray[np.floating], target_NO: NDArray[np.floating]) -> Pipeline:
    """Fits and returns the model, without the warnings that are expected here."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the score divides by a target's variance, which may be 0
        warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter is the intended number of epochs
        return model.fit(input_NF, target_NO)


def best_alpha(score: Callable[[float], float], tune: bool) -> float:
    """Returns the penalty with the highest score; the middle one if there are no samples to tune on."""
    return max(ALPHAS, key=score) if tune else ALPHAS[1]


class LanguageRegression(ScoredPolicy):
    """Predicts the reward of every (budget, setting) from the language feature, and compares those of one budget."""

    def __init__(self, tables: ReplayTables, *, seed: int = 0) -> None:
        require_sklearn()
        super().__init__("mlp_language", tables.space)
        self.tables = tables
        fit_N, tune_Q = tables.fit_and_tune_samples
        fit_N, tune_Q = some_of(fit_N, FIT_SAMPLES, seed), some_of(tune_Q, TUNING_SAMPLES, seed)
        self._reduce(fit_N, seed)
        models: dict[float, Pipeline] = {}

        def gained(alpha: float) -> float:
            models[alpha] = self._fit(fit_N, alpha, seed)
            reward_QMX = self._predict(models[alpha], tables.language_feature_SD[tune_Q])
            budgets = tuning_budgets(len(tables.budgets_ms_M))
            return sum(reward_of_best(tables, tune_Q, reward_QMX[:, budget], budget) for budget in budgets)

        self.alpha = best_alpha(gained, len(tune_Q) > 0)
        self.model = models.get(self.alpha) or self._fit(fit_N, self.alpha, seed)

    def _reduce(self, fit_N: NDArray[np.int64], seed: int) -> None:
        """Computes the principal components of rewards over (budget, setting), which the regression predicts."""
        from sklearn.decomposition import PCA

        rewards = FittedRewards(self.tables, fit_N)
        budgets = range(len(self.tables.budgets_ms_M))
        target_NO = np.concatenate([_floored(rewards, m, self.tables.weights.alpha) for m in budgets], axis=1)
        components = min(TARGET_COMPONENTS, *target_NO.shape)
        self.pca = PCA(components, svd_solver="randomized", random_state=seed)
        component_NC = self.pca.fit_transform(target_NO)
        self.scale = float(component_NC.std(axis=0).max()) or 1.0
        self.component_NC = component_NC / self.scale

    def _fit(self, fit_N: NDArray[np.int64], alpha: float, seed: int) -> Pipeline:
        feature_ND = self.tables.language_feature_SD[fit_N]
        return fit_quietly(perceptron(feature_ND, alpha, seed), feature_ND, self.component_NC)

    def _predict(self, model: Pipeline, feature_BD: NDArray[np.floating]) -> NDArray[np.floating]:
        component_BC = model.predict(feature_BD).reshape(len(feature_BD), -1) * self.scale
        return self.pca.inverse_transform(component_BC).reshape(len(feature_BD), -1, len(self.space.settings))

    def scores_BX(self, requests: Requests) -> NDArray[np.floating]:
        reward_BMX = self._predict(self.model, requests.language_feature_BD)
        return reward_BMX[np.arange(len(requests)), self.tables.budget_rows(requests.budget_ms_B)]


class TokenRegression(TokenPolicy):
    """Stage1 chooses as `LanguageRegression` does, Stage2 by rewards predicted from (latency token, pair, budget)."""

    def __init__(self, tables: ReplayTables, stage1: LanguageRegression, *, seed: int = 0) -> None:
        super().__init__("mlp_token", tables, stage1)
        fit_N, tune_Q = tables.fit_and_tune_samples
        fit_N, tune_Q = some_of(fit_N, TOKEN_FIT_SAMPLES, seed), some_of(tune_Q, TUNING_SAMPLES // 2, seed)
        budgets = tuning_budgets(len(tables.budgets_ms_M))
        fitted = self._examples(fit_N, range(len(tables.budgets_ms_M)), tokens_present)
        assert fitted is not None, "tokens_present raises for a pair without tokens"
        input_NF, target_NA = fitted
        models: dict[float, Pipeline] = {}

        def gained(alpha: float) -> float:
            models[alpha] = fit_quietly(perceptron(input_NF, alpha, seed), input_NF, target_NA)
            return -float(np.square(models[alpha].predict(tune_NF) - tune_NA).mean())

        tuning = self._examples(tune_Q, budgets, with_token) if len(tune_Q) else None  # val may have no tokens
        tune_NF, tune_NA = tuning or (input_NF, target_NA)
        self.alpha = best_alpha(gained, tuning is not None)
        if self.alpha not in models:
            gained(self.alpha)
        self.model = models[self.alpha]

    def _inputs(self, token_BD: NDArray[np.floating], tier: int, position: int, budget: int) -> NDArray[np.float32]:
        axes = (len(self.space.tiers), len(self.space.insertion_positions), len(self.tables.budgets_ms_M))
        code = np.concatenate(
            [np.eye(size, dtype=np.float32)[place] for size, place in zip(axes, (tier, position, budget), strict=True)]
        )
        return np.concatenate(
            [np.asarray(token_BD, dtype=np.float32), np.broadcast_to(code, (len(token_BD), len(code)))], axis=1
        )

    def _examples(
        self, sample_N: NDArray[np.int64], budgets: Sequence[int], present: Callable[..., NDArray[np.int64]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Returns inputs and rewards (minus their mean over the pair's settings) at the pairs that Stage1 chooses.

        `present` selects the samples that have a token there, or raises. None if no sample has one anywhere.
        """
        tables = self.tables
        inputs, targets = [], []
        rewards = FittedRewards(tables, sample_N)
        for budget in budgets:
            pair_N = np.stack(self.stage1.choose_image(tables.requests(sample_N, budget)), axis=1)
            reward_NX = _floored(rewards, budget, tables.weights.alpha)
            for tier, position in np.unique(pair_N, axis=0).tolist():
                chosen = np.flatnonzero((pair_N == (tier, position)).all(axis=1))
                present_N = present(tables, sample_N[chosen], tier, position, budget)
                if not len(present_N):
                    continue
                row_N = np.searchsorted(sample_N, present_N)
                setting_A = self.space.setting_TPKN[tier, position].ravel()
                reward_NA = np.where(setting_A >= 0, reward_NX[row_N][:, setting_A], np.nan)
                reward_NA = reward_NA - np.nanmean(reward_NA, axis=1, keepdims=True)
                inputs.append(
                    self._inputs(read_tokens(tables, present_N, tier, position, budget), tier, position, budget)
                )
                targets.append(np.nan_to_num(reward_NA, nan=0.0))
        return (np.concatenate(inputs), np.concatenate(targets)) if inputs else None

    def token_scores_BX(
        self, token_BD: NDArray[np.floating], tier: int, position: int, budget: int
    ) -> NDArray[np.floating]:
        predicted = self.model.predict(self._inputs(token_BD, tier, position, budget)).reshape(len(token_BD), -1)
        setting_A = self.space.setting_TPKN[tier, position].ravel()
        score_BX = np.full((len(token_BD), len(self.space.settings)), -1e9)
        score_BX[:, setting_A[setting_A >= 0]] = predicted[:, setting_A >= 0]
        return score_BX


def _floored(rewards: FittedRewards, budget: int, alpha: float) -> NDArray[np.float32]:
    """Returns rewards [N, X], clipped from below at the mean of the best fixed setting minus 2 * alpha.

    A latency of ten times the budget costs 810. Unclipped, such values dominate the squared error, although no policy
    chooses these settings; twice the reward of a correct answer (`alpha`) below the best is low enough.
    """
    floor = np.nanmax(rewards.mean_reward_MX[budget]) - 2.0 * alpha
    return np.maximum(rewards.at_budget(budget).numpy(), np.float32(floor))
