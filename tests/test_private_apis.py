"""What this package uses of others that they do not promise to keep, each named here with what it is used for.

A version that has changed one of them fails here with its name. The first test holds the list complete.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import importlib.util
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama

import wmdp_fast
from tests.support import tiny_models
from wmdp_fast.models.attention.packed import attending_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(wmdp_fast.__file__).parent


def llama() -> Any:
    return tiny_models.loaded("llama").model


def linear() -> nn.Module:
    return nn.Linear(1, 1)


def harness() -> Any:
    return pytest.importorskip("lm_eval.models.huggingface").HFLM


# Names with an underscore: what has them, and what they are used for.
UNDERSCORED: dict[str, tuple[Callable[[], Any], str]] = {
    "_linear_pointwise": (lambda: torch.ops.mkldnn, "products by oneDNN in models/fused"),
    "_is_mkldnn_bf16_supported": (lambda: torch.ops.mkldnn, "to say that a CPU emulates a dtype"),
    "_is_mkldnn_fp16_supported": (lambda: torch.ops.mkldnn, "to say that a CPU emulates a dtype"),
    "_forward_hooks": (linear, "a module that somebody has hung something on is not replaced"),
    "_forward_pre_hooks": (linear, "a module that somebody has hung something on is not replaced"),
    "_buffers": (linear, "the frequencies of rotary embeddings are put back; models that are streamed are filled"),
    "_parameters": (linear, "models that are streamed are filled"),
    "_modules": (linear, "the modules as they were built of a model that is streamed with an adapter"),
    "_non_persistent_buffers_set": (linear, "models that are streamed are filled"),
    "_compiled_call_impl": (linear, "what `Module.compile` leaves is taken off"),
    "_version": (lambda: torch.zeros(1), "whether a tensor was changed in place"),
    "_attn_implementation": (lambda: llama().config, "which attention a model is set to"),
    "_attn_implementation_internal": (lambda: llama().config, "that attention is put back"),
    "_can_set_attn_implementation": (llama, "whether a model attends through transformers' interface"),
    "_adjust_missing_and_unexpected_keys": (llama, "what a checkpoint lacks of a model that is streamed"),
    "_get_dtype_plan": (llama, "the types of a model that is streamed"),
    "_name_or_path": (lambda: llama().config, "is left out of a hash of the configuration"),
    "_encode_plus": (lambda: PreTrainedTokenizerFast, "whether a tokenizer has a way of its own"),
    "_encode_pair": (harness, "lm-eval's tokens, with which ours are compared"),
    "_loglikelihood_tokens": (harness, "what `FastHFLM` does in another way"),
    "_model_call": (harness, "whether a subclass has a way of its own"),
    "_select_cont_toks": (harness, "whether a subclass has a way of its own"),
    "_exit": (lambda: os, "documented; a process of a worker ends when its parent is gone"),
    "_run_exitfuncs": (
        lambda: atexit,
        "runs what was registered for the exit, when a command ends its process at once",
    ),
    "_ArgumentGroup": (lambda: argparse, "a type"),
    "_actions": (argparse.ArgumentParser, "what is missing of a command line"),
    "_get_formatter": (argparse.ArgumentParser, "what is missing of a command line"),
    "_option_string_actions": (argparse.ArgumentParser, "which options there are"),
    "_subparsers": (argparse.ArgumentParser, "whether it is a command's parser"),
}

# Names that others put on a model, which would take long to make them do: the file that does it, and what it says.
PUT_ON = {
    "_original_forward": ("accelerate", "accelerator.py", "model._original_forward = model.forward"),
    "_orig_mod": ("torch", "_dynamo/eval_frame.py", "self._orig_mod = mod"),
}

# In quotes, and no names of attributes: ends of names of our own, and fields of files.
NO_ATTRIBUTES = {"_bias", "_continuation", "_hash", "_sha", "_stderr", "_tasks", "_token", "_token_id"}


def foreign_names() -> Iterator[str]:
    """Names with an underscore that the package uses and does not define."""
    defined, used = set(), set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    defined.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    defined.add(name)
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    defined.add(name)
                case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                    used.add(name)
                case ast.ImportFrom(module=str(module), names=names) if not module.startswith("wmdp_fast"):
                    used |= {alias.name for alias in names}
    for name in used - defined:
        if name.startswith("_") and not name.startswith("__") and name.isidentifier():
            yield name


def test_every_private_name_is_listed():
    # Some are also names of our own, so that only the list knows them.
    ours_too = {"_loglikelihood_tokens", "_model_call", "_parameters", "_version"}
    assert set(foreign_names()) - NO_ATTRIBUTES == set(UNDERSCORED) - ours_too | set(PUT_ON)


@pytest.mark.parametrize("name", UNDERSCORED)
def test_a_private_name_is_there(name: str):
    owner, purpose = UNDERSCORED[name]
    assert hasattr(owner(), name), f"{name} is gone: {purpose}"


@pytest.mark.parametrize("name", PUT_ON)
def test_a_private_name_is_put_on_models(name: str):
    package, file, line = PUT_ON[name]
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    assert line in (Path(found.origin).parent / file).read_text(encoding="utf-8"), f"{package} sets no {name}"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS"),  # what attention implementations take
        ("transformers.core_model_loading", "revert_weight_conversion"),  # tensors by their names in files
        # How a model that is streamed is filled.
        ("transformers.conversion_mapping", "get_model_conversion_mapping"),
        ("transformers.core_model_loading", "WeightConverter"),
        ("transformers.core_model_loading", "WeightRenaming"),
        ("transformers.core_model_loading", "convert_and_load_state_dict_in_model"),
        ("transformers.core_model_loading", "rename_source_key"),
        ("transformers.modeling_utils", "LoadStateDictConfig"),
        ("transformers.tokenization_utils_base", "VERY_LARGE_INTEGER"),  # no limit to a tokenizer's length
        ("transformers.pytorch_utils", "Conv1D"),  # GPT-2's linear layers
        ("transformers.modeling_outputs", "MoeModelOutputWithPast"),  # what a base returns, made up
        ("peft.mapping", "PEFT_TYPE_TO_PREFIX_MAPPING"),  # which weights are the adapter's
        ("peft", "set_peft_model_state_dict"),  # what of an adapter was loaded
    ],
)
def test_a_name_in_a_file_is_there(module: str, name: str):
    assert hasattr(pytest.importorskip(module), name)


def test_files_of_models_name_their_parts_alike():
    """Parts are found by these names in models/fused and kept as they are if there are none, which is slower."""
    layer = llama().model.layers[0]
    assert type(layer.mlp).__name__.endswith("MLP")
    assert all(hasattr(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    assert type(layer.input_layernorm).__name__.endswith("RMSNorm")
    assert isinstance(layer.input_layernorm.variance_epsilon, float)
    assert list(inspect.signature(modeling_llama.apply_rotary_pos_emb).parameters)[:4] == ["q", "k", "cos", "sin"]
    assert callable(modeling_llama.eager_attention_forward)


def test_rotary_embeddings_remember_under_these_names():
    config = tiny_models.config("llama")
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    rotary = AutoModelForCausalLM.from_config(config).model.rotary_emb
    assert rotary.rope_type == "dynamic"
    for name in ("original_max_seq_len", "max_seq_len_cached", "original_inv_freq", "inv_freq"):
        assert hasattr(rotary, name), name
    assert rotary.config.rope_parameters["factor"] == 2.0


def calls_of(family: str) -> tuple[set[str], set[str]]:
    """Arguments with which a model's attention and its mask are made."""
    attention: set[str] = set()
    mask: set[str] = set()

    def attend(_module: nn.Module, query: torch.Tensor, *_: Any, **options: Any) -> Any:
        attention.update(name for name, given in options.items() if given is not None)
        return query.transpose(1, 2), None

    def make_mask(**options: Any) -> None:
        mask.update(name for name, given in options.items() if given is not None)

    AttentionInterface.register("asked_by_tests", attend)
    AttentionMaskInterface.register("asked_by_tests", make_mask)
    model = tiny_models.build(family)
    with torch.no_grad(), attending_by(model, "asked_by_tests"):
        model(torch.ones(1, 3, dtype=torch.long))
    return attention, mask


