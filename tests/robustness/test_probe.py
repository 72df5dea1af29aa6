"""Linear probes: the regression, its nested cross-validation, and what they find and do not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.support import robustness as support
from wmdp_fast.robustness import logistic, nested_cv
from wmdp_fast.robustness.attacks import probe as attack
from wmdp_fast.robustness.attacks.probe import Probe
from wmdp_fast.robustness.nested_cv import Examples, folds, probe, ranked
from wmdp_fast.robustness.protocol import Setting

if TYPE_CHECKING:
    from pathlib import Path


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "width", "classes"), [(120, 20, 2), (60, 90, 2), (90, 24, 4)])
def test_the_regression_is_scikit_learns(n: int, width: int, classes: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    features = 3 * drawn(n, width) + 1
    features[:, 3] = 2.5  # always the same
    labels = (features @ drawn(width, classes, seed=1) + 20 * drawn(n, classes, seed=2)).argmax(dim=1)
    columns = labels[:, None].double() if classes == 2 else torch.nn.functional.one_hot(labels).double()
    standardized = logistic.Standardized.by(features)(features)
    scaled = preprocessing.StandardScaler().fit_transform(features.numpy())
    np.testing.assert_allclose(standardized[:, :-1].numpy(), scaled, atol=1e-12)
    fitted = logistic.fit(standardized, columns, nested_cv.STRENGTHS)
    for strength, weights in zip(nested_cv.STRENGTHS, fitted, strict=True):
        theirs = linear_model.LogisticRegression(C=strength, max_iter=100_000, tol=1e-9).fit(scaled, labels.numpy())
        expected = theirs.predict_proba(scaled)
        found = logistic.probabilities(standardized @ weights).numpy()
        np.testing.assert_allclose(found, expected[:, 1:] if classes == 2 else expected, atol=2e-5)


def made_up(*, per_choice: bool, layers: int = 3, questions: int = 60, width: int = 12) -> Examples:
    """Layers of noise, of which the second knows something of the answers; some questions have three choices."""
    rng = np.random.default_rng(3)
    counts = np.where(np.arange(questions) % 7 == 0, 3, 4)
    gold = rng.integers(0, counts)
    empty = Examples(layers=[], num_choices=counts, gold=gold, per_choice=per_choice)
    labels = torch.from_numpy(empty.labels(np.arange(questions)))
    found = [drawn(len(labels), width, seed=seed) for seed in range(layers)]
    found[1] += 1.5 * labels @ drawn(labels.shape[1], width, seed=9)
    return replace(empty, layers=found)


@pytest.mark.parametrize("per_choice", [True, False])
def test_nested_cross_validation_is_scikit_learns(per_choice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from tests.reference.nested_cv import nested

    monkeypatch.setattr(nested_cv, "STRENGTHS", (0.01, 1.0, 100.0))
    examples, groups = made_up(per_choice=per_choice), [place // 2 for place in range(60)]
    found = probe(examples, groups, seed=5)
    predicted, chosen = nested(
        [one.numpy() for one in examples.layers],
        examples.num_choices,
        examples.gold,
        list(folds(groups, 5)),
        nested_cv.STRENGTHS,
        per_choice=per_choice,
    )
    assert list(found.chosen) == chosen
    assert (found.predicted == predicted).all()
    assert (found.predicted < examples.num_choices).all()
    # The layer that knows is found, and the noise beside it is at chance.
    assert found.accuracy_by_layer[1] > 0.6
    assert max(found.ranked_by_layer[0], found.ranked_by_layer[2]) < 0.62


def test_shuffled_answers_teach_nothing() -> None:
    examples = made_up(per_choice=True, layers=2, questions=240)
    control = examples.shuffled(0)
    assert (control.gold != examples.gold).any()
    assert sorted(control.gold) == sorted(examples.gold)
    assert (control.gold < control.num_choices).all()
    assert probe(examples, range(240), seed=0).ranked.mean() > 0.8
    assert abs(probe(control, range(240), seed=0).ranked.mean() - 0.5) < 0.08  # three standard errors


def test_folds_keep_groups_whole_and_test_each_question_once() -> None:
    groups = [place // 3 for place in range(200)]
    tested = np.zeros(200, dtype=int)
    for parts in folds(groups, 1):
        assert sorted(np.concatenate(parts)) == list(range(200))
        of_group = [set(np.array(groups)[part]) for part in parts]
        assert not of_group[0] & of_group[1]
        assert not of_group[2] & (of_group[0] | of_group[1])
        assert [round(len(part) / 200, 1) for part in parts[1:]] in ([0.1, 0.2], [0.2, 0.2])
        tested[parts[2]] += 1
    assert (tested == 1).all()


def test_ranked_is_the_share_of_wrong_choices_below() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 4.0], [0.0, 0.0, -1.0, -np.inf]])
    np.testing.assert_allclose(ranked(scores, np.array([0, 1])), [2 / 3, 0.75])


def test_it_reads_claims_letters_and_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested_cv, "STRENGTHS", (0.01, 0.1))
    questions = support.save_questions(tmp_path / "birds.jsonl", 40)
    subject = support.subject(support.save_model(tmp_path / "model"), questions)
    assert [(one.values["form"], one.null) for one in Probe().settings("quick", 0)] == [
        ("claims", False),
        ("claims", True),
    ]
    found, values = {}, {"answers": "right", "layers": 2, "seed": 0}
    for form in ("claims", "letters", "prompts"):
        [reading] = Probe().run(subject, Setting(values=values | {"form": form}))
        assert reading.figures["layers"] == [1, 3]
        assert "by_layer" not in reading.figures
        assert {layer for layer, _ in reading.figures["chosen"]} <= {1, 3}
        found[form] = reading.answers.predicted.tolist()
    assert len({tuple(one) for one in found.values()}) == 3
    [null] = Probe().run(subject, Setting(values=values | {"form": form, "answers": "shuffled"}, null=True))
    gain = reading.figures["ranked"] - null.figures["ranked"]
    assert reading.figures["ranked_over_shuffled"] == pytest.approx(gain)
    assert null.figures["ranked_over_shuffled"] == 0
    assert Probe().why_not(subject, Setting(values=values)) is None
    monkeypatch.setattr(attack, "near_duplicates", lambda asked: [place % 19 for place in range(len(asked))])
    too_few = Probe().why_not(subject, Setting(values=values))
    assert too_few == "19 questions are too few to part into folds; it takes 20"
