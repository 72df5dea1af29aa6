"""Directions in the residual stream: found, taken out by hooks and by weights, and what that brings back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.reference import ablation as plain_ablation
from tests.reference.residual_stream import residual_stream as plain_stream
from tests.support import robustness as support
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.load import wrap_model
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.robustness import directions
from wmdp_fast.robustness.ablated_checkpoint import save_ablated
from wmdp_fast.robustness.attacks.ablate import Ablate
from wmdp_fast.robustness.blocks import ablated_in_turn, blocks_of, writing_blocks
from wmdp_fast.robustness.folding import fold, fold_blocks
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.residual_stream import changed_stream, residual_stream
from wmdp_fast.robustness.subject import fingerprint
from wmdp_fast.robustness.utility import Utility
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions
from wmdp_fast.scoring.local import LocalModel

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.robustness.protocol import Budget
    from wmdp_fast.robustness.subject import Subject


def opened(family: str) -> LocalModel:
    loaded = wrap_model(runs.model(family), tokenizers_zoo.tokenizer("llama3"))
    return LocalModel(loaded, LoadOptions(), ScoreOptions())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "mixtral"])
def test_the_stream_is_that_of_rows_by_themselves(family: str) -> None:
    model = opened(family)
    rows = [*runs.documents(3, count=9), [5, 6, 7], [5, 6, 7]]
    from_end = [list(range(1, len(row) + 1, 1 + place % 3)) for place, row in enumerate(rows)]
    found = residual_stream(model, rows, from_end)
    expected = plain_stream(model.loaded.model, rows, from_end)
    assert len(found) == runs.LAYERS
    for one, other in zip(found, expected, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a row of 3 tokens has none 4 from its end"):
        residual_stream(model, [[5, 6, 7]], [[4]])


def test_of_rows_what_tells_something_is_kept() -> None:
    rows = [[1, 2, 3, 4, 5], [1, 2, 3, 9], [1, 2, 3, 9], [1, 2, 7, 8, 9, 10, 11]]
    assert directions.telling_tokens(rows, 4) == [[1, 2], [1], [1], [1, 2, 3, 4]]


def test_directions_are_those_of_plain_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(40, 8, generator=generator, dtype=torch.float64).float()
    others = torch.randn(30, 8, generator=generator, dtype=torch.float64).float() + 1
    with_outlier = torch.cat([ours, torch.full((1, 8), 1000.0)])
    found = directions.difference_of_means(with_outlier, others)
    expected = ours.numpy().mean(0) - others.numpy().mean(0)
    np.testing.assert_allclose(found.vector.numpy(), expected, atol=1e-5)
    assert found.strength == pytest.approx(np.linalg.norm(expected) / np.linalg.norm(others.numpy(), axis=1).mean())
    for rows in (ours, ours[:5]):  # more of them than dimensions, and fewer
        component = directions.first_component(rows)
        _, singular, vectors = np.linalg.svd(rows.numpy() - rows.numpy().mean(0), full_matrices=False)
        assert abs(directions.unit_of(component.vector).numpy() @ vectors[0]) == pytest.approx(1, abs=1e-5)
        assert component.strength == pytest.approx(singular[0] ** 2 / (singular**2).sum(), rel=1e-4)


def test_a_direction_is_projected_out_or_a_difference_taken_off() -> None:
    stream, vector = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8.0)
    left = directions.projecting_out(vector)(stream)
    assert float((left @ vector).abs().max()) < 1e-4
    torch.testing.assert_close(stream - left, (stream @ vector / 140)[..., None] * vector)
    torch.testing.assert_close(directions.subtracting(vector)(stream), stream - vector)
    with pytest.raises(ValueError, match="must have a length"):
        directions.projecting_out(torch.zeros(8))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 9, 14, 3, 77]])).logits


def blocks(layer: torch.nn.Module) -> list[torch.nn.Module]:
    """What adds to the stream: attention and the feed-forward block."""
    return [module for name, module in layer.named_children() if name in ("self_attn", "attention", "mlp")]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "qwen3_moe", "gpt2"])
def test_folding_equals_hooks_on_what_is_written(family: str) -> None:
    model = gpt2() if family == "gpt2" else runs.model(family)
    layers = model.transformer.h if family == "gpt2" else model.base_model.layers
    vector = torch.randn(32, generator=torch.Generator().manual_seed(2))
    project, before = directions.projecting_out(vector), logits(model)
    writing = torch.nn.ModuleList(
        [one for layer in layers for one in ([layer.attn, layer.mlp] if family == "gpt2" else blocks(layer))]
    )
    with changed_stream(writing, dict.fromkeys(range(len(writing)), project)):
        expected = logits(model)
    fold(model, vector)
    folded = logits(model)
    assert float((folded - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert float((folded - before).abs().max()) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "qwen3_moe", "gemma2", "olmo2", "gpt2"])
def test_folding_into_single_blocks_equals_hooks_on_them(family: str) -> None:
    model = gpt2() if family == "gpt2" else runs.model(family)
    layers = model.transformer.h if family == "gpt2" else model.base_model.layers
    generator = torch.Generator().manual_seed(2)
    found = {place: torch.linalg.qr(torch.randn(32, 3, generator=generator)).Q.T for place in (0, 1, 3)}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros in a new model
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    writing = torch.nn.ModuleList([block for layer in layers[:2] for block in writing_blocks(layer)])
    before, weights = logits(model), {name: one.clone() for name, one in model.named_parameters()}
    with changed_stream(writing, {place: directions.projecting_out_all(one) for place, one in found.items()}):
        expected = logits(model)
    names = fold_blocks(model, [0, 1], found)
    folded = logits(model)
    assert float((folded - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert float((folded - before).abs().max()) > 1e-2
    assert {name for name, one in model.named_parameters() if not torch.equal(one, weights[name])} == set(names)


def test_what_is_between_a_blocks_matrices_and_its_output_is_refused() -> None:
    model = runs.model("llama")
    mlp = model.base_model.layers[1].mlp
    mlp.register_forward_hook(lambda _module, _inputs, output: output * torch.arange(32.0))
    with pytest.raises(
        ModelError, match=r"a block of layer 1 of .* has more between its output matrices and its output"
    ):
        fold_blocks(model, [1], {1: torch.full((1, 32), 32**-0.5)})


def gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_where_norms_stand_between_folding_is_refused(family: str) -> None:
    model = runs.model(family)
    with torch.no_grad():  # norms that were never trained keep directions
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter.add_(torch.rand_like(parameter))
    with pytest.raises(ModelError, match=r"layer 0 of .* has more between its output matrices and the residual stream"):
        fold(model, torch.ones(32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("ablated")
    support.save_model(made / "base")
    model = AutoModelForCausalLM.from_pretrained(made / "base")
    with torch.no_grad():
        for layer in model.model.layers[1:3]:
            layer.mlp.down_proj.weight.add_(0.05 * torch.randn(layer.mlp.down_proj.weight.shape))
    model.save_pretrained(made / "model")
    for file in (made / "base").glob("tokenizer*"):
        (made / "model" / file.name).write_bytes(file.read_bytes())
    support.save_questions(made / "birds.jsonl")
    support.save_questions(made / "kept.jsonl", 20)
    return made


def subject_of(folder: Path, model: str = "model", **fields: object) -> Subject:
    return support.subject(folder / model, folder / "birds.jsonl", **fields)


def settings_of(budget: Budget, direction: str) -> list[Setting]:
    return [one for one in Ablate().settings(budget, 0) if one.values["direction"] == direction]


def test_directions_of_layers_that_unlearning_left_alone_are_left_out(folder: Path) -> None:
    subject = subject_of(folder, original=support.model_in(folder / "base").open)
    strengths = [one.strength for one in directions.found_directions(subject, "base")]
    assert strengths[0] == 0.0
    assert all(strength > 0 for strength in strengths[1:])  # layer 1 is the first that was changed
    each, onward, *_ = settings_of("quick", "base")
    [reading] = Ablate().run(subject, each)
    assert reading.figures == {"strengths": strengths}
    assert (reading.answers.predicted != subject.ask().predicted).any()
    strongest = np.sort(np.argsort(strengths)[-2:]).tolist()
    assert [one.figures["layer"] for one in Ablate().run(subject, onward)] == strongest


def test_blocks_are_ablated_one_after_the_other(folder: Path) -> None:
    base = support.model_in(folder / "base")
    subject = subject_of(folder, original=base.open)
    other, rows = base.open().loaded.model, directions.question_rows(subject.questions, subject.model)
    found = list(ablated_in_turn(subject, [1, 2], 2))
    assert [(one.layer, sorted(one.changes)) for one in found] == [(1, [1]), (2, [1, 2, 3])]
    # Attention of layer 1 is as it was. The others are those of the plain algorithm.
    ours, theirs = (
        [block for layer in model.model.layers[1:3] for block in (layer.self_attn, layer.mlp)][1:]
        for model in (subject.network, other)
    )
    wanted = directions.telling_tokens(rows, subject.model.max_length)
    expected = plain_ablation.projections_in_turn(subject.network, other, ours, theirs, rows, wanted, 2)
    stream = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for place, projection in enumerate(expected, 1):
        torch.testing.assert_close(found[-1].changes[place](stream), stream - stream @ projection, atol=1e-3, rtol=1e-3)
    before = fingerprint(subject.network)
    setting, _ = (one for one in settings_of("quick", "base") if one.values["way"] == "blocks")
    readings = list(Ablate().run(subject, setting))
    assert [one.figures["layer"] for one in readings] == [1, 2]
    null = Setting(values={**setting.values, "direction": "random", "count": 3, "seed": 0}, null=True)
    [random] = Ablate().run(subject, null)
    assert len(random.figures["reported"]) == 3
    assert fingerprint(subject.network) == before


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "qwen3_moe", "gemma2", "olmo2", "gpt2"])
def test_blocks_that_write_are_found(family: str) -> None:
    layer = gpt2().transformer.h[0] if family == "gpt2" else runs.model(family).base_model.layers[0]
    assert writing_blocks(layer) == ([layer.attn, layer.mlp] if family == "gpt2" else blocks(layer))


def test_other_questions_and_texts_are_compared_with(folder: Path) -> None:
    other = Questions.from_options(PromptOptions(tasks=str(folder / "kept.jsonl"), template="mmlu"), split=False)
    subject = subject_of(
        folder, test=Utility(questions=other), sources={"unrelated": runs.corpus(runs.documents(5, count=6))}
    )
    found = {
        name: directions.found_directions(subject, name)[2].vector for name in ("utility questions", "unrelated text")
    }
    ours = directions.activations(subject.model, directions.question_rows(subject.questions, subject.model))[2]
    rows = [other.own(subject.model)[1].context(place).tolist() for place in range(20)]
    theirs = directions.activations(subject.model, rows)[2]
    torch.testing.assert_close(
        found["utility questions"], directions.difference_of_means(ours, theirs).vector, rtol=0, atol=0
    )
    assert (found["unrelated text"] != found["utility questions"]).any()
    [reading] = Ablate().run(subject, settings_of("quick", "utility questions")[0])
    assert reading.utility is not None
    assert set(reading.utility) == {"acc"}


def test_of_random_directions_the_best_is_the_null_and_all_are_told(folder: Path) -> None:
    subject = subject_of(folder)
    null = Setting(values={"direction": "random", "way": "all", "count": 4, "seed": 0}, null=True)
    [reading] = Ablate().run(subject, null)
    told = reading.figures["choosing"]
    assert len(told) == len(reading.figures["reported"]) == 4
    assert reading.answers.correct[subject.questions.is_for_choosing].mean() == max(told)
    [again] = Ablate().run(subject, null)
    assert (again.answers.predicted == reading.answers.predicted).all()
    assert [one.values["count"] for one in Ablate().settings("quick", 0) if one.null] == [20, 5, 5]
    assert [one.values["count"] for one in Ablate().settings("standard", 0) if one.null] == [100, 20, 20, 20, 20]


def test_what_is_missing_is_said(folder: Path) -> None:
    subject = subject_of(folder)
    reasons = {Ablate().why_not(subject, one) for one in Ablate().settings("full", 0)}
    assert reasons == {
        None,
        "it compares with the model before unlearning: pass --base",
        "it compares with other questions: pass --utility",
        "it compares with other text: pass --related",
        "it compares with other text: pass --unrelated",
    }
    of_base = Ablate().why_not(replace(subject, role="base"), settings_of("quick", "base")[0])
    assert of_base == "it compares the unlearned model with the one before; this is the base one"
    same = subject_of(folder, "base", original=support.model_in(folder / "base").open)
    with pytest.raises(ModelError, match="it is the same model"):
        list(Ablate().run(same, settings_of("quick", "base")[0]))


def test_every_way_leaves_the_model_as_it_was(folder: Path) -> None:
    subject = subject_of(folder)
    before = fingerprint(subject.network)
    settings = settings_of("full", "first component")
    assert [one.values["way"] for one in settings] == ["each", "onward", "all", "one", "weights"]
    for setting in settings[1:]:
        setting = Setting(values=dict(setting.values) | {"layers": 1})
        [reading] = Ablate().run(subject, setting)
        assert (reading.answers.predicted != subject.ask().predicted).any(), setting
        assert fingerprint(subject.network) == before


def test_an_ablated_checkpoint_is_the_folded_model(folder: Path, tmp_path: Path) -> None:
    asked = {"tasks": folder / "birds.jsonl", "eval_options": {"template": "mmlu"}, "device": "cpu"}
    saved = save_ablated(folder / "model", tmp_path / "ablated", layer=2, base=folder / "base", **asked)
    subject = subject_of(folder, original=support.model_in(folder / "base").open)
    fold(subject.network, directions.found_directions(subject, "base")[2].vector)
    read = AutoModelForCausalLM.from_pretrained(saved)
    for (name, one), (_, other) in zip(read.named_parameters(), subject.network.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(ValueError, match="layer 9 of a model with layers 0 to 3"):
        save_ablated(folder / "model", tmp_path / "none", layer=9, **asked)


def test_blocks_of_a_checkpoint_answer_as_those_by_hooks(folder: Path, tmp_path: Path) -> None:
    asked = {"tasks": folder / "birds.jsonl", "eval_options": {"template": "mmlu"}, "device": "cpu"}
    base = folder / "base"
    saved = save_ablated(folder / "model", tmp_path / "ablated", layer=2, components=2, base=base, **asked)
    subject = subject_of(folder, original=support.model_in(base).open)
    *_, ablated = ablated_in_turn(subject, [1, 2, 3], 2)
    first = {
        place: ablated.changes[place] for place in (1, 2, 3)
    }  # of layers 1 and 2; attention of layer 1 is as it was
    with changed_stream(blocks_of(subject.model, [1, 2]), first):
        expected = logits(subject.network)
    found = logits(AutoModelForCausalLM.from_pretrained(saved))
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    for wrong, message in (
        ({"layer": 0, "base": base}, "layer 0 is as in the base; layers that differ are 1, 2, 3"),
        ({"layer": 1}, "needs base"),
    ):
        with pytest.raises(ValueError, match=message):
            save_ablated(folder / "model", tmp_path / "none", components=2, **wrong, **asked)
