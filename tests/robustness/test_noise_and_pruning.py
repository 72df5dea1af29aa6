"""Noise and pruning do to a model what they say, and leave it as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.reference import pruning as plain
from tests.support import robustness as support
from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.decoder import decoder_of, record_outputs
from wmdp_fast.robustness.attacks.noise import Noise, disturbed, disturbed_stream
from wmdp_fast.robustness.attacks.prune import Prune
from wmdp_fast.robustness.matrices import weight_matrices
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.pruning import at_random, by_magnitude, by_wanda, input_norms
from wmdp_fast.robustness.subject import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.robustness.answers import Answers
    from wmdp_fast.robustness.subject import Subject


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    made: Path = tmp_path_factory.mktemp("disturbed")
    questions = support.save_questions(made / "birds.jsonl")
    text = runs.corpus(runs.documents(1, 6))
    return support.subject(support.save_model(made / "model"), questions, sources={"unrelated": text})


def answers(attack: Noise | Prune, subject: Subject, null: bool = False, **values: object) -> Answers:
    before = fingerprint(subject.network)
    [reading] = attack.run(subject, Setting(values=values, null=null))
    assert fingerprint(subject.network) == before
    return reading.answers


@pytest.mark.parametrize("where", [{"on": "weights"}, {"on": "activations", "depth": 0.5}])
def test_noise_grows_with_sigma_and_is_the_same_for_a_seed(subject: Subject, where: dict[str, object]) -> None:
    own = subject.ask().predicted
    weak, strong = (answers(Noise(), subject, **where, sigma=sigma, seed=1).predicted for sigma in (1e-6, 1.0))
    again = answers(Noise(), subject, **where, sigma=1.0, seed=1).predicted
    other = answers(Noise(), subject, **where, sigma=1.0, seed=2).predicted
    assert np.array_equal(weak, own)
    assert np.array_equal(strong, again)
    assert not np.array_equal(strong, own)
    assert not np.array_equal(strong, other)


def test_noise_is_a_share_of_the_root_mean_square() -> None:
    weight = torch.full((200, 100), 3.0)
    moved = disturbed(weight, 0.1, torch.Generator().manual_seed(0)) - weight
    assert moved.std().item() == pytest.approx(0.3, rel=0.02)
    decoder = decoder_of(runs.model("llama"))
    rows = torch.tensor(runs.documents(5, 1, 60)).repeat(2, 1)
    rows[1, 2:] = rows[1, 2:].flip(0)
    layer = decoder.layers[1]
    with torch.no_grad():
        with record_outputs([layer]) as own:
            decoder.model(rows)
        with disturbed_stream(decoder, 1, 0.1, seed=0), record_outputs([layer]) as streams:
            decoder.model(rows)
            # As packed rows have it: one token by itself, at another place of the batch.
            decoder.model(rows[:1, :1], position_ids=torch.tensor([[0]]))
    share = (streams[0] - own[0]).square().mean(-1).sqrt() / own[0].square().mean(-1).sqrt()
    assert 0.05 < share.min() < 0.1 < share.max() < 0.2
    assert torch.allclose(streams[0][0, :2], streams[0][1, :2], atol=1e-5)
    assert torch.allclose(streams[0][0, :1], streams[1][0], atol=1e-5)


def test_pruned_weights_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 10, generator=generator)
    inputs = torch.randn(30, 10, generator=generator) * torch.arange(10)
    assert by_magnitude(weight, 0.3).tolist() == plain.by_magnitude(weight.tolist(), 0.3)
    expected = plain.by_wanda(weight.tolist(), inputs.tolist(), 0.3)
    assert by_wanda(weight, inputs.norm(dim=0), 0.3).tolist() == expected != plain.by_magnitude(weight.tolist(), 0.3)
    pruned = at_random(weight, 0.3, generator)
    assert (pruned == 0).sum() == 18
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_weights_the_first_are_pruned(dtype: torch.dtype) -> None:
    weight = torch.randint(-2, 3, (7, 9), generator=torch.Generator().manual_seed(0)).to(dtype)
    inputs = torch.ones(2, 9)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert by_magnitude(weight, share).tolist() == plain.by_magnitude(weight.tolist(), share)
        assert by_wanda(weight, inputs.norm(dim=0), share).tolist() == plain.by_wanda(
            weight.tolist(), inputs.tolist(), share
        )


def test_norms_are_those_of_all_inputs(subject: Subject) -> None:
    model = subject.network.model
    documents = runs.documents(3, 3)
    matrices = weight_matrices(subject.network)
    norms = input_norms(model, matrices, documents)
    layer = model.layers[1].mlp.down_proj
    seen: list[torch.Tensor] = []
    with layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0])), torch.no_grad():
        for document in documents:
            model(torch.tensor([document]))
    assert torch.allclose(norms["model.layers.1.mlp.down_proj.weight"], torch.cat(seen).norm(dim=0), rtol=1e-5)


@pytest.mark.parametrize(
    "values", [{"by": "magnitude"}, {"by": "wanda", "text": "unrelated"}, {"by": "chance", "seed": 1}]
)
def test_pruning_changes_answers(subject: Subject, values: dict[str, object]) -> None:
    none, half = (answers(Prune(), subject, **values, share=share).predicted for share in (0.0, 0.5))
    assert np.array_equal(none, subject.ask().predicted)
    assert not np.array_equal(half, none)


def test_what_wanda_lacks_is_said(subject: Subject, tmp_path: Path) -> None:
    related = Setting(values={"by": "wanda", "text": "related", "share": 0.1})
    assert Prune().why_not(subject, related) == "Wanda with related text needs some: pass --related"
    folder = support.save_model(tmp_path / "model", "mixtral")
    experts = support.subject(folder, support.save_questions(tmp_path / "birds.jsonl"), sources=subject.sources)
    with pytest.raises(ModelError, match="has its experts in one tensor"):
        answers(Prune(), experts, by="wanda", text="unrelated", share=0.1)
