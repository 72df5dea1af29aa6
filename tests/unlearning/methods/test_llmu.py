"""LLMU beside its plain form, on documents and on prompts with responses."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import wmdp_fast as wf
from tests.reference.methods.llmu import Llmu, mean_of_answers
from tests.support import unlearning_runs as runs
from tests.support.method_twins import FAMILIES, SETTINGS, assert_same_as_plain
from wmdp_fast.unlearning.methods.llmu import LLMUConfig
from wmdp_fast.unlearning.methods.llmu_method import LLMU

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.prompts.documents import CorpusTokens
    from wmdp_fast.unlearning.method import StepInput, StepOutput

CONFIG = LLMUConfig(**SETTINGS, num_unrelated=3, unrelated_tokens=12, prompt_tokens=6)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_plain_one_on_documents(family: str) -> None:
    plain = Llmu([row[:30] for row in runs.documents(1)], [row[:30] for row in runs.documents(2)], CONFIG, runs.PAD)
    assert_same_as_plain(family, CONFIG, plain)


def answers(seed: int, prompt: int) -> CorpusTokens:
    """Documents of which so many first tokens are the prompt."""
    rows = [row for row in runs.documents(seed) if len(row) > prompt]
    return dataclasses.replace(runs.corpus(rows), prompt_lengths=np.full(len(rows), prompt))


def unlearned(model: Any, config: LLMUConfig, forget: CorpusTokens, retain: CorpusTokens) -> Any:
    return wf.unlearn(model, forget=forget, retain=retain, config=config, progress=False)


def test_of_prompts_with_responses_only_these_are_learned_and_unlearned(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    unrelated = LLMU.unrelated

    def noted(self: LLMU, given: StepInput, part: int) -> Any:
        drawn.append(unrelated(self, given, part))
        return drawn[-1]

    monkeypatch.setattr(LLMU, "unrelated", noted)
    config = dataclasses.replace(CONFIG, max_steps=1, num_unrelated=40)
    forget, retain = answers(1, 4), answers(2, 2)
    [row] = unlearned(runs.model("llama"), config, forget, retain).metrics
    rows = [forget.document(number)[:30].tolist() for number in range(2)]
    model = runs.model("llama")
    own = mean_of_answers(model, [one[:4] for one in rows], [one[4:] for one in rows], runs.PAD)
    assert row["forget_loss"] == pytest.approx(-0.5 * float(own.detach()), rel=1e-5)
    # The batch itself: each prompt forty times, with responses of the retain corpus behind it.
    ids, first = drawn[0].inputs["input_ids"][0], (drawn[0].inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    parts = [ids[begin:end].tolist() for begin, end in zip(first, [*first[1:], len(ids)], strict=True)]
    assert [one[:4] for one in parts] == [rows[0][:4]] * 40 + [rows[1][:4]] * 40
    responses = {tuple(retain.document(number)[2:30][:12].tolist()) for number in range(len(retain))}
    assert {tuple(one[4:]) for one in parts} <= responses
    assert len({tuple(one[4:]) for one in parts}) > 10
    other = mean_of_answers(model, [one[:4] for one in parts], [one[4:] for one in parts], runs.PAD)
    assert row["unrelated_nll"] == pytest.approx(float(other.detach()), rel=1e-5)
    assert row["tokens"] == sum(map(len, rows)) + sum(len(retain.document(n)[:30]) for n in range(2)) + len(ids)


def test_without_unrelated_answers_it_is_gradient_difference_with_a_divergence() -> None:
    config = dataclasses.replace(CONFIG, unrelated_weight=0.0, forget_weight=0.3)
    found = runs.unlearn(runs.model("llama"), config)
    same = wf.GradDiffConfig(**SETTINGS, forget_weight=0.3, retain_loss="kl")
    for name, tensor in runs.unlearn(runs.model("llama"), same).tensors.items():
        assert torch.equal(found.tensors[name], tensor)
    assert "unrelated_nll" not in found.metrics[0]


def test_a_bos_is_no_part_of_an_answer_and_an_empty_corpus_is_refused() -> None:
    empty = runs.corpus([[1]] * 20, "only BOS")
    with pytest.raises(ValueError, match="the retain corpus only BOS has no text to draw unrelated answers from"):
        unlearned(runs.model("llama"), CONFIG, runs.corpus(runs.documents(1)), empty)


def test_it_is_killed_and_resumed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = runs.folder_with_tokenizer(tmp_path / "base", "llama")
    config = dataclasses.replace(CONFIG, max_steps=5, save_every=2, grad_accum=2)
    step = LLMU.step

    def interrupted(self: LLMU, given: StepInput) -> StepOutput:
        if given.index == 3:
            raise KeyboardInterrupt
        return step(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(LLMU, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.unlearn(base, config, output=tmp_path / "out")
    lines: list[str] = []
    runs.unlearn(base, config, output=tmp_path / "out", resume=True, note=lines.append)
    runs.unlearn(base, config, output=tmp_path / "straight")
    for name in ("delta.safetensors", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert "forget: documents have no prompts, so the first 6 tokens of each, and at most half, are given" in str(lines)
    assert "after 5 steps of LLMU (Yao et al. 2023" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_unrelated": 0}, "num_unrelated must be a whole number of at least 1"),
        ({"unrelated_weight": -1}, "unrelated_weight must be a number of at least 0"),
        ({"reduction": "batch_mean_padded"}, "reduction of llmu must be one of sequence_mean"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLMUConfig(**settings)
