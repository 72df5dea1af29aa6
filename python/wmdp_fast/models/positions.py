"""How many positions a model has a table for. One that computes its positions takes any number; a table ends.

`max_length` may be larger than what a model was made for. With rotary embeddings that is a matter of quality, of which
a warning tells. Beyond the end of a table there is nothing to look up: an error of indices on a CPU, and on a GPU one
after which the process can do nothing more there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from wmdp_fast._rust import Requests

# What transformers' models call theirs: GPT-2 and its like; GPT; OPT, BioGPT, GPT-J, CodeGen; CTRL; BERT's kind.
_TABLES = frozenset({"wpe", "positions_embed", "embed_positions", "pos_encoding", "position_embeddings"})


def positions_known(model: torch.nn.Module) -> int | None:
    """The number of positions that a model has a table for; None if it computes them."""
    found = [size for module in model.modules() for size in _sizes(module)]
    return min(found, default=None)


def _sizes(module: torch.nn.Module) -> list[int]:
    tables: dict[str, Any] = {**dict(module.named_children()), **dict(module.named_buffers(recurse=False))}
    tables |= {name: one for name, one in vars(module).items() if isinstance(one, torch.Tensor)}
    sizes = []
    for name, table in tables.items():
        if name not in _TABLES:
            continue
        if isinstance(table, torch.nn.Embedding):
            # OPT's and its like begin with rows that stand for no position.
            sizes.append(table.num_embeddings - int(getattr(table, "offset", 0)))
        elif isinstance(table, torch.Tensor) and table.dim() == 2:
            sizes.append(len(table))
    return sizes


def refuse_beyond_positions(model: torch.nn.Module, requests: Requests) -> None:
    """Raises ModelError if inputs are longer than the table of positions that a model has.

    Args:
        model: The model.
        requests: What is to be asked, or read.
    """
    first = requests.padded_batch(0, 1)
    longest = 0 if first is None else int(first.lengths[0])
    known = positions_known(model) if longest else None
    if known is not None and longest > known:
        raise ModelError(
            f"inputs have up to {longest} tokens, and the model has a table of {known} positions, beyond which it"
            f" cannot read: max_length (--max-length) may be {known} at most, not {requests.max_length}"
        )
