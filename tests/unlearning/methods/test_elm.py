"""ELM against the plain algorithm, which keeps nothing; what it keeps, what it writes, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

import wmdp_fast as wf
from tests.reference.methods import training
from tests.reference.methods.elm import Erasing
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import ModelError
from wmdp_fast.unlearning.language_model import LanguageModel
from wmdp_fast.unlearning.methods.elm import ELMConfig
from wmdp_fast.unlearning.methods.erasure import Erasure

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.unlearning.method import StepInput, StepOutput

CONFIG = ELMConfig(
    update_layer_ids=None,
    parameters="mlp.down_proj",
    expert_prefix="By an expert:",
    novice_prefix="By a beginner:",
    topic_change=". Now to birds.",
    eta=20.0,
    top_k=8,
    fluency_tokens=3,
    learning_rate=1e-3,
    batch_size=2,
    max_steps=8,
    max_length=30,
    retain_max_length=30,
    save_every=3,
    seed=3,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizers_zoo.tokenizer("llama3")


def model(family: str) -> Any:
    made = runs.model(family)
    made.resize_token_embeddings(640)
    return made


def documents(seed: int, bos: int) -> list[list[int]]:
    """Every third begins with a BOS."""
    return [[bos, *row] if at % 3 == 0 else row for at, row in enumerate(runs.documents(seed))]


def unlearned(model: Any, tokenizer: Any, config: ELMConfig, **options: Any) -> wf.UnlearnResult:
    forget, retain = (runs.corpus(documents(seed, tokenizer.bos_token_id), str(seed)) for seed in (1, 2))
    return wf.unlearn(
        model, forget=forget, retain=retain, tokenizer=tokenizer, config=config, progress=False, **options
    )


def plain_of(tokenizer: Any, config: ELMConfig) -> Erasing:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    return Erasing(
        *(ids(text) for text in ("By an expert:\n", "By a beginner:\n", "By an expert", "By a beginner")),
        change=ids(config.topic_change),
        eta=config.eta,
        top_k=config.top_k,
        temperature=config.temperature,
        gamma=config.fluency_gamma,
        tokens=config.fluency_tokens,
        seed=config.seed,
        bos=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
    )


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text"])
def test_losses_and_weights_are_those_of_the_plain_algorithm(family: str, tokenizer: Any) -> None:
    result = unlearned(model(family), tokenizer, CONFIG)
    plain = plain_of(tokenizer, CONFIG)
    record = training.train(
        model(family),
        documents(1, tokenizer.bos_token_id),
        documents(2, tokenizer.bos_token_id),
        plain,  # type: ignore[arg-type]
        trained="down_proj",
        learning_rate=CONFIG.learning_rate,
        steps=8,
        batch_size=2,
        max_length=30,
        pad=runs.PAD,
        warmup_steps=1,
    )
    for name, losses in (
        ("forget_loss", record.forget_losses),
        ("retain_loss", record.retain_losses),
        ("fluency_loss", plain.fluency_losses),
    ):
        found = torch.tensor([row[name] for row in result.metrics])
        torch.testing.assert_close(found, torch.tensor(losses), rtol=1e-5, atol=1e-5)
    before, after = (dict(one.base_model.named_parameters()) for one in (model(family), record.model))
    assert max(float((after[name] - before[name]).detach().abs().max()) for name in result.tensors) > 3e-3
    for name, tensor in result.tensors.items():
        torch.testing.assert_close(tensor, after[name].detach(), rtol=0, atol=1e-5)


def test_a_killed_run_resumes_to_the_same_bytes_without_the_original_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    model("llama").save_pretrained(tmp_path / "base")
    config = dataclasses.replace(CONFIG, max_steps=6)
    straight = unlearned(tmp_path / "base", tokenizer, config, output=tmp_path / "straight")
    step = Erasure.step

    def interrupted(self: Erasure, given: StepInput) -> StepOutput:
        if given.index == 5:
            raise KeyboardInterrupt
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(LanguageModel, "originals", None)  # what it said is kept
            return step(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(Erasure, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unlearned(tmp_path / "base", tokenizer, config, output=tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Erasure, "prepare", None)
        resumed = unlearned(tmp_path / "base", tokenizer, config, output=tmp_path / "out", resume=True)
    assert resumed.findings == straight.findings
    for path in (tmp_path / "straight").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "ELM, erasure of language memory" in card
    assert "so that it stays fluent" in card


def test_factors_are_trained_in_the_layers_named_and_terms_without_weight_left_out(tokenizer: Any) -> None:
    config = dataclasses.replace(CONFIG, fluency_weight=0, retain_weight=0, max_steps=3, update_layer_ids=(1, 2))
    result = unlearned(model("llama"), tokenizer, dataclasses.replace(config, lora="r=2,alpha=4,dropout=0.1"))
    assert {"retain_loss", "fluency_loss"}.isdisjoint(result.metrics[0])
    assert {name.split(".")[1] for name in result.tensors} == {"1", "2"}
    # Factors begin as the original model, whose targets are the same.
    plain = unlearned(model("llama"), tokenizer, dataclasses.replace(config, max_steps=1))
    assert result.metrics[0]["forget_loss"] == pytest.approx(plain.metrics[0]["forget_loss"], abs=1e-5)


def test_all_parameters_are_those_of_the_layers_that_are_named(tokenizer: Any) -> None:
    config = dataclasses.replace(CONFIG, parameters="all", max_steps=1, fluency_weight=0, update_layer_ids=(1,))
    made = model("llama")
    of_layer = {f"layers.1.{name}" for name, _ in made.model.layers[1].named_parameters()}
    assert unlearned(made, tokenizer, config).tensors.keys() == of_layer
    config = dataclasses.replace(config, update_layer_ids=(0, 1, 2, 3))
    assert "embed_tokens.weight" in unlearned(made, tokenizer, config).tensors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update_layer_ids": (4,)}, r"layer 4 does not exist: the model has 4 layers, 0 to 3"),
        ({"fluency_tokens": 500}, r"have up to 5\d\d tokens, and .* takes 128: lower max_length or fluency_tokens"),
    ],
)
def test_what_the_model_cannot_do_is_refused(settings: dict[str, Any], message: str, tokenizer: Any) -> None:
    with pytest.raises((ValueError, ModelError), match=message):
        unlearned(model("llama"), tokenizer, dataclasses.replace(CONFIG, **settings))


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match="has no tokenizer, which ELM needs for its prefixes"):
        runs.unlearn(runs.model("llama"), CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update_layer_ids": ()}, "update_layer_ids is empty"),
        ({"novice_prefix": CONFIG.expert_prefix}, "are the same, so there would be nothing to erase"),
        ({"topic_change": " "}, "topic_change is empty"),
        ({"forget_weight": 0}, "forget_weight must be a number above 0"),
        ({"top_k": 256}, "top_k must be at most 255"),
        ({"reduction": "sum"}, "reduction of elm must be one of sequence_mean"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **settings)
