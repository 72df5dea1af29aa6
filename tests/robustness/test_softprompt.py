"""Soft prompts: what is asked behind the vectors, what is trained, and on which questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.support import robustness as support
from wmdp_fast.robustness.attacks.catalog import attacks_of
from wmdp_fast.robustness.attacks.softprompt import SoftPrompt, _Soft
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.subject import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.robustness.subject import Subject

VALUES = {"vectors": 3, "rate": 0.3, "steps": 12, "answers": "right", "seed": 0}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    made: Path = tmp_path_factory.mktemp("softened")
    return support.subject(support.save_model(made / "model"), support.save_questions(made / "birds.jsonl"))


def test_vectors_stand_in_front_of_the_prompt(subject: Subject) -> None:
    soft = _Soft.drawn(subject, 3, np.random.default_rng(0))
    own = soft.requests.context(0).tolist()
    begins = int(own[0] == subject.model.tokenizer.bos_token_id)
    assert soft.context(subject, 0) == [*own[:begins], *soft.tokens, *own[begins:]]
    # The model as it is, given the vectors as embeddings.
    row = torch.tensor([soft.context(subject, 0)])
    with torch.no_grad():
        embedded = subject.network.get_input_embeddings()(row)
        embedded[0, begins : begins + 3] = soft.vectors
        expected = subject.network(inputs_embeds=embedded).logits[0, -1].log_softmax(dim=-1)
    answer = soft.requests.continuation(0).tolist()
    assert len(answer) == 1
    assert soft.loss(subject, [0], [0]).item() == pytest.approx(-float(expected[answer[0]]), rel=1e-4)
    first = soft.requests.choice_offsets[:2].tolist()
    letters = [soft.requests.continuation(choice).tolist()[0] for choice in range(*first)]
    assert soft.ask(subject).predicted[0] == int(expected[letters].argmax())


def test_a_model_that_is_being_trained_is_asked_without_dropout(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft = _Soft.drawn(subject, 3, np.random.default_rng(0))
    expected = soft.loss(subject, [0], [0])
    for layer in subject.network.model.layers:
        monkeypatch.setattr(layer.self_attn, "attention_dropout", 0.5)
    subject.network.train()
    try:
        found = soft.loss(subject, [0], [0])
        assert subject.network.training
    finally:
        subject.network.eval()
    assert found.requires_grad
    assert found.item() == expected.item()


def test_questions_for_choosing_alone_are_learned_from(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    loss = _Soft.loss

    def seeing(self, of, questions, gold):
        seen.update(questions)
        return loss(self, of, questions, gold)

    monkeypatch.setattr(_Soft, "loss", seeing)
    before, plain = fingerprint(subject.network), subject.ask()
    readings = list(SoftPrompt().run(subject, Setting(values=VALUES)))
    assert seen
    assert subject.questions.is_for_choosing[sorted(seen)].all()
    assert [one.step for one in readings] == [0, 5, 10, 12]
    assert readings[-1].figures["passes"] == 12 * 8
    chosen = subject.questions.is_for_choosing
    assert readings[-1].figures["loss"] < readings[1].figures["loss"]
    assert readings[-1].answers.correct[chosen].mean() > plain.correct[chosen].mean()
    assert fingerprint(subject.network) == before
    assert np.array_equal(subject.ask().predicted, plain.predicted)
    [*_, null] = SoftPrompt().run(subject, Setting(values=VALUES | {"answers": "shuffled"}, null=True))
    assert not np.array_equal(null.answers.predicted, readings[-1].answers.predicted)


def test_all_has_it_at_budget_full_alone() -> None:
    names = {budget: [one.name for one in attacks_of("all", budget)] for budget in ("quick", "standard", "full")}
    assert SoftPrompt.name in names["full"]
    assert SoftPrompt.name not in names["quick"] + names["standard"]
    assert SoftPrompt.name in [one.name for one in attacks_of("softprompt", "quick")]
