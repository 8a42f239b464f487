"""The card of trained controllers: what they choose among, what they achieve, how to load them, and their limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.cards import REPO_ID, card_text, escaped, markdown_table, results_section, update_results, write_card
from ..data.knob_table import knob_table
from ..data.paths import is_hub_id
from .checkpoint import Controllers

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_SNIPPET = f"""```python
from knobctl import Controllers

controllers = Controllers.from_pretrained("{REPO_ID}")
print("budgets (ms):", controllers.budgets_ms)
print("chooses among:", controllers.space)
```

```bash
knobctl validate {REPO_ID} --cache CACHE
```"""


@dataclass(frozen=True)
class Results:
    """What the controllers achieved on one split of a cache, next to baselines."""

    split: str
    samples: int
    datasets: tuple[str, ...]
    columns: tuple[str, ...]  # the first names the policy
    rows: tuple[tuple[object, ...], ...]
    sentences: tuple[str, ...]  # verdicts and caveats
    metrics: dict[str, float]  # of the controllers, by the names that reports use


def write_controllers_card(directory: Path, controllers: Controllers, results: Results) -> bool:
    """Writes the card; in one that the user has changed, only the section of results. Raises OSError.

    Returns False, and changes nothing, if the user has removed that section.
    """
    return write_card(directory, controllers_card(controllers, results)) or update_results(
        directory, _results(results), _eval_results(results)
    )


def controllers_card(controllers: Controllers, results: Results) -> str:
    """Returns the card of controllers."""
    from huggingface_hub import ModelCardData

    model = controllers.model.name
    data = ModelCardData(
        base_model=model if is_hub_id(model) and not Path(model).is_dir() else None,
        library_name="knobctl",
        pipeline_tag="visual-question-answering",
        tags=["knobctl", "mixture-of-experts", "latency", "controllers"],
        model_name=f"knobctl controllers for {escaped(model)}",
        eval_results=_eval_results(results),
    )
    return card_text(data, _body(controllers, results))


def _body(controllers: Controllers, results: Results) -> str:
    model, conditions, space = controllers.model, controllers.conditions, controllers.space
    device = escaped(conditions.device_name)
    budgets = ", ".join(f"{budget:g}" for budget in controllers.budgets_ms)
    tasks = [
        (name, *((task.metric, task.max_new_tokens, task.style) if task else (None, None, None)))
        for name, task in conditions.tasks.items()
    ]
    expected = controllers.expected_latency
    held_out = None if expected is None else expected.held_out
    accuracy = (
        "Its error on held-out samples was not measured."
        if held_out is None
        else f"On {held_out.samples:,} held-out samples its relative error is {held_out.median:.1%} in the median and "
        f"{held_out.p95:.1%} at the 95th percentile."
    )
    counts = controllers.parameter_counts()
    return f"""
# knobctl controllers for {escaped(model.name)}

Two small networks that choose, for each visual question and each latency budget, how much of a mixture-of-experts
vision-language model runs: image detail, experts per token and transformer blocks, one of {
        len(space.settings)
    } settings.
The model itself is not part of this repository.

{_SNIPPET}

{_results(results)}

## Model and data

{
        markdown_table(
            ("", ""),
            [
                ("model", model.name),
                ("model fingerprint", model.fingerprint or "not recorded"),
                ("model dtype", model.dtype or "not recorded"),
                ("cache fingerprint", controllers.cache_fingerprint or "not recorded"),
                ("parameters", f"Stage1 {counts['stage1']:,}, Stage2 {counts['stage2']:,}"),
                ("seed", controllers.settings.get("seed")),
                ("made by", controllers.created_by or "not recorded"),
            ],
        )
    }

{markdown_table(("dataset", "metric", "token limit", "prompt style"), tasks)}

## Budgets

Trained for budgets of {budgets} ms, with latencies measured on {device}. On another device the same budgets mean other
settings: measure again there. The checkpoint holds the expected latency of each setting by visual and text tokens.
{accuracy}

## Knobs

{knob_table(space)}

## Limits

* The controllers know the datasets above; on other questions their choices, and accuracy, are untested.
* A latency budget is an aim, not a guarantee: see the share over budget in a report of `knobctl validate`.
* They fit this model alone, with this fingerprint.
* The licences of the model and of the datasets apply beside that of this repository.
"""


def _results(results: Results) -> str:
    """Returns the section of results."""
    lines = "\n".join(f"* {escaped(sentence, 400)}" for sentence in results.sentences)
    return results_section(
        f"On split `{results.split}` ({results.samples:,} samples, all budgets):\n\n"
        f"{markdown_table(results.columns, results.rows)}\n\n{lines}"
    )


def _eval_results(results: Results) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="visual-question-answering",
            dataset_type="knobctl-cache",
            dataset_name=", ".join(escaped(name) for name in results.datasets),
            dataset_split=results.split,
            metric_type=name,
            metric_value=round(value, 6),
        )
        for name, value in results.metrics.items()
    ]
