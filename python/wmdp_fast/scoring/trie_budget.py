"""How many tokens of a trie go into a batch, and the memory that takes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.scoring.chunk_memory import Needs
from wmdp_fast.scoring.padded import CPU_TOKEN_BUDGET, auto_token_budget

if TYPE_CHECKING:
    from wmdp_fast._rust import Requests, Trie, TrieBatch
    from wmdp_fast.models.load import LoadedModel

_READOUT_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Memory for the distributions read from a batch, which are as wide as the vocabulary."""


def auto_budget(loaded: LoadedModel, requests: Requests) -> int:
    """Maximum tokens of a batch where the user says nothing: by a GPU's free memory, or what suits a CPU's caches."""
    if loaded.device.type == "cuda":
        return auto_token_budget(loaded, requests, every_logit=False)
    return CPU_TOKEN_BUDGET


def readout_budget(loaded: LoadedModel) -> int:
    """Maximum distributions that are read from a batch, if all of them are in memory at once."""
    config: Any = loaded.model.config
    # Logits in the model's dtype. Beside them, in float32, what the softmax is made from; on a GPU also the softmax.
    beside = 8 if loaded.device.type == "cuda" else 0 if loaded.dtype == torch.float32 else 4
    row = int(config.get_text_config().vocab_size) * (loaded.dtype.itemsize + beside)
    return max(1, _READOUT_BYTES.get(loaded.device.type, _READOUT_BYTES["cpu"]) // row)


def needs_of_run(loaded: LoadedModel, trie: Trie, budget: int, *, logits: bool) -> Needs:
    """What a run with a streamed model needs memory for besides its weights and hidden states."""
    # In the model's type, in float32, and what the softmax is made from.
    wide = 3 * _READOUT_BYTES.get(loaded.device.type, _READOUT_BYTES["cpu"]) if logits else 0
    width = bytes_of_keys_and_values(loaded)
    planned = trie.batches(budget, readout_budget(loaded) if logits else budget, 0)
    batches = [(batch.input_ids.size, num_kept(batch) * width) for batch in planned]
    largest = max((tokens for tokens, _ in batches), default=0)
    return Needs(trie.num_tokens, largest, wide, batches, head_in_parts=not logits)


def num_kept(batch: TrieBatch) -> int:
    """Tokens whose keys and values a batch leaves to the next one."""
    return int((batch.keep[:, 1] - batch.keep[:, 0]).sum())


def bytes_of_keys_and_values(loaded: LoadedModel) -> int:
    """Bytes that a token's keys and values take in all layers."""
    whole: Any = loaded.model.config
    config = whole.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return max(int(heads) * int(size), 1) * 2 * loaded.dtype.itemsize * int(config.num_hidden_layers)


def smaller_budget(batch: TrieBatch, device: torch.device) -> int:
    """The budget to go on with after a batch did not fit into memory: half of what was run.

    Raises:
        ModelError: The batch was a single token.
    """
    tokens = int(batch.input_ids.size)
    if tokens == 1:
        raise ModelError(
            f"out of memory on {device} with a single token after {batch.num_carried}: free memory there, load the"
            " model with dtype bfloat16, shorten the prompts (num_fewshot, max_length), or use another device"
        )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    what = f"out of memory on {device} with {tokens} tokens: token_budget is now {tokens // 2}"
    warnings.warn(what, WmdpFastWarning, stacklevel=4)
    return tokens // 2
