"""A configuration that wants tuples returned changes no number, and stays as it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import wmdp_fast as wf
from tests.support import tiny_models, unlearning_runs
from tests.support.expected_warnings import VERDICTS
from tests.support.method_twins import SETTINGS
from tests.support.tries import some_requests
from wmdp_fast.models.configurations import objects_returned
from wmdp_fast.models.load import load_model, wrap_model
from wmdp_fast.models.partial import load_first_layers
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.rolling import score_windows
from wmdp_fast.scoring.trie import score_trie

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.scoring.scores import Scores

WAYS = (score_trie, score_padded, score_windows)


def all_scores(loaded: LoadedModel) -> list[Scores]:
    return [way(loaded, some_requests()) for way in WAYS]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_numbers_are_those_of_objects(family: str, tmp_path: Path) -> None:
    model: Any = tiny_models.build(family)
    expected = all_scores(wrap_model(model, tiny_models.tokenizer()))
    model.config.return_dict = False
    in_memory = wrap_model(model, tiny_models.tokenizer())
    assert isinstance(model.base_model(torch.tensor([[1, 2]])), tuple)
    found = all_scores(in_memory)
    assert model.config.return_dict is False
    model.save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["return_dict"] is False
    found += all_scores(load_model(str(tmp_path), device="cpu"))
    for one, other in zip(found, expected * 2, strict=True):
        np.testing.assert_array_equal(one.loglikelihood, other.loglikelihood)


def test_a_part_of_a_model_returns_objects(tmp_path: Path) -> None:
    model: Any = tiny_models.build("llama")
    model.config.return_dict = False
    model.save_pretrained(tmp_path)
    part: Any = load_first_layers(str(tmp_path), 1).decoder.model
    assert part(torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 32)


@VERDICTS
@pytest.mark.parametrize(
    "config",
    [
        wf.GradDiffConfig(**{**SETTINGS, "max_steps": 2}),
        wf.RMUConfig(layer_id=2, update_layer_ids=(1, 2), batch_size=2, max_steps=2),
    ],
    ids=["graddiff", "rmu"],
)
def test_a_model_in_memory_is_trained_as_with_objects(config: Any) -> None:
    found = []
    for return_dict in (True, False):
        model: Any = unlearning_runs.model("llama")
        model.config.return_dict = return_dict
        documents = {"forget": unlearning_runs.documents(1), "retain": unlearning_runs.documents(2)}
        corpora = {name: unlearning_runs.corpus(one, name) for name, one in documents.items()}
        wf.unlearn(model, **corpora, config=config, progress=False)
        assert model.config.return_dict is return_dict
        found.append(model.state_dict())
    assert all(torch.equal(one, found[1][name]) for name, one in found[0].items())


def test_configurations_are_put_back_after_an_error() -> None:
    model: Any = tiny_models.build("llama")
    model.config.return_dict = False
    with pytest.raises(ZeroDivisionError), objects_returned(model):
        assert 1 / (not model.config.return_dict)
    assert model.config.return_dict is False
