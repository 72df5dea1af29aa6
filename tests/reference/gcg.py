"""A step of greedy coordinate gradient with one-hot vectors, a prompt and a choice at a time."""

from __future__ import annotations

import numpy as np
import torch


def loss(model, before, text, after, choices, right):
    """The negative log-likelihood of the right choice among the choices; the text is a one-hot matrix `[n, V]`."""
    embeddings = model.get_input_embeddings().weight
    scores = []
    for choice in choices:
        vectors = torch.cat([embeddings[before], text @ embeddings, embeddings[after], embeddings[choice]])
        predicted = model(inputs_embeds=vectors[None]).logits[0].log_softmax(dim=-1)
        first = len(vectors) - len(choice) - 1
        scores.append(sum(predicted[first + place, token] for place, token in enumerate(choice)))
    return torch.logsumexp(torch.stack(scores), dim=0) - scores[right]


def one_hot(model, tokens):
    rows = torch.zeros(len(tokens), model.get_input_embeddings().weight.shape[0])
    rows[torch.arange(len(tokens)), torch.tensor(tokens)] = 1.0
    return rows


def mean_loss(model, prompts, text):
    return torch.stack([loss(model, before, text, *rest) for before, *rest in prompts]).mean()


def gradient(model, prompts, tokens):
    """Of the mean loss over prompts `(before, after, choices, right)` by the one-hot vectors, `[n, V]`."""
    text = one_hot(model, tokens).requires_grad_()
    return torch.autograd.grad(mean_loss(model, prompts, text), text)[0]


def steepest(found, tokens, allowed, top_k):
    """For each place the allowed tokens of the lowest gradient, the text's own left out."""
    return [
        sorted(
            (token for token in np.flatnonzero(allowed).tolist() if token != own), key=lambda token: float(row[token])
        )[:top_k]
        for own, row in zip(tokens, found, strict=True)
    ]


def step(model, prompts, tokens, allowed, top_k, count, rng, survives):
    """The candidate of the lowest loss, and that loss."""
    best = steepest(gradient(model, prompts, tokens), tokens, allowed, top_k)
    places, ranks = rng.integers(len(tokens), size=count), rng.integers(top_k, size=count)
    losses = {}
    for place, rank in zip(places, ranks, strict=True):
        changed = list(tokens)
        changed[place] = best[place][rank]
        if survives(changed):
            with torch.no_grad():
                losses[tuple(changed)] = float(mean_loss(model, prompts, one_hot(model, changed)))
    chosen = min(losses, key=losses.get)
    return chosen, losses[chosen]
