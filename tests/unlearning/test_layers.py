"""Profiles of layers against slow ones, and what is suggested from them."""

from __future__ import annotations

import json
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from tests.reference import layers as reference
from tests.support import tiny_models
from wmdp_fast import demo
from wmdp_fast.cli import main
from wmdp_fast.exceptions import ModelError
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.unlearning.rmu.profile import LayerProfile, profile_layers, separability, suggest


def corpus(name: str, documents: list[list[int]]) -> CorpusTokens:
    offsets = np.cumsum([0, *map(len, documents)])
    return CorpusTokens(name, np.concatenate(documents).astype(np.int64), offsets, "")


def random_documents(seed: int, low: int, high: int, count: int = 9) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[1, *rng.integers(low, high, rng.integers(1, 40)).tolist()] for _ in range(count)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "qwen2"])
@pytest.mark.parametrize("token_budget", [1, 100, 4096])
def test_every_figure_is_that_of_the_slow_profile(family, token_budget):
    loaded = tiny_models.loaded(family)
    forget, retain = random_documents(0, 10, 400), random_documents(1, 200, 600, 8)
    profile = profile_layers(loaded, corpus("f", forget), corpus("r", retain), token_budget=token_budget)
    assert len(profile.layers) == 2
    for layer, found in enumerate(profile.layers):
        assert astuple(found)[1:] == pytest.approx(reference.profile(loaded.model, layer, forget, retain), rel=1e-4)
    assert (profile.forget_tokens, profile.retain_tokens) == (sum(map(len, forget)), sum(map(len, retain)))
    assert loaded.model.training is False


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
)
def test_separability_is_the_area_under_the_curve(forget, retain):
    ours = separability(np.array(forget, dtype=np.float32), np.array(retain, dtype=np.float32))
    assert ours == pytest.approx(reference.auc(forget, retain))
    assert ours == pytest.approx(mannwhitneyu(forget, retain).statistic / (len(forget) * len(retain)))


def layer(number: int, separability: float) -> LayerProfile:
    return LayerProfile(number, 2.0 + number, 3.0, 300.0, 300.0, 0.1, separability)


def test_the_lowest_layer_that_is_as_good_as_the_best_of_the_lower_half_is_suggested():
    figures = [0.99, 0.5, 0.5, 0.7, 0.8, 0.89, 0.895, 0.9, 0.85, 0.99, 1.0, 1.0, 1.0, 1.0]
    layers = [layer(number, figure) for number, figure in enumerate(figures)]
    assert suggest(layers, 5.0) == (5, (3, 4, 5), 35.0)
    assert suggest(layers[:1], 5.0) == (0, (0,), 10.0)
    assert suggest(layers[:2], 1.0) == (1, (0, 1), 3.0)


def test_of_long_corpora_only_as_much_is_read_as_was_asked_for():
    loaded = tiny_models.loaded("llama")
    documents = random_documents(2, 10, 600, 12)
    options = {"num_documents": 4, "max_length": 16}
    profile = profile_layers(loaded, corpus("f", documents), corpus("r", documents[::-1]), **options)
    assert profile.forget_tokens == sum(min(len(one), 16) for one in documents[:4])
    assert profile.retain_tokens == sum(min(len(one), 16) for one in documents[::-1][:4])


def test_a_corpus_that_is_too_small_is_an_error_and_so_is_overflow():
    loaded = tiny_models.loaded("llama")
    good = corpus("good", random_documents(3, 10, 600, 4))
    with pytest.raises(ValueError, match="short has fewer than two documents of two tokens"):
        profile_layers(loaded, corpus("short", [[1, 2], [3], [4]]), good)
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("inf"))
    broken = tiny_models.wrap_model(model, tiny_models.tokenizer())
    with pytest.raises(ModelError, match="the output of layer 1 is not finite"):
        profile_layers(broken, good, good)


def test_the_command_profiles_the_demo(capsys):
    command = ["layers", str(demo.model_path()), "--forget", str(demo.corpus_path("forget"))]
    command += ["--retain", str(demo.corpus_path("retain")), "--num-documents", "24", "--dtype", "float32"]
    assert main([*command, "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)
    assert [one["layer"] for one in profile["layers"]] == list(range(6))
    assert profile["layers"][4]["separability"] > 0.9
    assert profile["steering_coeff"] == pytest.approx(5 * profile["layers"][profile["layer_id"]]["forget_norm"])
    assert main([*command, "--factor", "2"]) == 0
    table = capsys.readouterr().out
    assert f"--layer-id {profile['layer_id']} --update-layer-ids" in table
    assert "arXiv:2408.06223" in table
    assert len([line for line in table.splitlines() if line.lstrip("> ")[:1].isdigit()]) == 6
