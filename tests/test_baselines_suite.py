"""One suite for all baselines: what every entry of the registry must satisfy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from knobctl.data.errors import KnobctlError
from knobctl.data.protocols import Policy
from knobctl.replay.evaluation.request_stats import STATS, RequestSet, request_stats
from knobctl.replay.policies.decide import decide
from knobctl.replay.policies.registry import BASELINES, Baseline, build_baselines, latency_tokens, training_samples
from knobctl.replay.tables import ReplayTables
from knobctl.tests.support.caches import generated_cache

ROOT = Path(__file__).resolve().parent.parent
EVERY_BASELINE = pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
BUDGETS = (0, 1, 2)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> ReplayTables:
    """A tenth of the outcomes is missing."""
    path = tmp_path_factory.mktemp("suite") / "cache"
    return ReplayTables.from_cache(generated_cache(path, holes=0.1, train=80, val=30, test=30))


@pytest.fixture(scope="module")
def policies(tables: ReplayTables) -> dict[str, Policy]:
    return {policy.name: policy for policy in build_baselines(list(BASELINES), tables)}


def rewards(tables: ReplayTables, setting_NM: np.ndarray) -> np.ndarray:
    requests = RequestSet.of(tables, tables.measured("test"), BUDGETS)
    return request_stats(requests, setting_NM)[:, :, STATS.index("reward")]


@EVERY_BASELINE
def test_it_is_described(baseline: Baseline):
    assert baseline.label
    assert baseline.description
    documented = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/reference/report.md").read_text(), flags=re.MULTILINE)
    assert baseline.name in documented


@EVERY_BASELINE
def test_it_chooses_recorded_settings_independently_of_request_order(
    tables: ReplayTables, policies: dict[str, Policy], baseline: Baseline
):
    policy = policies[baseline.name]
    sample_N = tables.measured("test")
    setting_NM = decide(policy, tables, sample_N, BUDGETS)  # raises CacheError for a setting without an outcome
    np.testing.assert_array_equal(decide(policy, tables, sample_N[::-1], BUDGETS[::-1]), setting_NM[::-1, ::-1])


@EVERY_BASELINE
def test_equal_seeds_give_equal_choices(tables: ReplayTables, policies: dict[str, Policy], baseline: Baseline):
    (again,) = build_baselines([baseline.name], tables)  # fitted alone, not beside the others
    first_NM, again_NM = (
        decide(policy, tables, tables.measured("test"), BUDGETS) for policy in (policies[baseline.name], again)
    )
    np.testing.assert_array_equal(first_NM, again_NM)


@EVERY_BASELINE
def test_it_is_at_most_as_good_as_the_oracle_and_reads_no_outcomes_of_test(
    tables: ReplayTables, policies: dict[str, Policy], baseline: Baseline
):
    sample_N = tables.measured("test")
    setting_NM = decide(policies[baseline.name], tables, sample_N, BUDGETS)
    best_NM = rewards(tables, decide(policies["oracle"], tables, sample_N, BUDGETS))
    assert (rewards(tables, setting_NM) <= best_NM + 1e-6).all()
    accuracy_SX, latency_ms_SX = tables.accuracy_SX.copy(), tables.latency_ms_SX.copy()
    accuracy_SX[sample_N] = 1.0 - accuracy_SX[sample_N]
    latency_ms_SX[sample_N] *= np.linspace(0.2, 5.0, latency_ms_SX.shape[1], dtype=np.float32)
    changed = replace(tables, accuracy_SX=accuracy_SX, latency_ms_SX=latency_ms_SX)
    (again,) = build_baselines([baseline.name], changed)
    same = np.array_equal(decide(again, changed, sample_N, BUDGETS), setting_NM)
    assert same == (baseline.name != "oracle")


@EVERY_BASELINE
def test_it_reads_the_latency_token_only_if_it_says_so(
    tables: ReplayTables, policies: dict[str, Policy], baseline: Baseline
):
    policy = policies[baseline.name]
    requests = tables.requests(tables.measured("test"), 0, with_tokens=True)
    tier_B, position_B = policy.choose_image(requests)
    if policy.uses_latency_token:
        assert latency_tokens in baseline.needs
        with pytest.raises(KnobctlError, match=f"policy `{baseline.name}` reads latency tokens"):
            policy.choose_compute(requests, tier_B, position_B, None)
    else:
        top_k_B, num_blocks_B = policy.choose_compute(requests, tier_B, position_B, None)
        assert len(tables.space.setting_index(tier_B, position_B, top_k_B, num_blocks_B)) == len(requests)


@EVERY_BASELINE
def test_without_what_it_needs_it_is_refused_or_left_out_with_the_reason(tables: ReplayTables, baseline: Baseline):
    empty = tables.with_splits({"test": tables.indices("test")})
    skipped: list[str] = []
    built = build_baselines([baseline.name], empty, skipped=skipped)
    assert len(built) + len(skipped) == 1
    if training_samples in baseline.needs:
        assert skipped == [
            f"baseline `{baseline.name}` left out: the cache has no sample with outcomes in split `train`"
        ]
        with pytest.raises(KnobctlError, match=f"split `train`: leave out --baseline {baseline.name}$"):
            build_baselines([baseline.name], empty)
    else:
        decide(built[0], empty, empty.measured("test"), BUDGETS)
