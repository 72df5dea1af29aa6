"""A model whose layers two processes hold together: half of every layer each, and the logits of the model."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import torch
from torch.distributed.tensor import DTensor

from tests.support import ranks
from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.models.load import load_model
from wmdp_fast.models.sharded_layers import load_sharded
from wmdp_fast.runtime.ranks import place_of_process
from wmdp_fast.scoring.ranks import one_model

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def _describe(folder: Path) -> None:
    """Writes down what this process holds of a model, and the logits that it makes."""
    with one_model(place_of_process(), "cpu"), torch.no_grad():
        model = load_sharded(str(folder), device="cpu").model
        layers = list(decoder_of(model).layers.parameters())
        others = {id(one) for one in model.parameters()} - {id(one) for one in layers}
        held = [one.to_local().numel() for one in layers if isinstance(one, DTensor)]
        found = {"layers": [len(layers), len(held), sum(held)], "others": len(others), "logits": model(TOKENS).logits}
        # Again as parts once they have run.
        assert sum(one.to_local().numel() for one in decoder_of(model).layers.parameters()) == sum(held)
    found["logits"] = found["logits"].tolist()
    (folder / f"{os.environ['RANK']}.held").write_text(json.dumps(found))


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2's head is its embedding
def test_each_of_two_holds_half_of_every_layer(family: str, tmp_path: Path) -> None:
    folder = runs.folder_with_tokenizer(tmp_path / family, family)
    assert ranks.start(2, _describe, folder) == [0, 0]
    whole = load_model(str(folder), device="cpu").model
    sizes = [one.numel() for one in decoder_of(whole).layers.parameters()]
    with torch.no_grad():
        expected = whole(TOKENS).logits
    for rank in range(2):
        found = json.loads((folder / f"{rank}.held").read_text())
        assert found["layers"] == [len(sizes), len(sizes), sum(sizes) // 2]
        assert found["others"] == len(list(whole.parameters())) - len(sizes)
        torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=1e-5, atol=1e-5)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    folder = runs.folder_with_tokenizer(tmp_path / "llama", "llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        load_sharded(str(folder), device="cpu")
