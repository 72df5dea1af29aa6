"""What lm-eval's results files say of a run besides its numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


# What lm-eval writes where a standard error is not defined.
NOT_AVAILABLE = "N/A"


def config_section(
    model: str,
    model_args: Mapping[str, Any] | None,
    *,
    model_info: Mapping[str, Any] | None = None,
    batch_size: str | int | None = None,
    batch_sizes: Sequence[int] = (),
    device: str | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    """How a model was run, as lm-eval's `config` section has it.

    Nothing here is drawn at random, so seeds and bootstrap iterations are None: examples are the first ones, and
    standard errors come from a formula.

    Args:
        model: lm-eval's name for the kind of model (`hf`), or the class of a model that was passed in.
        model_args: What the model was loaded with (`pretrained`, `dtype`, ...).
        model_info: `model_num_parameters`, `model_dtype`, `model_revision`, `model_sha`, and `peft_sha` if there is an
            adapter.
        batch_size: Batch size or token budget that was asked for.
        batch_sizes: Batch sizes found by trying.
        device: Where the model ran.
        limit: Most questions of a task, if there was a limit.
    """
    return {
        "model": model,
        "model_args": None if model_args is None else dict(model_args),
        **(model_info or {}),
        "batch_size": batch_size,
        "batch_sizes": list(batch_sizes),
        "device": device,
        "use_cache": None,
        "limit": limit,
        "bootstrap_iters": None,
        "gen_kwargs": None,
        "random_seed": None,
        "numpy_seed": None,
        "torch_seed": None,
        "fewshot_seed": None,
    }


def tokenizer_info(tokenizer: Any, max_length: int | None) -> dict[str, Any]:
    """A transformers tokenizer's special tokens and the longest input if it is known, as lm-eval records them."""
    special = {
        f"tokenizer_{kind}_token": [getattr(tokenizer, f"{kind}_token"), str(getattr(tokenizer, f"{kind}_token_id"))]
        for kind in ("pad", "eos", "bos")
    }
    return {**special, "eot_token_id": tokenizer.eos_token_id, "max_length": max_length}


def sha256(text: str | None) -> str | None:
    """The hash of a text as lm-eval records it; None for no text."""
    return hashlib.sha256(text.encode()).hexdigest() if text else None
