"""The page of a report: what it says, that nothing from a dataset becomes markup, and what the command prints."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image

from knobctl.cli import main
from knobctl.data.cache.reader import Cache, open_cache
from knobctl.data.errors import DatasetError, KnobctlError
from knobctl.replay.evaluation.build_report import build_report
from knobctl.replay.evaluation.compare import compare
from knobctl.replay.policies.registry import build_baselines
from knobctl.replay.recipes import recipe
from knobctl.replay.report.drawing.style import COLOURS, inline_svg, svg
from knobctl.replay.report.gallery import GALLERY, make_figures
from knobctl.replay.report.page import headline as headlines
from knobctl.replay.report.page.provenance import provenance
from knobctl.replay.report.page.questions import no_image, questions
from knobctl.replay.report.page.recorded_commands import commands
from knobctl.replay.report.page.thumbnails import LONGEST_SIDE, Thumbnails, thumbnail
from knobctl.replay.report.page.write import report_source, write_report
from knobctl.replay.tables import ReplayTables
from knobctl.tests.support.caches import foreign_cache, generated_cache, put
from knobctl.tests.support.cli_commands import every_command
from knobctl.tests.support.random_controllers import random_controllers
from knobctl.tests.support.report_sources import HIGH_16, LOW_12, hand_made_source


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return generated_cache(tmp_path_factory.mktemp("generated") / "cache")


@pytest.fixture(scope="module")
def controllers(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("controllers")
    settings = {"recipe": "tuned", "seed": 3, "seeds": [3], "estimator": "grpo", "epochs": 7}
    return [random_controllers(cache, folder / name, seed=seed, settings=settings) for seed, name in enumerate("ab")]


GUIDE = (Path(__file__).parents[1] / "docs" / "guides" / "report.md").read_text()


class Page(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


# The headline


def test_the_headline_counts_answers_in_time_under_all_budgets(tmp_path: Path):
    found = headlines.headline(hand_made_source(tmp_path / "cache"))
    # Under 40 ms both policies run high/16, which is right and in time for all.
    assert re.fullmatch(
        r"Averaged over 2 budgets from 20 to 40 ms, the controllers answer [\d.]+ % of questions correctly in time; "
        r"the budget-only table, [\d.]+ %: no difference shown\.",
        found.title,
    )
    assert found.verdict == "no difference shown"
    assert found.verdicts[0].text.startswith("mine is not shown to differ from the budget-only table: +")


@pytest.mark.parametrize(
    ("mine", "verdict", "title"),
    [
        (
            HIGH_16,
            "better",
            "answer 62.5 % of questions correctly in time; the budget-only table, 25.0 %: shown better.",
        ),
        (LOW_12, "no difference shown", "the budget-only table, 25.0 %: no difference shown."),
    ],
)
def test_the_headline_follows_the_interval(tmp_path: Path, mine: int, verdict: str, title: str):
    choices = {"mine": [[LOW_12, mine]] * 4, "table": [[LOW_12, LOW_12]] * 4}
    found = headlines.headline(hand_made_source(tmp_path / "cache", choices=choices))
    assert (found.verdict, found.title.endswith(title)) == (verdict, True), found.title


def test_controllers_that_are_worse_are_called_worse(tmp_path: Path):
    choices = {"mine": [[LOW_12, LOW_12]] * 4, "table": [[LOW_12, HIGH_16]] * 4}
    found = headlines.headline(hand_made_source(tmp_path / "cache", choices=choices))
    assert found.verdict == "worse"
    assert "By budget: +0.0 (20 ms), -75.0 (40 ms)." in found.lines[0]
    assert found.title.endswith("the budget-only table, 62.5 %: shown worse.")


def test_several_controllers_are_not_reduced_to_the_best_one(tmp_path: Path):
    choices = {"table": [[LOW_12, HIGH_16]] * 4, "mine": [[LOW_12, HIGH_16]] * 4, "other": [[LOW_12, LOW_12]] * 4}
    found = headlines.headline(hand_made_source(tmp_path / "cache", choices=choices, subjects=("mine", "other")))
    assert found.title == (
        "Averaged over 2 budgets from 20 to 40 ms, the 2 sets of controllers answer 25.0 to 62.5 % of questions "
        "correctly in time; the budget-only table, 62.5 % (1 of 2 shown worse)."
    )


def test_without_controllers_the_headline_says_what_there_is_to_gain(cache: Cache):
    found = headlines.headline(report_source(cache, compare(cache.path), None))
    assert re.fullmatch(
        r"Averaged over \d+ budgets from \d+ to \d+ ms, the budget-only table answers [\d.]+ % of questions "
        r"correctly in time; a perfect choice for every question would answer [\d.]+ %\.",
        found.title,
    )
    assert found.verdict is None


# Questions and images


def test_questions_are_ranked_by_the_difference_in_reward(tmp_path: Path):
    source = hand_made_source(tmp_path / "cache")
    found = questions(source, no_image)
    assert found is not None
    assert (found.policy, found.n_gained, found.n_lost, found.n_equal) == ("mine", 1, 1, 2)
    (gain,), (loss,) = found.gains, found.losses
    assert (gain.sample_id, loss.sample_id) == ("s001", "s002")  # both ran low/16: right for s001 alone
    assert (gain.controllers.setting, gain.controllers.accuracy, gain.controllers.in_time) == (
        "low/p1/k8/n16",
        1.0,
        True,
    )
    assert (gain.fixed.setting, gain.fixed.answer, gain.budget_ms) == ("low/p1/k8/n12", "no", 20.0)
    assert questions(replace(source, report=replace(source.report, subjects=())), no_image) is None


def encoded(width: int, height: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind)
    return target.getvalue()


def test_images_are_re_encoded_and_at_most_320_pixels():
    made = thumbnail(encoded(900, 300), "x.png")
    assert (made.width, made.height) == (LONGEST_SIDE, 107)
    kind, _, data = made.uri.partition(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (320, 107)
    with pytest.raises(DatasetError):
        thumbnail(b"<svg onload=alert(1)>", "x.svg")


def with_images(cache: Cache, refs: list[str | None]) -> Cache:
    import polars as pl

    return replace(cache, samples=cache.samples.with_columns(pl.Series("image_ref", refs, dtype=pl.String)))


def test_an_image_that_cannot_be_read_is_not_available(tmp_path: Path):
    source = hand_made_source(tmp_path / "cache")
    (tmp_path / "good.png").write_bytes(encoded(20, 10))
    (tmp_path / "bad.png").write_bytes(b"nothing")
    read = Thumbnails(with_images(source.cache, ["good.png", "bad.png", "../../etc/passwd", None]), tmp_path, {})
    assert [read.of(sample) is not None for sample in range(4)] == [True, False, False, False]
    unknown = Thumbnails(with_images(source.cache, ["good.png"] * 4), None, {})
    assert unknown.of(0) is None


# The page


def test_the_page_is_one_file_that_loads_nothing(cache: Cache, controllers: list[Path], tmp_path: Path):
    found = write_report(cache.path, controllers, out=tmp_path / "new" / "report.html", resamples=50)
    text = Path(found.page).read_text(encoding="utf-8")
    page = Page(text)
    assert found.bytes == len(text.encode()) < 3_000_000
    assert found.figures == ("frontier", "differences", "reward", "latency", "gap", "choices", "settings")
    assert set(found.left_out) == {entry.title for entry in GALLERY} - {"Accuracy against latency"} - {
        entry.title for entry in GALLERY if entry.name in found.figures
    }
    assert page.count("svg") == len(found.figures)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, name, value)
    assert found.headline in page.texts
    for reason in found.left_out.values():
        assert any(reason in one for one in page.texts)
    assert re.search(r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-", text)


def test_the_same_evaluation_gives_the_same_page(cache: Cache, controllers: list[Path], tmp_path: Path):
    report = compare(cache.path, controllers, resamples=20, baselines=["table", "oracle"])
    made = [write_report(cache.path, out=tmp_path / f"{n}.html", report=report, made_by=["x"]).page for n in (1, 2)]
    assert Path(made[0]).read_bytes() == Path(made[1]).read_bytes()


HOSTILE = '</script></svg></title><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7*191 }}$x^2$'


def test_text_of_datasets_and_names_never_becomes_markup(tmp_path: Path):
    folder = tmp_path / "<img src=x onerror=alert(3)>"
    folder.mkdir()
    path = foreign_cache(
        folder / "cache",
        samples=lambda table: (
            put("dataset", [HOSTILE] * 3 + ["b"] * 2)(put("split", ["train", "train", *["test"] * 3])(table))
            .append_column("question", pa.array([HOSTILE] * 5))
            .append_column("answers", pa.array([[HOSTILE]] * 5, pa.list_(pa.string())))
            .append_column("image_ref", pa.array([HOSTILE] * 5))
        ),
        outcomes=lambda table: table.append_column("answer", pa.array([HOSTILE] * len(table))),
        manifest=lambda record: record["model"].update(name=HOSTILE),
        ids=[f"{HOSTILE}{number}" for number in range(5)],
    )
    hostile = open_cache(path)

    class Named:
        """A policy with a hostile name that always runs the largest setting."""

        name, uses_latency_token = HOSTILE, False

        def choose_image(self, requests: Any) -> tuple[Any, Any]:
            count = len(requests.sample_ids)
            return np.ones(count, np.int64), np.ones(count, np.int64)

        def choose_compute(self, requests: Any, *_: Any) -> tuple[Any, Any]:
            return self.choose_image(requests)

    tables = ReplayTables.from_cache(hostile)
    policies: list[Any] = [Named(), *build_baselines(["table", "oracle"], tables)]
    report = build_report(hostile, policies, tables=tables, subjects=[HOSTILE], resamples=20)
    found = write_report(path, out=folder / "report.html", figures=folder / "figures", report=report, made_by=[HOSTILE])
    text = Path(found.page).read_text(encoding="utf-8")
    page = Page(text)
    assert page.count("script") == 1
    assert not [tag for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert page.count("img") == 0
    assert "1337" not in text
    assert "".join(page.texts).count("<script>alert(1)</script>") > 5  # shown as text
    for file in (folder / "figures").glob("*.svg"):
        assert "<script>" not in file.read_text(encoding="utf-8"), file


def test_figures_are_written_as_svg_and_png(cache: Cache, tmp_path: Path):
    baselines = ["table", "oracle"]
    found = write_report(
        cache.path, out=tmp_path / "report.html", figures=tmp_path / "figures", resamples=20, baselines=baselines
    )
    names = {f"{name}.{kind}" for name in found.figures for kind in ("svg", "png")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    assert len(found.figure_files) == len(names)
    with Image.open(tmp_path / "figures" / "frontier.png") as image:
        assert image.width > 1400  # 300 dots per inch
        assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_inline_drawings_use_the_colours_of_the_page_and_ids_of_their_own(cache: Cache):
    made, _ = make_figures(report_source(cache, compare(cache.path, resamples=20), None))
    for one in made:
        text = inline_svg(svg(one.draw), one.name, "a title")
        used = set(re.findall(r"var\(--([\w-]+)\)", text))
        assert {"ink", "font"} <= used <= {*COLOURS, "font"}
        assert not [colour.light for colour in COLOURS.values() if colour.light in text]
        ids = set(re.findall(r' id="([^"]*)"', text))
        assert all(name.startswith(f"{one.name}-") for name in ids)
        assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', text)) <= ids


# Provenance


def test_the_training_command_has_the_settings_that_differ_from_the_recipe(cache: Cache, controllers: list[Path]):
    source = report_source(cache, compare(cache.path, controllers[:1], resamples=20), None)
    changed = recipe("classic", seeds=(1, 2), epochs=9, scale_rewards="batch", train_budget_encoder=False)
    settings = {**changed.to_dict(), "seed": 2, "best_epoch": 3}
    recorded = {"path": "runs/c/seed-2", "trained_on_cache": cache.fingerprint, "settings": settings}
    source = replace(source, report=replace(source.report, controllers={"a": recorded}))
    check, train, made = commands(source, ("knobctl report x",))
    assert shlex.split(train)[3:] == shlex.split(
        "--out runs/c --recipe classic --seeds 1,2 --epochs 9 --scale-rewards batch"
    )
    for command in (check, train, made):
        words = shlex.split(command)
        with every_command()[(words[1],)].make_context(words[1], words[2:]):
            pass
    recorded["settings"] = {**settings, "min_steps": 1}  # cannot be given on the command line
    assert len(commands(source, ())) == 1


def test_paths_below_the_current_folder_are_shown_relative_to_it(
    cache: Cache, controllers: list[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(controllers[0].parent)
    source = report_source(cache, compare(cache.path, ["a"], resamples=20), None)
    facts = {one.title: dict(one.rows) for one in provenance(source)}
    assert facts["Controllers: a"]["path"] == "a"
    assert facts["Cache"]["model"] == "toy"


# The command


def test_the_command_prints_what_it_wrote_and_the_page_names_the_command(
    cache: Cache, controllers: list[Path], tmp_path: Path
):
    out = tmp_path / "report.html"
    words = ["report", str(cache.path), str(controllers[0]), "--out", str(out), "--resamples", "20", "--no-images"]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["page"], record["bytes"], record["images"]) == (str(out), out.stat().st_size, 0)
    assert shlex.join(["knobctl", *words, "--json"]) in "".join(Page(out.read_text()).texts)
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 0
    assert record["headline"][:40] in shown.stdout


@pytest.mark.slow
def test_the_example_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (example,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    generated_cache(Path("runs/cache"), train=20, val=10, test=10)
    smaller = "TrainConfig(epochs=1, min_steps=0, warm_start_steps=5, seeds=(0,))"
    exec(example.replace("TrainConfig(epochs=60, seeds=(0, 1, 2))", smaller), {})
    text = Path("report.html").read_text(encoding="utf-8")
    assert "cross-validated in 5 folds" in text
    assert "cross-validation keeps no training logs" in text
    assert f"<title>{capsys.readouterr().out.strip()}</title>" in text
    assert (Path("figures") / "frontier.png").is_file()


def test_the_guide_lists_every_figure():
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE) == [entry.name for entry in GALLERY]


def test_cross_validate_writes_the_page_too(tmp_path: Path):
    generated_cache(tmp_path / "cache", train=20, val=10, test=10)
    out = tmp_path / "report.html"
    words = ["cross-validate", str(tmp_path / "cache"), "--recipe", "classic", "--epochs", "1", "--folds", "2"]
    words += ["--seeds", "0,1", "--baseline", "table", "--baseline", "best_fixed", "--resamples", "20"]
    words += ["--report", str(out)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    text = "".join(Page(out.read_text()).texts)
    assert "cross-validated in 2 folds" in text
    assert "the controllers answer" in text  # the mean of both seeds
    assert shlex.join(["knobctl", *words]) in text


def test_a_missing_extra_is_one_line_that_names_it(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(main, ["report", str(cache.path), "--out", str(tmp_path / "x.html")])
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: a report needs matplotlib and Jinja2: pip install 'knobctl[report]'\n",
    )


def test_a_page_that_cannot_be_written_is_one_line(cache: Cache, tmp_path: Path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(KnobctlError, match=r"report\.html cannot be written \(Is a directory\)"):
        write_report(cache.path, out=tmp_path / "report.html", baselines=["oracle"], resamples=20)
