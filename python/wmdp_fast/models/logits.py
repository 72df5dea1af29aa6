"""A causal model's logits at some positions of a padded batch."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def selected_logits(model: torch.nn.Module, input_ids: torch.Tensor, readouts: NDArray[np.int64]) -> torch.Tensor:
    """Logits at readouts, the only ones computed: the model's own soft cap, scale and so on included.

    Args:
        model: A model that takes a boolean mask as `logits_to_keep`.
        input_ids: Token ids, `[B, T]`.
        readouts: Pairs (row, position), in order: `[R, 2]`.

    Returns:
        Logits, `[R, V]`.
    """
    # A mask gives one row for each readout. Positions for each row, the other form that transformers takes, would give
    # as many to each row as the row with the most has.
    wanted = torch.zeros(input_ids.shape, dtype=torch.bool, device="cpu")
    wanted[readouts[:, 0], readouts[:, 1]] = True
    return _logits(model, model(input_ids, logits_to_keep=wanted.to(input_ids.device), **_no_cache(model)))


def all_logits(model: torch.nn.Module, input_ids: torch.Tensor, readouts: NDArray[np.int64]) -> torch.Tensor:
    """Logits at readouts, picked from those at all positions; for every causal model.

    Args:
        model: Any causal model.
        input_ids: Token ids, `[B, T]`.
        readouts: Pairs (row, position), in order: `[R, 2]`.

    Returns:
        Logits, `[R, V]`.

    Raises:
        ModelError: It gives none, as a base without a head.
    """
    logits = _logits(model, forward_without_cache(model, input_ids))
    # An adapter that learned a prompt puts its tokens first.
    virtual_tokens = logits.shape[1] - input_ids.shape[1]
    rows, positions = torch.from_numpy(readouts).to(logits.device).unbind(dim=1)
    return logits[rows, positions + virtual_tokens]


def _logits(model: torch.nn.Module, outputs: Any) -> torch.Tensor:
    logits: torch.Tensor | None = getattr(outputs, "logits", None)
    if logits is None:
        raise ModelError(
            f"{type(model).__name__} gives no logits: it is the base of a language model, without its head; load it"
            " with AutoModelForCausalLM, or pass the model that it belongs to"
        )
    return logits


def forward_without_cache(model: torch.nn.Module, input_ids: torch.Tensor, **inputs: Any) -> Any:
    """What a model, or the part of one that takes token ids, returns for token ids `[B, T]` and other inputs."""
    return model(input_ids, **inputs, **_no_cache(model))


def _no_cache(model: torch.nn.Module) -> dict[str, Any]:
    """Argument that keeps a model from storing keys and values, if it has it."""
    parameters = inspect.signature(model.forward).parameters.values()
    known = any(p.name == "use_cache" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return {"use_cache": False} if known else {}


def are_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether logits agree to half their digits: batches of another shape round differently."""
    spread = b.max().float() - b.min().float()
    return bool((a - b).abs().max().float() <= torch.finfo(b.dtype).eps ** 0.5 * spread)
