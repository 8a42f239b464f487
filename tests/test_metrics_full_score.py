"""Every command warns of a metric that cannot give full scores; training refuses constant accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from knobctl.cli import main
from knobctl.data.cache.accuracy import accuracy_warnings
from knobctl.data.cache.describe import describe_cache
from knobctl.data.cache.reader import open_cache
from knobctl.data.metrics import METRICS, Scorer, full_score_warning, full_scores
from knobctl.data.rescore import rescore
from knobctl.tests.support.caches import make_cache

VOTES = ["red"] * 7 + ["pink"] * 3  # answers of ten people, as in VQA v2
LEAVE_ONE_OUT = ("vqa_official", "textvqa", "vqa_lmms")
QUICK = ("--epochs", 1, "--resamples", 20)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@given(st.sampled_from(sorted(METRICS)), st.lists(st.sampled_from(["a b", "A  b", "a", "two", "2"]), min_size=1))
def test_the_best_score_is_that_of_the_best_reference_answer(metric, answers):
    scorer = Scorer(metric, answers)
    best = max(scorer.score(answer) for answer in answers)
    found = full_scores(metric, [answers])
    assert scorer.best_score == found.highest_mean == best
    assert found.unreachable == (best < 1)


@pytest.mark.parametrize(
    ("metric", "answers", "reason", "highest"),
    [
        *((metric, ["red"], "fewer than 4 answers", "0.000") for metric in LEAVE_ONE_OUT),
        *((metric, ["red"] * 3, "fewer than 4 answers", "0.667") for metric in LEAVE_ONE_OUT),
        *(
            (metric, ["red", "pink", "rose", "coral"], "fewer than 4 answers agree", "0.250")
            for metric in LEAVE_ONE_OUT
        ),
        ("vqa_simple", ["red"], "fewer than 3 answers", "0.333"),
        ("vqa_simple", ["red", "red"], "fewer than 3 answers", "0.667"),
        ("vqa_simple", ["red", "pink", "rose"], "fewer than 3 answers agree", "0.333"),
    ],
)
def test_answers_that_do_not_suit_the_metric(metric, answers, reason, highest):
    warning = full_score_warning("mine", metric, [answers] * 3)
    assert f"3 of 3 questions {'' if 'agree' in reason else 'have '}{reason}" in warning
    assert f"mean accuracy of {highest} on the dataset): `--metric mine=exact_match`" in warning


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_answers_that_suit_the_metric(metric):
    disagreeing = [f"word {place}" for place in range(10)]
    assert full_score_warning("mine", metric, [VOTES, VOTES, disagreeing]) is None


def test_a_few_short_questions_are_counted_without_advice_to_change_the_metric():
    warning = full_score_warning("mine", "textvqa", [VOTES] * 9 + [["red"]])
    assert "1 of 10 questions have fewer than 4 answers" in warning
    assert "0.900" in warning
    assert "exact_match" not in warning


def test_rescoring_warns_on_stderr_and_in_the_report(tmp_path: Path):
    cache = make_cache(tmp_path / "cache", samples=12)
    result = run("rescore", cache, "--metric", "odd=vqa_official", "--out", tmp_path / "new", "--json")
    assert result.exit_code == 0
    (warning,) = json.loads(result.stdout)["warnings"]
    assert warning in result.stderr
    assert "dataset `odd`: " in warning
    assert "--metric odd=exact_match" in warning
    assert rescore(cache, "exact_match", tmp_path / "fine").warnings == ()


@pytest.fixture(scope="module")
def zeroed(tmp_path_factory) -> Path:
    """A cache of single answers after rescoring to a leave-one-out metric: accuracy is 0 throughout."""
    folder = tmp_path_factory.mktemp("zeroed")
    make_cache(folder / "cache", samples=40)
    rescore(folder / "cache", "textvqa", folder / "zeroed")
    return folder / "zeroed"


def test_every_command_on_a_cache_warns_of_its_metric_and_constant_accuracy(zeroed: Path):
    warnings = accuracy_warnings(open_cache(zeroed, tokens=False))
    assert [warning.split("`")[1] for warning in warnings] == ["even", "even", "odd", "odd"]
    assert f"`knobctl rescore {zeroed} --metric even=exact_match --out NEW`" in warnings[0]
    assert "accuracy is 0 for all its" in warnings[1]
    assert set(warnings) <= set(describe_cache(zeroed)["warnings"])
    compared = run("compare", zeroed, "--resamples", 20, "--json")
    assert set(warnings) <= set(json.loads(compared.stdout)["warnings"])


def test_a_suitable_metric_gives_no_warning(tmp_path: Path):
    assert accuracy_warnings(open_cache(make_cache(tmp_path / "cache", samples=40), tokens=False)) == []


@pytest.mark.parametrize("odd", [None, "as recorded", "a metric of another program"])
def test_an_unknown_metric_gives_no_warning(tmp_path: Path, odd: object):
    cache = make_cache(tmp_path / "cache", samples=40)
    manifest = json.loads((cache / "cache.json").read_text())
    manifest = {name: value for name, value in manifest.items() if name not in ("files", "manifest_sha256")}
    (cache / "cache.json").write_text(json.dumps({**manifest, "datasets": {"odd": {"metric": odd}}}))
    assert accuracy_warnings(open_cache(cache, tokens=False)) == []


def with_accuracy(folder: Path, change) -> Path:
    """Returns a cache whose accuracies are `change`d, [rows]."""
    cache = make_cache(folder, samples=40)
    for part in sorted((cache / "outcomes").glob("*.parquet")):
        table = pq.read_table(part)
        values = pa.array(change(table.column("accuracy").to_numpy(), table), pa.float32())
        pq.write_table(table.set_column(table.column_names.index("accuracy"), "accuracy", values), part)
    manifest = json.loads((cache / "cache.json").read_text())
    kept = {name: value for name, value in manifest.items() if name not in ("files", "manifest_sha256")}
    (cache / "cache.json").write_text(json.dumps(kept))
    return cache


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3])
def test_constant_accuracy_is_refused_unless_allowed(tmp_path: Path, value: float):
    cache = with_accuracy(tmp_path / "cache", lambda accuracy, _: accuracy * 0 + value)
    refused = run("train", cache, "--out", tmp_path / "controllers", "--epochs", 1)
    assert refused.exit_code == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert f"has accuracy {value:.6g} for every sample under every setting" in last
    assert "--allow-constant-accuracy" in last
    assert not (tmp_path / "controllers").exists()
    crossed = run("cross-validate", cache, "--folds", 2, "--seeds", "0", *QUICK)
    assert crossed.exit_code == 1
    assert "--allow-constant-accuracy" in crossed.stderr


def test_constant_accuracy_trains_when_allowed_with_a_note(zeroed: Path, tmp_path: Path):
    out = tmp_path / "controllers"
    allowed = run("train", zeroed, "--out", out, "--epochs", 1, "--allow-constant-accuracy", "--json")
    assert allowed.exit_code == 0, allowed.output
    assert any("only latency can be learned" in note for note in json.loads(allowed.stdout)["notes"])
    assert "cannot give them a full score" in allowed.stderr
    validated = run("validate", out, "--cache", zeroed, "--resamples", 20, "--json")
    assert any("accuracy is 0 for all its" in warning for warning in json.loads(validated.stdout)["warnings"])
    crossed = run("cross-validate", zeroed, "--folds", 2, "--seeds", "0", "--allow-constant-accuracy", "--json", *QUICK)
    assert crossed.exit_code == 0, crossed.output
    assert any("accuracy is 0 for all its" in warning for warning in json.loads(crossed.stdout)["warnings"])


def test_accuracy_that_differs_only_between_samples_trains_with_a_note(tmp_path: Path):
    def by_sample(_accuracy, table):
        return [float(name[-1] in "13579") for name in table.column("sample_id").to_pylist()]

    cache = with_accuracy(tmp_path / "cache", by_sample)
    result = run("train", cache, "--out", tmp_path / "controllers", "--epochs", 1)
    assert result.exit_code == 0
    assert "the accuracy of each training sample is the same under every setting" in " ".join(result.stderr.split())
