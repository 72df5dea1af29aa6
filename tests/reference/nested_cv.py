"""Nested cross-validation of linear probes by scikit-learn, a probe at a time."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def scores_of(layer, rows_of, labels_of, known, asked, strength):
    """For each question that is asked the scores of its choices."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100_000, tol=1e-9))
    probe.fit(np.concatenate([layer[rows_of[one]] for one in known]), np.concatenate([labels_of[one] for one in known]))
    return [probe.decision_function(layer[rows_of[one]]).reshape(-1) for one in asked]


def share_below(scores, gold):
    """The share of wrong choices with a lower score than the right one."""
    wrong = np.delete(scores, gold)
    return np.mean((wrong < scores[gold]) + 0.5 * (wrong == scores[gold]))


def nested(layers, counts, taught, folds, strengths, *, per_choice):
    """Predicted choice of each question, and the layer and strength of each fold."""
    ends = np.cumsum(counts)
    rows_of = [
        np.arange(end - count, end) if per_choice else [place]
        for place, (end, count) in enumerate(zip(ends, counts, strict=True))
    ]
    labels_of = [np.arange(count) == gold if per_choice else [gold] for count, gold in zip(counts, taught, strict=True)]
    predicted, chosen = np.full(len(counts), -1), []
    for train, validation, test in folds:
        best = None
        for layer, found in enumerate(layers):
            for strength in strengths:
                scores = scores_of(found, rows_of, labels_of, train, validation, strength)
                value = np.mean(
                    [share_below(one, taught[place]) for one, place in zip(scores, validation, strict=True)]
                )
                if best is None or value > best[0] + 1e-12:
                    best = value, layer, strength
        _, layer, strength = best
        known = np.concatenate([train, validation])
        scores = scores_of(layers[layer], rows_of, labels_of, known, test, strength)
        predicted[test] = [one.argmax() for one in scores]
        chosen.append((layer, strength))
    return predicted, chosen
