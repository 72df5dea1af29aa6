"""Attention that leaves out what a configuration asks for: another one is taken, or it is said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssPreTrainedModel

import wmdp_fast as wf
from tests.support import tiny_models
from wmdp_fast import Requests
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.models.attention.requirements import left_out
from wmdp_fast.models.load import load_model, wrap_model
from wmdp_fast.models.partial import load_first_layers
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.trie import score

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

FAMILIES = {"gemma2": "soft cap", "gpt_oss": "sinks"}
SDPA = ALL_ATTENTION_FUNCTIONS["sdpa"]


def heedless(module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
    """torch's attention as transformers calls it: before 5.21 a soft cap was passed over in silence."""
    return SDPA(module, *arguments, **{name: value for name, value in options.items() if name != "softcap"})


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformers that gives torch's attention to models that ask for more."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", heedless)
    for kind in (Gemma2PreTrainedModel, GptOssPreTrainedModel):
        monkeypatch.setattr(kind, "_supports_sdpa", True)


def some_requests() -> Requests:
    contexts = [[*range(1, 12), number, 3] for number in range(20, 28)]
    return Requests.from_tokens(contexts, [[[1], [2, 3], [2, 4, 5]]] * 8, max_length=128)


def set_to(family: str, attention: str) -> PreTrainedModel:
    model = tiny_models.build(family)
    model.set_attn_implementation(attention)
    return model


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_from_files_is_run_as_its_configuration_says(family: str, tmp_path: Path) -> None:
    expected = score_padded(wrap_model(set_to(family, "eager"), tiny_models.tokenizer()), some_requests())
    set_to(family, "sdpa").save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    with pytest.warns(WmdpFastWarning, match=f"attention is eager.*leaves out the {FAMILIES[family]}.*lm-eval"):
        loaded = load_model(str(tmp_path), device="cpu")
    assert loaded.model.config._attn_implementation == "eager"
    assert any("attention is eager" in warning for warning in loaded.warnings)
    for engine in ("padded", "trie"):
        found = score(loaded, some_requests(), engine=engine)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, rtol=2e-6, atol=1e-5)
    with pytest.warns(WmdpFastWarning, match="attention is eager"):
        first = load_first_layers(str(tmp_path), 1, device="cpu")
    assert first.decoder.model.config._attn_implementation == "eager"


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_memory_is_run_as_it_is_set(family: str, tmp_path: Path) -> None:
    model = set_to(family, "sdpa").train()
    with pytest.warns(WmdpFastWarning, match=f"leaves out the {FAMILIES[family]} .* is run as it is"):
        loaded = wrap_model(model, tiny_models.tokenizer())
    with pytest.warns(WmdpFastWarning, match=f"on padded rows.*leaves out the {FAMILIES[family]}"):
        found = score(loaded, some_requests())
    assert (model.config._attn_implementation, model.training) == ("sdpa", True)
    complete = score_padded(wrap_model(set_to(family, "eager"), tiny_models.tokenizer()), some_requests())
    assert np.abs(found.loglikelihood - complete.loglikelihood).max() > 1e-3
    questions = tmp_path / "hens.jsonl"
    row = {"question": "How many?", "choices": ["1", "2", "3", "4"], "answer": 0}
    questions.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.warns(WmdpFastWarning, match="leaves out"):
        result = wf.evaluate(model, tokenizer=tiny_models.tokenizer(), tasks=questions, progress=False)
    assert result.details["attention"] == "sdpa"
    assert any(FAMILIES[family] in warning for warning in result.details["warnings"])


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3", "falcon", "mamba"])
def test_models_that_ask_for_no_more_stay_as_they_are(family: str) -> None:
    model = tiny_models.build(family)
    before = model.config._attn_implementation
    assert left_out(model) == []
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", FAMILIES)
def test_this_transformers_either_takes_eager_or_is_found_out(family: str, tmp_path: Path) -> None:
    tiny_models.build(family).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu")
    assert loaded.model.config._attn_implementation == "eager"
