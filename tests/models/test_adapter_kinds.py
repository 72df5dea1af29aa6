"""Adapters of many kinds, read from disk: the numbers are those of plain PEFT, whichever way they are scored."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.reference import scoring as reference
from tests.support import tiny_models
from wmdp_fast import Requests
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.models.load import load_model
from wmdp_fast.scoring.trie import score

if TYPE_CHECKING:
    from pathlib import Path

    from tests.reference.batching import Question

peft = pytest.importorskip("peft", reason="needs peft: pip install 'wmdp-fast[peft]'")

_QUERIES = {"target_modules": ["q_proj"]}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ia3": ("IA3Config", {"target_modules": ["v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "vera": ("VeraConfig", {"r": 4, **_QUERIES}),
    "vera without projection": ("VeraConfig", {"r": 4, "save_projection": False, "projection_prng_key": 7, **_QUERIES}),
    "loha": ("LoHaConfig", {"r": 2, **_QUERIES}),
    "lokr": ("LoKrConfig", {"r": 2, **_QUERIES}),
    "oft": ("OFTConfig", {"oft_block_size": 8, **_QUERIES}),
    "hra": ("HRAConfig", {"r": 2, **_QUERIES}),
    "norms": ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "fourier": ("FourierFTConfig", {"n_frequency": 10, **_QUERIES}),
    "vblora": ("VBLoRAConfig", {"r": 2, "num_vectors": 4, "vector_length": 8, "topk": 2, **_QUERIES}),
    "adalora": ("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 10, **_QUERIES}),
    "tokens": ("TrainableTokensConfig", {"token_indices": [5, 6, 7]}),
    "lora of one layer": ("LoraConfig", {"r": 2, "layers_to_transform": [1], **_QUERIES}),
    "lora with biases": ("LoraConfig", {"r": 2, "bias": "all", "lora_dropout": 0.5, "use_rslora": True, **_QUERIES}),
    "lora and tokens": ("LoraConfig", {"r": 2, "trainable_token_indices": [5, 6], **_QUERIES}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "p-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 16}),
}


def some_questions() -> list[Question]:
    contexts = [[1 + (number * place) % 97 for place in range(length)] for number, length in enumerate(range(4, 10))]
    return [(context, [[1], [2], [3, 4, 5], [7, 8, 9, 11]]) for context in contexts]


def some_requests() -> Requests:
    return Requests.from_tokens(*map(list, zip(*some_questions(), strict=True)), max_length=64)


def plain(model: Any) -> list[float]:
    """Log-likelihoods by plain forward passes, a row in each."""
    with torch.no_grad():
        return [found for found, _ in reference.score(model, some_questions(), 64)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = tiny_models.build("llama")
    # As many rows as tokens: what is done about others is another test's.
    model.resize_token_embeddings(len(tiny_models.tokenizer()))
    model.save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::FutureWarning")
# PEFT warns of some kinds when they are made and loaded; of prompts, that they are scored on padded rows is told.
@pytest.mark.filterwarnings("ignore::wmdp_fast.exceptions.WmdpFastWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_plain_peft(base: Path, tmp_path: Path, kind: str) -> None:
    name, settings = KINDS[kind]
    torch.manual_seed(1)
    config = getattr(peft, name)(task_type="CAUSAL_LM", **settings)
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(tmp_path)
    requests = some_requests()
    without = plain(AutoModelForCausalLM.from_pretrained(base).eval())
    expected = plain(peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path))
    assert np.abs(np.subtract(expected, without)).max() > 0.05
    np.testing.assert_allclose(plain(made), expected, rtol=0, atol=1e-4)
    loaded = load_model(str(base), device="cpu", peft=str(tmp_path))
    for engine in ("auto", "padded"):
        np.testing.assert_allclose(score(loaded, requests, engine=engine).loglikelihood, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("made_for", "told"),
    [
        ("owner/Other-Model", True),
        ("owner/{base}", False),
        ("somewhere/{base}/", False),
        ("", False),
        (None, False),
        (5, False),
    ],
)
def test_an_adapter_made_for_a_model_of_another_name_is_told_of(
    base: Path, tmp_path: Path, made_for: Any, told: bool
) -> None:
    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **_QUERIES)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    named = made_for.format(base=base.name.upper()) if isinstance(made_for, str) else made_for
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": named}))
    said = f"the adapter {tmp_path} was made for 'owner/Other-Model', by its configuration, and is put on '{base}'"
    with pytest.warns(WmdpFastWarning, match=re.escape(said)) if told else nullcontext():
        assert load_model(str(base), device="cpu", peft=str(tmp_path)).warnings == ((said,) if told else ())
