"""Cross-validates the recipe on the bundled cache and prints the results as a page.

python benchmarks/bundled.py > docs/results/bundled.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from tables import markdown

from knobctl.console import ConsoleProgress
from knobctl.devices import single_thread
from knobctl.replay.evaluation.report import OVERALL
from knobctl.replay.policies.registry import BASELINES
from knobctl.replay.recipes import recipe
from knobctl.replay.training.cross_validate import cross_validate

NAME = "bundled:nano"
SEEDS = (0, 1, 2)
SHOWN = ("full", "cheapest", "best_fixed", "table", "dataset_table", "neighbours", "neighbours_token", "oracle")

Record = Mapping[str, Any]


@click.command(help=__doc__)
def main() -> None:
    with single_thread():
        report = cross_validate(NAME, recipe("tuned", seeds=SEEDS), baselines=SHOWN, progress=ConsoleProgress())
    click.echo(page(report.to_dict()), nl=False)


def page(report: Record) -> str:
    """Returns the page of a cross-validation with several seeds."""
    policies = [("figures", _figures(name, policy)) for name, policy in report["policies"].items()]
    subject = report["subjects"][0]
    differences = [("differences", _differences(report, name)) for name in (subject, *report["controllers"])]
    budgets = ", ".join(f"{budget:g}" for budget in report["budgets_ms"])
    return f"""# The bundled cache

`{report["cache"]["path"]}`: {report["n_samples"]} samples of {report["n_clusters"]} images, budgets of {budgets} ms,
latencies of one machine ({report["cache"]["device"]["name"]}); the card beside the cache says how and when it was made.
Cross-validated in {report["folds"]} folds with the default recipe, so every sample is a test sample; `{subject}` is the
mean of {len(report["controllers"])} seeds. This page is the output of

    python benchmarks/bundled.py > docs/results/bundled.md

and `knobctl cross-validate {report["cache"]["path"]}` prints the same comparison.

## Figures over all budgets

{markdown(policies)}
## Differences

Mean reward minus that of each baseline, with 95 % intervals over images. Verdicts are corrected for all baselines of a
line (Holm; [evaluation](../reference/report.md)).

{markdown(differences)}"""


def _figures(name: str, policy: Record) -> dict[str, str]:
    metrics = policy["overall"]["all_budgets"]
    return {
        "policy": f"{name}: {BASELINES[name].label}" if name in BASELINES else name,
        "accuracy": f"{metrics['accuracy']['value']:.3f}",
        "reward": f"{metrics['reward']['value']:.3f}",
        "mean ms": f"{metrics['latency_ms']['value']:.1f}",
        "over budget": f"{metrics['violation_rate']['value']:.1%}",
        "gap closed": f"{metrics['gap_closed']['value']:.2f}",
    }


def _differences(report: Record, name: str) -> dict[str, str]:
    row = {"": name}
    for found in report["comparisons"]:
        if found["policy"] == name and found["group"] == OVERALL and found["versus"] in BASELINES:
            reward = found["differences"]["reward"]
            interval = f"{reward['value']:+.3f} [{reward['low']:+.3f}, {reward['high']:+.3f}]"
            row[f"minus {found['versus']}"] = f"{interval} {found['verdict']}"
    return row


if __name__ == "__main__":
    main()
