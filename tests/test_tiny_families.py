"""The tiny checkpoints of the families' tests are what transformers itself can load."""

from __future__ import annotations

import pytest
import torch

from knobctl.tests.support.tiny_families import FAMILIES, plain_model, write_family


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tiny_directory_loads_completely(name, tmp_path):
    directory = write_family(name, tmp_path, seed=1)
    assert len(list(directory.glob("model-*.safetensors"))) > 1  # sharded, as large checkpoints are
    one, other = plain_model(name, directory), plain_model(name, directory)
    other_weights = dict(other.named_parameters())
    for key, parameter in one.named_parameters():
        assert torch.equal(parameter, other_weights[key]), f"{key} is not in the files"  # a missing one is random


def test_families_differ_by_seed(tmp_path):
    weights = [plain_model("aria", write_family("aria", tmp_path / str(seed), seed=seed)) for seed in (1, 2)]
    assert not torch.equal(weights[0].get_input_embeddings().weight, weights[1].get_input_embeddings().weight)
