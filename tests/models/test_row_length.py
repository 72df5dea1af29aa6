"""Rotary embeddings that go by the longest row of a batch: numbers are those of one row at a time, lm-eval's, live."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import wmdp_fast as wf
from tests.support import tiny_models, tokenizers_zoo, unlearning_runs
from tests.support.thorough import every_other
from wmdp_fast import Requests
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.load import wrap_model
from wmdp_fast.models.row_length import LengthRule, length_rules
from wmdp_fast.scoring.journal import Journal
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.scores import PartialScores
from wmdp_fast.scoring.trie import score, score_trie
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from wmdp_fast.scoring.scores import Scores

# What every model here is warned of; a test of the warning expects it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* rotary angles:wmdp_fast.exceptions.WmdpFastWarning"),
    pytest.mark.filterwarnings("ignore:prompts have up to:wmdp_fast.exceptions.WmdpFastWarning"),
]

# Lengths of the questions' rows go from some 40 tokens to some 400, on both sides of what the models were trained with.
_MAX_LENGTH = 1024
_SIZES = {
    "vocab_size": tiny_models.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [3.0, 5.0, 7.0, 9.0],
    "original_max_position_embeddings": 96,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 96}
_DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
_LAYERED = {
    **_SIZES,
    "head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 64,
    "max_position_embeddings": 96,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "phi3",
        {
            **_SIZES,
            "max_position_embeddings": 2048,
            "original_max_position_embeddings": 96,
            "rope_parameters": _LONGROPE,
        },
    ),
    "dynamic": ("llama", {**_SIZES, "max_position_embeddings": 96, "rope_parameters": _DYNAMIC}),
    "yarn": ("llama", {**_SIZES, "max_position_embeddings": 384, "rope_parameters": _YARN}),
    "dynamic in some layers": (
        "gemma3_text",
        {**_LAYERED, "rope_parameters": {"full_attention": _DYNAMIC, "sliding_attention": _DEFAULT}},
    ),
    "both kinds": (
        "gemma3_text",
        {
            **_LAYERED,
            "rope_parameters": {
                "full_attention": _DYNAMIC,
                "sliding_attention": {**_LONGROPE, "original_max_position_embeddings": 200},
            },
        },
    ),
}


def build(name: str) -> PreTrainedModel:
    family, options = MODELS[name]
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options)).eval()
    return model


def some_requests() -> Requests:
    """Rows of 5 to 25 tokens, choices of one and of several tokens; several rows have the same length."""
    contexts = [[1 + (number * place) % 97 for place in range(length)] for number, length in enumerate(range(4, 22))]
    return Requests.from_tokens(contexts, [[[1], [2], [3, 4, 5], [7, 8, 9, 11]]] * len(contexts), max_length=64)


def short(name: str) -> PreTrainedModel:
    """The same model trained with rows of 12 tokens, or 16."""
    family, options = MODELS[name]
    options = json.loads(json.dumps(options).replace("384", "48").replace("96", "12").replace("200", "16"))
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options)).eval()
    return model


def scores_of(name: str, model: PreTrainedModel, **options: Any) -> Scores:
    return score_padded(wrap_model(model, tiny_models.tokenizer(), name=name), some_requests(), **options)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "moths.jsonl"
    rows = [
        {
            "question": "The moths hum. " * (3 * number + 1) + f"What do {number} moths do?",
            "choices": ["They hum.", "They sing a song", f"{number}", "none"],
            "answer": number % 4,
        }
        for number in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "template"), every_other(tuple(MODELS), ("mmlu", "mmlu_continuation")))
def test_numbers_are_those_of_lm_eval_in_batches_of_any_size(name: str, template: str, questions: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'wmdp-fast[lm-eval]'")
    from tests.support.lm_eval_runs import run_lm_eval

    tokenizer, model = tokenizers_zoo.tokenizer("llama3"), build(name)
    theirs = run_lm_eval(
        copy.deepcopy(model),
        questions,
        template=template,
        model_args={"tokenizer": tokenizer, "batch_size": 1, "max_length": _MAX_LENGTH},
    )
    expected = [value for question in theirs.loglikelihood["moths"] for value in question]
    for budget in (1, 64, 1000, 100_000):
        ours = wf.evaluate(
            model,
            tokenizer=tokenizer,
            tasks=questions,
            template=template,
            engine="padded",
            token_budget=budget,
            max_length=_MAX_LENGTH,
            progress=False,
        )
        np.testing.assert_allclose(ours.tasks["moths"].outcome.loglikelihood, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("budget", [30, 100, 100_000])
def test_batch_mates_change_nothing(name: str, budget: int) -> None:
    model = short(name)
    one_by_one, together = scores_of(name, model, token_budget=1), scores_of(name, model, token_budget=budget)
    assert together.batches < one_by_one.batches
    np.testing.assert_allclose(together.loglikelihood, one_by_one.loglikelihood, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_earlier_batches_change_nothing_and_are_not_forgotten(name: str) -> None:
    fresh, used = short(name), short(name)
    with torch.no_grad():
        used(torch.ones(1, 40, dtype=torch.long))
    before = [(rotary, _state(rotary)) for rotary in used.modules() if hasattr(rotary, "rope_type")]
    expected, found = (scores_of(name, model, token_budget=100) for model in (fresh, used))
    np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)
    assert before
    for rotary, state in before:
        assert _state(rotary) == state


def _state(rotary: torch.nn.Module) -> dict[str, Any]:
    numbers = {**vars(rotary), **rotary._buffers}
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in numbers.items()
        if name.endswith(("inv_freq", "seq_len_cached", "attention_scaling"))
    }


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_resumed_run_gives_the_same_bits(name: str, stop: int, tmp_path: Path) -> None:
    model = short(name)
    expected = scores_of(name, model, token_budget=60)
    run = {"run": name}

    def interrupt(done: int, _: int) -> None:
        finished.append(done)
        if len(finished) == stop:
            raise KeyboardInterrupt

    finished: list[int] = []
    number = some_requests().num_choices
    journal = Journal.open(tmp_path, run, resume=False)
    with pytest.raises(KeyboardInterrupt):
        scores_of(name, model, token_budget=60, progress=interrupt, partial=PartialScores.resumed(number, journal))
    journal.close()
    journal = Journal.open(tmp_path, run, resume=True)
    partial = PartialScores.resumed(number, journal)
    assert 0 < partial.finished.sum() < number
    found = scores_of(name, model, token_budget=60, partial=partial)
    journal.remove()
    np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)


@pytest.mark.parametrize("name", MODELS)
def test_the_trie_is_used_up_to_the_trained_length_alone(name: str) -> None:
    model = wrap_model(build(name), tiny_models.tokenizer(), name=name)
    drawn = some_requests()
    expected = score_padded(model, drawn)
    np.testing.assert_allclose(score_trie(model, drawn).loglikelihood, expected.loglikelihood, rtol=1e-5, atol=2e-5)
    if name == "yarn":
        return
    beyond = wrap_model(short(name), tiny_models.tokenizer(), name=name)
    with pytest.warns(WmdpFastWarning, match="depend on a row's length beyond 12 tokens; one has 24"):
        assert score(beyond, drawn).engine == "padded"


def test_rules_are_those_that_a_run_meets() -> None:
    model = build("both kinds")
    dynamic, longrope = LengthRule("dynamic", 96), LengthRule("longrope", 200)
    assert [length_rules(model, longest) for longest in (96, 97, 200, 201)] == [
        [],
        [dynamic],
        [dynamic],
        [dynamic, longrope],
    ]
    assert list(longrope.cuts(500)) == [201]
    assert list(dynamic.cuts(99)) == [96, 97, 98, 99]


def _unlearn(mode: str, forget: list[int], retain: list[int], name: str = "longrope", **settings: Any) -> Any:
    """RMU on a model trained with rows of 12 tokens, on documents of the lengths given, two in a batch."""
    rng = np.random.default_rng(0)
    corpora = [
        unlearning_runs.corpus([rng.integers(3, 100, length).tolist() for length in lengths], kind)
        for kind, lengths in (("forget", forget), ("retain", retain))
    ]
    model = short(name)
    config = RMUConfig(
        layer_id=2,
        update_layer_ids=(1, 2),
        steering_coeff=2.0,
        batch_size=2,
        max_steps=len(forget) // 2,
        mode=mode,
        **settings,
    )
    return wf.unlearn(model, forget=corpora[0], retain=corpora[1], config=config, progress=False), model


@pytest.mark.filterwarnings("ignore::wmdp_fast.exceptions.WmdpFastWarning")
def test_masked_unlearning_lets_no_document_change_another() -> None:
    unlearned, _ = _unlearn("masked", [9, 12, 5, 7], [12, 3, 4, 5])
    assert unlearned.steps == 2
    _unlearn("masked", [19, 13, 5, 7], [22, 23, 4, 5])
    with pytest.raises(ModelError, match=r"forget: one document of more than 12 tokens .* lower max_length to 12"):
        _unlearn("masked", [9, 13, 5, 7], [12, 3, 4, 5])
    with pytest.raises(ModelError, match=r"retain: one document of more than 12 .* lower retain_max_length to 12"):
        _unlearn("masked", [9, 12, 5, 7], [12, 3, 13, 5])
    _unlearn("masked", [9, 13, 5, 7], [12, 3, 4, 50], max_length=12, retain_max_length=12)


@pytest.mark.filterwarnings("ignore::wmdp_fast.exceptions.WmdpFastWarning")
@pytest.mark.parametrize("mode", ["reference", "masked"])
def test_unlearning_refuses_angles_that_depend_on_earlier_batches(mode: str) -> None:
    _unlearn(mode, [9, 12, 5, 7], [12, 3, 4, 5], "dynamic")
    with pytest.raises(ModelError, match=r"rotary angles \(dynamic\) of documents of more than 12 tokens"):
        _unlearn(mode, [9, 13, 5, 7], [12, 3, 4, 5], "dynamic")
