"""Perplexities the slow and obvious way: one token after the other, and the bootstrap in place of formulas."""

from __future__ import annotations

import numpy as np


def windows(tokens: list[int], prefix: int, max_length: int) -> list[tuple[list[int], list[int]]]:
    """Each token is predicted once, in blocks; what the model reads before is the block before it, as far as it fits.

    The model reads a window without its last token: `max_length` tokens of text and prefix.
    """
    whole = [prefix, *tokens]
    found = []
    position = 1
    while position < len(whole):
        block = whole[position : position + max_length]
        # Of the prefix and the tokens before: as many as `max_length` leaves beside the block without its last token.
        room = max_length - (len(block) - 1)
        context = whole[:position][-room:]
        if position > 1 and context[0] == prefix and len(context) == position:
            context = context[1:] or context  # the prefix is for the first token only
        found.append((context, block))
        position += len(block)
    return found


def bootstrap_error(loglikelihood: np.ndarray, sizes: np.ndarray, samples: int = 20_000) -> float:
    """The standard deviation of the perplexity over documents drawn with replacement."""
    drawn = np.random.default_rng(0).integers(0, len(sizes), (samples, len(sizes)))
    values = np.exp(-loglikelihood[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return float(values.std(ddof=1))
