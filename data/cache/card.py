"""The card of a cache: what it holds, how it was made, and how to load it, for people and for the hub's viewer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..cards import REPO_ID, card_text, escaped, markdown_table
from ..knob_table import knob_table
from ..schema import SPLITS
from .manifest import Manifest
from .parts import OUTCOMES, SAMPLES, TOKENS, open_part, part_paths, read_part

# Text of datasets and answers of the model: not published unless asked for.
PRIVATE_COLUMNS = {SAMPLES: ("question", "answers", "image_ref"), OUTCOMES: ("answer",), TOKENS: ()}

_SNIPPET = f"""```python
from knobctl import open_cache

cache = open_cache("hf://datasets/{REPO_ID}")
print(len(cache.sample_ids), "samples,", len(cache.space.settings), "settings")
```

```bash
knobctl train hf://datasets/{REPO_ID} --out controllers
```"""


def cache_card(directory: Path, manifest: Manifest, *, public: bool = False) -> str:
    """Returns the card of a cache whose parts are complete.

    Args:
        public: describe the cache without `PRIVATE_COLUMNS`.
    """
    from huggingface_hub import DatasetCardData

    counts: Counter[tuple[str, str]] = Counter()
    for path in part_paths(directory, SAMPLES):
        rows = read_part(directory, path, ["dataset", "split"]).to_pydict()
        counts.update(zip(rows["dataset"], rows["split"], strict=True))
    columns = {name: _columns(directory, name) for name in (SAMPLES, OUTCOMES, TOKENS)}
    if public:
        columns = {table: [c for c in names if c not in PRIVATE_COLUMNS[table]] for table, names in columns.items()}
    datasets = sorted({dataset for dataset, _ in counts})
    data = DatasetCardData(
        pretty_name=f"knobctl cache of {escaped(manifest.model_name)}",
        task_categories=["visual-question-answering"],
        tags=["knobctl", "mixture-of-experts", "latency"],
        configs=[
            {"config_name": table, "data_files": f"{table}/*.parquet", **({"default": True} if first else {})}
            for table, first in ((OUTCOMES, True), (SAMPLES, False), (TOKENS, False))
            if columns[table]
        ],
    )
    return card_text(data, _body(manifest, counts, datasets, columns))


def _body(
    manifest: Manifest,
    counts: Mapping[tuple[str, str], int],
    datasets: Sequence[str],
    columns: Mapping[str, Sequence[str]],
) -> str:
    space, samples = manifest.space, sum(counts.values())
    device = manifest.device or {}
    private = [c for table, names in PRIVATE_COLUMNS.items() for c in names if c in columns[table]]
    content = "Contains neither images nor questions nor answers. The language features are means of word embeddings, "
    content += "from which some words of a question can be guessed."
    if private:
        content = f"Contains text of the datasets or the model ({', '.join(private)}), but no images."
    facts = [
        (
            "model",
            f"{manifest.model_name} ({manifest.family or 'unknown family'}, {manifest.dtype or 'unknown dtype'})",
        ),
        ("model fingerprint", manifest.fingerprint or "not recorded"),
        ("latencies", f"{manifest.latency_mode}, {manifest.latency_statistic or 'statistic not recorded'}"),
        ("measured on", f"{device.get('name', 'not recorded')} ({device.get('type', 'unknown')})"),
        ("timed runs", manifest.runs),
        ("budgets (ms)", ", ".join(f"{budget:g}" for budget in manifest.budgets_ms) or "none"),
        ("made by", manifest.created_by or "not recorded"),
    ]
    rows = [
        (name, *(counts.get((name, split), 0) for split in SPLITS), _entry(manifest, name, "metric"))
        for name in datasets
    ]
    return f"""
# knobctl cache of {escaped(manifest.model_name)}

The outcome (accuracy, latency) of {samples:,} visual questions under {len(space.settings)} settings of a
mixture-of-experts vision-language model. knobctl trains controllers on it that choose image detail, experts per token
and transformer blocks for each question under a latency budget, without running the model.

{_SNIPPET}

## Provenance

{markdown_table(("", ""), facts)}

Latencies belong to this device and this implementation; accuracies do not.

## Samples

{markdown_table(("dataset", *SPLITS, "metric"), rows)}

{content} The licences of the datasets apply to their content, and the model's licence may apply to its outputs.

## Knobs

{knob_table(space)}

## Tables

{markdown_table(("table", "columns"), [(name, ", ".join(names)) for name, names in columns.items() if names])}
"""


def _entry(manifest: Manifest, dataset: str, name: str) -> object:
    return (manifest.datasets or {}).get(dataset, {}).get(name)


def _columns(directory: Path, table: str) -> list[str]:
    """Returns the columns of a table, each once; none without parts."""
    names: dict[str, None] = {}
    for path in part_paths(directory, table):
        with open_part(directory, path) as file:
            names |= dict.fromkeys(file.schema_arrow.names)
    return list(names)
