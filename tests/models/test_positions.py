"""Models with a table of positions: how long it is, and that nothing is asked beyond its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import wmdp_fast as wf
from tests.support import tiny_models
from wmdp_fast.models.positions import positions_known

if TYPE_CHECKING:
    from pathlib import Path

WIDE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
NARROW = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 24}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": NARROW,
    "gptj": NARROW | {"rotary_dim": 4},
    "codegen": NARROW | {"rotary_dim": 4, "n_head": 4},
    "ctrl": NARROW | {"dff": 16},
    "openai-gpt": NARROW,
    "gpt_neo": WIDE
    | {"max_position_embeddings": 24, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]},
    "opt": WIDE | {"max_position_embeddings": 24, "ffn_dim": 16, "word_embed_proj_dim": 16},
    "biogpt": WIDE | {"max_position_embeddings": 24, "intermediate_size": 16},
}


@pytest.mark.parametrize("family", MODELS)
def test_a_table_is_as_long_as_a_row_may_be(family: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **MODELS[family])).eval()
    assert positions_known(model) == 24
    with torch.no_grad():
        model(input_ids=torch.full((1, 24), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 25), 7))


@pytest.mark.parametrize("family", ["llama", "qwen2", "mamba"])
def test_others_compute_positions(family: str) -> None:
    assert positions_known(tiny_models.build(family)) is None


@pytest.fixture
def long(tmp_path: Path) -> dict[str, Path]:
    """A question and a text of more than the 128 positions that the model of the tests has."""
    tiny_models.build("gpt2").save_pretrained(tmp_path / "model")
    tiny_models.tokenizer().save_pretrained(tmp_path / "model")
    row = {"question": "Which is the wren? " * 60, "choices": ["this", "that"], "answer": 0}
    (tmp_path / "birds.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "letters.txt").write_text("The wren has seven eggs. " * 60, encoding="utf-8")
    return {"model": tmp_path / "model", "tasks": tmp_path / "birds.jsonl", "text": tmp_path / "letters.txt"}


@pytest.mark.filterwarnings("ignore:.*cut off at the beginning:wmdp_fast.exceptions.WmdpFastWarning")
@pytest.mark.parametrize("what", ["tasks", "text"])
@pytest.mark.parametrize("engine", ["trie", "padded"])
def test_longer_inputs_are_refused_before_anything_runs(long: dict[str, Path], what: str, engine: str) -> None:
    asked: dict[str, Any] = {what: long[what], "device": "cpu", "progress": False, "engine": engine}
    with pytest.raises(wf.ModelError, match=r"a table of 128 positions, .* may be 128 at most, not 190"):
        wf.evaluate(long["model"], max_length=190, **asked)
    result = wf.evaluate(long["model"], max_length=128, **asked)
    assert len(list(result)) == 1