@pytest.mark.parametrize(
    ("family", "names"),
    [("gemma2", {"scaling", "softcap", "sliding_window"}), ("gpt_oss", {"s_aux"}), ("mistral", {"scaling"})],
)
def test_models_tell_their_attention_by_these_names(family: str, names: set[str]):
    """What a model asks for under another name would be left out, so `packed_attention_forward` must know it."""
    attention, mask = calls_of(family)
    assert names <= attention
    # Before 5.4 they were others.
    assert {"q_length", "kv_length", "local_size"} <= mask


def test_loading_reports_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """models/reading.py reads `output_loading_info`, and takes the table that is logged away by its heading."""
    model = tiny_models.build("llama")
    model.save_pretrained(tmp_path, state_dict={"model.norm.weight": torch.ones(7), "what.weight": torch.ones(1)})
    logger = transformers.utils.logging.get_logger("transformers.modeling_utils")
    logger.addHandler(caplog.handler)
    try:
        _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, ignore_mismatched_sizes=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert "model.layers.0.mlp.down_proj.weight" in info["missing_keys"]
    assert set(info["unexpected_keys"]) == {"what.weight"}
    ((name, stored, wanted),) = info["mismatched_keys"]
    assert (name, tuple(stored), tuple(wanted)) == ("model.norm.weight", (7,), tuple(model.model.norm.weight.shape))
    assert "LOAD REPORT" in caplog.text
