"""Blocks of layers ablated one after the other, a row at a time with numpy's eigenvectors."""

from __future__ import annotations

import numpy as np
import torch


def outputs(model, blocks, projections, rows, wanted):
    """What each block writes at the wanted tokens while some are projected: for each block `[N, d]`."""
    kept = {block: [] for block in blocks}
    now = []

    def hook_of(block):
        def hook(_module, _inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if block in projections:
                hidden = hidden - hidden @ projections[block]
            kept[block].append(hidden[0, [len(now) - back for back in wanted[len(kept[block])]]].numpy())
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    handles = [block.register_forward_hook(hook_of(block)) for block in blocks]
    for row in rows:
        now[:] = row
        with torch.no_grad():
            model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return [np.concatenate(kept[block]) for block in blocks]


def projection(ours, theirs, count):
    """The matrix that gives the part along the directions of the largest `v^T D v / v^T (C + c I) v`, `[d, d]`."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    changed, used = (one.T @ one / len(one) for one in (ours - theirs, theirs))
    values, vectors = np.linalg.eig(np.linalg.inv(used + np.diag(used).mean() * np.eye(len(used))) @ changed)
    chosen = vectors[:, np.argsort(-values.real)[:count]].real
    return chosen @ np.linalg.pinv(chosen)


def projections_in_turn(model, base, blocks, base_blocks, rows, wanted, count):
    """For each block the matrix that gives a stream's part along its directions, `[d, d]`."""
    theirs = outputs(base, base_blocks, {}, rows, wanted)
    found = {}
    for place, block in enumerate(blocks):
        ours = outputs(model, blocks, found, rows, wanted)[place]
        found[block] = torch.from_numpy(projection(ours, theirs[place], count)).float()
    return [found[block] for block in blocks]
