"""PEFT adapters, put on a model as lm-eval does it (`HFLM._create_model`, 0.4.13), and checked to be there in full."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.checkpoints.weight_files import ADAPTER_CONFIG, read_json, shown
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models import locate
from wmdp_fast.models.reading import about_unexpected, failures_as, named, warnings_as_ours
from wmdp_fast.models.threads import loading
from wmdp_fast.runtime import requirements

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

_NAME = "default"

# Adapter weights that layers share: they are loaded once, and are missing under their other names (as peft has it).
_SHARED = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")


def without_adapter(model: Any) -> Any:
    """The model that an adapter of peft was put on; itself, if none was."""
    return getattr(model, "get_base_model", lambda: model)()


def begins_at_tokens(model: Any) -> bool:
    """Whether an adapter (aLoRA) begins where it finds certain tokens in a row, which peft looks for in a model's call.

    So it is on in no call of a part of the model, and begins at one place in a row, whatever is in it.
    """
    configs = getattr(model, "peft_config", {}).values()
    return any(getattr(config, "alora_invocation_tokens", None) for config in configs)


def with_adapter(
    model: torch.nn.Module, adapter: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.nn.Module, list[str]]:
    """Puts an adapter on a model without merging it.

    As in lm-eval, the embedding takes the tokenizer's size first; but not where the adapter brings an embedding or head
    of its own, with which lm-eval fails unless it has just that size.

    Args:
        model: The model it was made for.
        adapter: Folder, or name on the hub.
        tokenizer: The model's.

    Returns:
        The model with its adapter, and what is to be said of it.

    Raises:
        DataUnavailableError: It is missing or out of reach.
        ModelError: It cannot be put on this model, or lacks weights; or peft is missing.
    """
    try:
        from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
    except ImportError as error:
        raise ModelError(f"the adapter {adapter} needs the package peft: pip install 'wmdp-fast[peft]'") from error

    if problem := requirements.too_old("peft"):
        raise ModelError(problem)
    folder = locate.locate_adapter(adapter).folder
    notes = _about_base(model, adapter, folder)
    notes += fit_vocabulary(model, adapter, tokenizer, vocabulary_size(model))
    with loading(), failures_as(ModelError, _does_not_fit(adapter)), warnings_as_ours(notes):
        base: Any = model
        wrapped: torch.nn.Module = PeftModel.from_pretrained(base, str(folder))
        # Once more, since that does not tell what it loaded.
        report: Any = set_peft_model_state_dict(
            wrapped, load_peft_weights(str(folder), device="cpu"), adapter_name=_NAME
        )
    if missing := _missing(wrapped, report.missing_keys):
        raise ModelError(
            f"the adapter {adapter} lacks weights, which would be random or the model's: {named(missing)}. Copy or"
            " download it again, or correct its adapter_config.json"
        )
    notes = [note for note in notes if "missing adapter keys" not in note]
    # Prompts are loaded by a name that is none of the model's.
    unexpected = sorted({*report.unexpected_keys} - {"prompt_embeddings"})
    return wrapped, notes + [f"adapter {adapter}: {note}" for note in about_unexpected(unexpected)]


def _about_base(model: Any, adapter: str, folder: Path) -> list[str]:
    """What is to be said of an adapter that was made for a model of another name: it fits any of the same sizes."""
    made_for = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    put_on = getattr(model, "name_or_path", None)
    names = [PurePath(one).name for one in (made_for, put_on) if isinstance(one, str) and one]
    if len(names) < 2 or names[0].lower() == names[1].lower():
        return []
    return [
        f"the adapter {adapter} was made for {shown(made_for)}, by its configuration, and is put on {shown(put_on)}"
    ]


def fit_vocabulary(model: Any, adapter: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[str]:
    """Gives the embedding the rows that an adapter needs.

    Args:
        model: The model it is to be put on.
        adapter: Folder, or name on the hub.
        tokenizer: The model's.
        vocabulary: Rows of the embedding in the model's files; the model may have those for the adapter already.

    Returns:
        What is to be said: that some rows are new, or cut off.

    Raises:
        DataUnavailableError: The adapter is missing or out of reach.
        ModelError: It cannot be read, or not be put on this model.
    """
    notes: list[str] = []
    with loading(), failures_as(ModelError, _does_not_fit(adapter)), warnings_as_ours(notes):
        own = _own_rows(model, adapter)
        rows = own or len(tokenizer)
        if rows != vocabulary_size(model):
            # New rows are drawn around the mean with a tiny spread: the same ones in every run.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model.resize_token_embeddings(rows)
    if rows > vocabulary and own is None:
        notes.append(
            f"the tokenizer has {rows} tokens and the model {vocabulary}; as in lm-eval, the others got the mean of"
            " all embeddings, since the adapter has none for them"
        )
    if rows < vocabulary and own is None:
        notes.append(
            f"the tokenizer has {rows} tokens and the model {vocabulary}; as in lm-eval, the others are cut off where"
            " an adapter is put on, so that log-likelihoods are higher than PEFT's own, and than the bare model's,"
            " where probability is shared with them"
        )
    return notes


def rows_for(model: Any, adapter: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The rows that a model's embedding must have for an adapter: its own, or else the tokenizer's.

    Raises:
        DataUnavailableError: The adapter is missing or out of reach.
        ModelError: It cannot be read.
    """
    with failures_as(ModelError, _does_not_fit(adapter)):
        return _own_rows(model, adapter) or len(tokenizer)


def vocabulary_size(model: Any) -> int:
    """The rows of a model's embedding, by its configuration."""
    return int((getattr(model.config, "text_config", None) or model.config).vocab_size)


def _own_rows(model: Any, adapter: str) -> int | None:
    return _rows_of_adapter(model, locate.locate_adapter(adapter).folder / locate.ADAPTER_WEIGHTS)


def _does_not_fit(adapter: str) -> str:
    return f"the adapter {adapter} cannot be put on this model"


def _rows_of_adapter(model: Any, weights: Path) -> int | None:
    """How many tokens the adapter's own embedding or head has, or its change of them; None if it has none."""
    from safetensors import safe_open

    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())} - {id(None)}
    names = [name for name, module in model.named_modules() if id(module) in ends]
    with safe_open(weights, framework="np") as file:
        for key in file.keys():  # noqa: SIM118 (it is no mapping)
            of = next((name for name in names if f".{name}." in f".{key}"), None)
            if of is None:
                continue
            what, shape = key.rpartition(f"{of}.")[2], file.get_slice(key).get_shape()
            if what in ("weight", "base_layer.weight", "modules_to_save.weight", "lora_B.weight"):
                return int(shape[0])
            if what == "lora_embedding_A":
                return int(shape[1])
    return None


def _missing(wrapped: Any, names: list[str]) -> list[str]:
    """Those of the weights that were not in the file that are the adapter's."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(wrapped.peft_config[_NAME].peft_type, "")
    kept = f".modules_to_save.{_NAME}."
    return sorted(
        name
        for name in names
        if (kept in name or (prefix and prefix in name and _NAME in name)) and not any(s in name for s in _SHARED)
    )
