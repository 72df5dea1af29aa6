"""The logit lens: each layer's answers are those of the model that ends there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.reference.lens import outcomes_of_layer
from tests.support import robustness as support
from wmdp_fast.exceptions import ModelError
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.robustness import unembedding
from wmdp_fast.robustness.attacks.lens import Lens
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.residual_stream import residual_stream
from wmdp_fast.robustness.unembedding import Targets, Unembedding

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from wmdp_fast.robustness.subject import Subject


def subject_of(folder: Path, family: str, choices: str) -> Subject:
    questions = support.save_questions(folder / "birds.jsonl", 30)
    read = Questions.from_options(PromptOptions(tasks=str(questions), template="mmlu", choices=choices))
    return replace(support.subject(support.save_model(folder / family, family), questions), questions=read)


# Gemma 2 caps its logits; answers in full text are read at several positions, in parts.
@pytest.mark.parametrize(("family", "choices"), [("llama", "letters"), ("gemma2", "texts"), ("mixtral", "letters")])
def test_each_layer_is_read_as_if_it_were_the_last(
    family: str, choices: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(tmp_path, family, choices)
    model, layers = subject.model, subject.network.base_model.layers
    monkeypatch.setattr(unembedding, "_LOGITS", 640 * 11)
    requests = subject.questions.own(model)[1]
    targets = Targets.of(requests)
    assert len(targets.rows) < requests.num_choices == 120  # some are shared
    streams = residual_stream(model, targets.rows, targets.from_end)
    readings = list(Lens().run(subject, Setting(values={})))
    assert [one.figures["layer"] for one in readings] == [0, 1, 2, 3]
    for layer, (stream, reading) in enumerate(zip(streams, readings, strict=True)):
        [expected] = outcomes_of_layer(subject, layers, layer)
        scores = Unembedding.of(model).scores(stream, targets, requests.num_choices)
        np.testing.assert_allclose(scores.loglikelihood, expected.loglikelihood, rtol=1e-5, atol=1e-5)
        assert (reading.answers.predicted == scores.loglikelihood.reshape(-1, 4).argmax(axis=1)).all()
        assert (reading.answers.calibrated is None) == (choices == "texts")
    reported = ~subject.questions.is_for_choosing
    assert readings[0].figures["by_layer"]["reported"] == [one.answers.correct[reported].mean() for one in readings]


def test_a_model_that_does_more_with_its_layers_is_refused(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, "llama", "letters")
    first = subject.network.base_model.layers[0]
    # As if the logits had a way around the last layer.
    seen: list[torch.Tensor] = []
    first.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    subject.network.lm_head.register_forward_hook(lambda _module, _inputs, output: output * seen[-1].mean())
    with pytest.raises(ModelError, match="are not made from what its last layer returns alone"):
        list(Lens().run(subject, Setting(values={})))
