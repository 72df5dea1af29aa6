"""Unlearning without padding beside the same with it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, LlamaModel

import wmdp_fast as wf
from tests.support import unlearning_runs as runs
from tests.support.packed_documents import CONFIG, assert_alike
from wmdp_fast.unlearning.batches import packed_documents, padded_documents
from wmdp_fast.unlearning.rmu.method import RMU

CPU = torch.device("cpu")


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=7), st.integers(1, 4), st.integers(1, 9))
def test_both_kinds_of_batches_hold_the_same_tokens(lengths: list[int], batch_size: int, max_length: int) -> None:
    rng = np.random.default_rng(sum(lengths))
    corpus = runs.corpus([rng.integers(3, 99, length).tolist() for length in lengths])
    for index in range(-(-len(lengths) // batch_size)):
        if not any(lengths[index * batch_size : (index + 1) * batch_size]):
            continue
        cut = {"batch_size": batch_size, "max_length": max_length, "device": CPU}
        padded = padded_documents(corpus, index, pad_id=runs.PAD, **cut)
        packed = packed_documents(corpus, index, **cut)
        real = padded.attention_mask.bool()
        assert packed.inputs["input_ids"][0].tolist() == padded.inputs["input_ids"][real].tolist()
        assert packed.attention_mask.all()
        sizes = real.sum(dim=1).tolist()
        assert packed.inputs["position_ids"][0].tolist() == [place for size in sizes for place in range(size)]
        assert packed.layout is not None
        ends = np.cumsum(sizes)
        segments = [[end - size, end, end, 0] for end, size in zip(ends, sizes, strict=True) if size]
        assert packed.layout.segments.tolist() == segments
        assert packed.key == padded.key
        assert packed.num_tokens == sum(sizes)


@pytest.mark.parametrize("family", runs.FAMILIES)
def test_a_run_ends_where_one_with_padding_does(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    packed = runs.unlearn(runs.model(family), CONFIG, note=notes.append)
    assert not [note for note in notes if "padded" in note]
    monkeypatch.setattr(RMU, "why_padded", lambda _self, _padded, _packed: "so that it is")
    padded = runs.unlearn(runs.model(family), CONFIG, note=notes.append)
    assert "documents are padded: so that it is" in notes
    assert_alike(packed, padded)


@pytest.mark.parametrize("family", runs.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_branches_that_do_not_differ_yet_give_the_same_bits(family: str, dtype: torch.dtype) -> None:
    result = runs.unlearn(runs.model(family, dtype), CONFIG)
    assert result.metrics[0]["retain_loss"] == result.metrics[0]["retain_loss_masked"] == 0.0
    assert result.metrics[-1]["retain_loss"] > 0


def test_a_model_that_cannot_be_packed_is_padded_and_that_is_said(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runs.saved_model(tmp_path / "model", "llama")
    for name, packed in (("packed", True), ("padded", False)):
        notes: list[str] = []
        if not packed:
            monkeypatch.setattr(LlamaModel, "_can_set_attn_implementation", lambda _self: False)
        runs.unlearn(model, CONFIG, note=notes.append, output=tmp_path / name)
        assert json.loads((tmp_path / name / "unlearn.json").read_text())["packed"] is packed
        assert ("documents are padded" in "\n".join(notes)) is not packed


def test_positions_that_count_padding_are_noticed() -> None:
    config = AutoConfig.for_model(
        "gpt2", eos_token_id=runs.PAD, vocab_size=runs.VOCABULARY, n_embd=32, n_layer=4, n_head=4, n_positions=64
    )
    torch.manual_seed(0)
    notes: list[str] = []
    settings_ = dataclasses.replace(CONFIG, parameters="mlp.c_proj")
    with torch.no_grad():
        model = AutoModelForCausalLM.from_config(config)
        model.transformer.wpe.weight.mul_(100)
    with pytest.warns(wf.WmdpFastWarning, match="the model has dropout"):
        wf.unlearn(
            model,
            forget=runs.corpus(runs.documents(0)),
            retain=runs.corpus(runs.documents(1)),
            config=settings_,
            progress=False,
            note=notes.append,
        )
    assert any("packed, activations of a token differ by" in note for note in notes)
