"""SSD from the paper's formulas (Foster et al. 2023, arXiv:2308.07707), one document at a time."""

from __future__ import annotations

import copy

import torch
from torch.nn.functional import cross_entropy


def importances(model, names, documents):
    """The diagonal of the empirical Fisher information: the mean square of each weight's gradient over documents."""
    total = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
    for document in documents:
        model.zero_grad()
        logits = model(input_ids=torch.tensor([document])).logits[0, :-1]
        cross_entropy(logits, torch.tensor(document[1:])).backward()
        for name in names:
            gradient = model.get_parameter(name).grad
            # An expert that no token went to has none.
            total[name] += 0 if gradient is None else gradient**2 / len(documents)
    return total


def dampened(model, names, forget, retain, *, alpha, dampening):
    """The model with its weights dampened.

    Args:
        model: The original, which stays as it is.
        names: Of the parameters that may change.
        forget: Documents as lists of tokens.
        retain: Likewise.
        alpha: How many times as important for forget documents a weight must be.
        dampening: The paper's lambda.
    """
    model = copy.deepcopy(model).requires_grad_(True)
    of_forget, of_retain = importances(model, names, forget), importances(model, names, retain)
    with torch.no_grad():
        for name in names:
            chosen = of_forget[name] > alpha * of_retain[name]
            beta = dampening * of_retain[name][chosen] / of_forget[name][chosen]
            model.get_parameter(name)[chosen] *= torch.minimum(beta, torch.ones_like(beta))
    return model
