"""CITATION.cff and the package agree."""

import tomllib
from pathlib import Path

import knobctl

ROOT = Path(__file__).resolve().parent.parent


def test_the_citation_has_the_version_and_licence_of_the_package():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {knobctl.__version__}" in lines
    assert f"license: {tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['license']}" in lines
