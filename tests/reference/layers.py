"""Activation norms and separation of two corpora, one document and one layer after another."""

from __future__ import annotations

import numpy as np
import torch


def activations(model, layer, document):
    """The output of a layer on one document by itself, float64 [tokens, d]."""
    caught = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda _module, _inputs, output: caught.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model(input_ids=torch.tensor([document]))
    handle.remove()
    return caught[0][0].double().numpy()


def auc(above, below):
    """The share of pairs in which the first is larger, ties counting half."""
    wins = sum((1.0 if a > b else 0.5 if a == b else 0.0) for a in above for b in below)
    return wins / (len(above) * len(below))


def profile(model, layer, forget, retain):
    """(forget norm, retain norm, their first tokens' norms, distance of the means, separability) of a layer."""
    states = [[activations(model, layer, document) for document in corpus] for corpus in (forget, retain)]
    rest = [np.concatenate([one[1:] for one in corpus]) for corpus in states]
    first = [np.stack([one[0] for one in corpus]) for corpus in states]
    norms = [np.linalg.norm(one, axis=1).mean() for one in (*rest, *first)]
    means = [one.mean(axis=0) for one in rest]
    cosine = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    fitted = [np.concatenate([one[1:] for one in corpus[0::2]]).mean(axis=0) for corpus in states]
    told_apart = [np.concatenate([one[1:] for one in corpus[1::2]]) @ (fitted[0] - fitted[1]) for corpus in states]
    return (*norms, 1 - cosine, auc(*told_apart))
