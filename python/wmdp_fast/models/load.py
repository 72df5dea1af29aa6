"""Loading language models and their tokenizers with transformers."""

from __future__ import annotations

import importlib
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import torch

from wmdp_fast.checkpoints.delta import put_file_on
from wmdp_fast.checkpoints.model_name import parts_of
from wmdp_fast.checkpoints.weight_files import weight_files
from wmdp_fast.exceptions import ModelError, TokenizerError, WmdpFastWarning
from wmdp_fast.models import identity, locate
from wmdp_fast.models.adapters import vocabulary_size, with_adapter, without_adapter
from wmdp_fast.models.attention.requirements import about_left_out, take_eager_where_needed
from wmdp_fast.models.configurations import objects_returned
from wmdp_fast.models.reading import (
    about_architecture,
    about_missing,
    about_quantization,
    about_unexpected,
    read_pretrained,
    warnings_as_ours,
)
from wmdp_fast.models.row_length import fresh_rotary
from wmdp_fast.models.threads import only_user
from wmdp_fast.models.tokenizer_only import TokenizerOnly, load_tokenizer_only, max_length
from wmdp_fast.prompts.tokenizer import prefix_token_id
from wmdp_fast.runtime.memory import forget_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.models.adapter_base import AdapterBase
    from wmdp_fast.models.streamed import StreamedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model, its tokenizer, and what is worth recording about them.

    Attributes:
        model: The model; called with `input_ids` it returns an object with `logits`.
        tokenizer: Its transformers tokenizer.
        name: Folder or name on the hub, as it was given.
        path: Folder with its files, or None for a model that was in memory.
        revision: Branch, tag or commit that was asked for, or None.
        sha: Commit on the hub, or None if it is not from there.
        peft: Folder or name of the adapter on it, or None.
        delta: File of the changed tensors that were put on it, or None.
        dtype: Type of its weights.
        device: Where its input goes.
        max_length: Maximum sequence length of the model, by lm-eval's rule.
        num_parameters: Number of its parameters, an adapter's included.
        prefix_token_id: Token that stands for an empty context, by lm-eval's rule: BOS, else EOS.
        seconds: Time that loading took.
        warnings: What results should say of how it was loaded: weights that were not used, for instance.
        streamed: How its weights are read if they are not in memory; None if they are.
        parallel: How several processes hold it together, `fsdp` or `tp`; None if this one has all of it.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    path: Path | None
    revision: str | None
    sha: str | None
    peft: str | None
    delta: Path | None
    dtype: torch.dtype
    device: torch.device
    max_length: int
    num_parameters: int
    prefix_token_id: int
    seconds: float
    warnings: tuple[str, ...] = ()
    streamed: StreamedModel | None = None
    parallel: str | None = None


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
    peft: str | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    allow_missing: bool = False,
    opened: TokenizerOnly | None = None,
    shared: AdapterBase | None = None,
    parallel: str | None = None,
) -> LoadedModel:
    """Loads a causal language model from a folder or the hub, ready for scoring.

    transformers picks the attention implementation, as it does for lm-eval: sdpa where the architecture allows it. If
    that leaves out what the configuration asks for (soft caps, sinks), eager is taken, and a warning says so.

    Args:
        name_or_path: A folder that `save_pretrained` wrote, or a name on the hub; or `BASE+DELTA`, one of these and the
            file of changed tensors that an unlearning run wrote, or its folder.
        revision: Branch, tag or commit of the model on the hub.
        dtype: `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"`: that of the checkpoint.
        device: `"cpu"`, `"cuda"`, `"cuda:1"` and so on, or `"auto"`: CUDA if there is any, else the CPU.
        trust_remote_code: Whether to run Python code that comes with the model.
        peft: Folder or name on the hub of a PEFT adapter, put on as `with_adapter` says. Unlike in lm-eval, `revision`
            is not the adapter's.
        tokenizer: Another tokenizer than the model's: one in memory, a folder, or a name on the hub.
        allow_missing: Whether to go on if the checkpoint lacks weights, with random ones in their place.
        opened: What `load_tokenizer_only` has read of the same model, weights located; then `tokenizer` is in it.
        shared: Keeps the model without the adapter for the next call, which differs from this one in `peft` alone.
        parallel: How all processes of torch's process group hold it together: `fsdp`, each with a part of every weight,
            which are gathered for a layer as it runs; `tp`, each with a part of every product. By transformers;
            an adapter goes with `tp` only, where PEFT shares out its factors, and must be one for the model's own rows.

    Warns:
        WmdpFastWarning: Weights are not used, or random, or of a type that this CPU is slow at; or a shared model is
            loaded again.

    Raises:
        DataUnavailableError: The model is gated, missing or out of reach; the message says what to do.
        ModelError: The model cannot be loaded, lacks weights, has pickled ones only, or the device is not there; or the
            delta belongs to another base.
        TokenizerError: The tokenizer cannot be loaded.
        ValueError: `dtype` or `device` is none of the above.
    """
    begin = time.perf_counter()
    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device)
    base, delta = parts_of(name_or_path)
    if opened is None:
        opened = load_tokenizer_only(
            base,
            tokenizer=tokenizer,
            revision=revision,
            trust_remote_code=trust_remote_code,
            files=locate.locate_model(base, revision=revision),
        )
    files = opened.files
    where, source = files.address(base), opened.source

    def read() -> tuple[torch.nn.Module, list[str]]:
        return _read(where, source, torch_dtype, torch_device, parallel, allow_missing=allow_missing)

    model, notes = read() if peft is None else _adapted(read, peft, opened.tokenizer, shared, parallel)
    bare = without_adapter(model)
    notes = [*notes, *about_architecture(files.folder, type(bare).__name__), *about_quantization(files.folder, bare)]
    notes = notes + take_eager_where_needed(model)
    model.requires_grad_(requires_grad=False).eval()
    if delta is not None:
        if peft is not None:
            raise ModelError(f"{name_or_path}: a delta is for the checkpoint that it was made from, without an adapter")
        put_file_on(cast("PreTrainedModel", model), files.folder, delta, keep_dtype=torch_dtype is not None)
    for note in notes:
        warnings.warn(f"{name_or_path}: {note}", WmdpFastWarning, stacklevel=2)
    if torch_dtype is None:
        _warn_of_slow_dtype(model, torch_device)
    found = _describe(model, opened.tokenizer, name=name_or_path, revision=revision, peft=peft, notes=notes)
    seconds = time.perf_counter() - begin
    return replace(found, path=files.folder, delta=delta, sha=files.commit, seconds=seconds, parallel=parallel)


def load_streamed(
    name_or_path: str,
    memory: int,
    *,
    opened: TokenizerOnly,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    peft: str | None = None,
) -> LoadedModel:
    """Builds a model whose layers are read when their turn comes; its folder must hold its weights.

    Args:
        name_or_path: As `load_model`.
        memory: Bytes that the process may take; on a GPU, that its tensors may.
        opened: What `load_tokenizer_only` has read of the same model.
        revision: As `load_model`.
        dtype: As `load_model`.
        device: As `load_model`.
        peft: As `load_model`; its factors stay in memory.

    Warns:
        WmdpFastWarning: As `load_model`.

    Raises:
        DataUnavailableError: The adapter is missing or out of reach.
        ModelError: As `load_model`; or it cannot be streamed, or not with this adapter, for a reason that is said.
        ValueError: As `load_model`.
    """
    from wmdp_fast.models.adapter_on_parts import refuse_adapter, with_adapter_on
    from wmdp_fast.models.skeleton import build_skeleton
    from wmdp_fast.models.streamed import stream

    begin = time.perf_counter()
    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device)
    files = opened.files
    weights = weight_files(files.folder)
    if weights is None:
        raise ModelError(f"{files.folder} has no safetensors weights")
    notes: list[str] = []
    if torch_device.type == "cpu":
        forget_files()
    rows, of_adapter = None, tuple[str, ...]()
    if peft is not None:
        refuse_adapter(peft)
        rows = len(opened.tokenizer)
    with warnings_as_ours(notes):
        skeleton = build_skeleton(
            files.address(name_or_path), opened.source, weights, torch_dtype, torch_device, rows=rows
        )
        model: torch.nn.Module = skeleton.model
        if peft is not None:
            skeleton = skeleton.keeping_names()
            with skeleton.layers_described():
                model, of_adapter = with_adapter_on(skeleton, peft, opened.tokenizer)
        streamed = stream(skeleton, memory)
    notes += [*skeleton.notes, *of_adapter, *about_architecture(files.folder, type(skeleton.model).__name__)]
    if torch_device.type == "cpu":
        # The rest of imports. From here on what is tried brings back what a run needs, before memory is shared out.
        forget_files()
    with streamed.one_of_each().on_demand():
        notes += take_eager_where_needed(model)
    for note in notes:
        warnings.warn(f"{name_or_path}: {note}", WmdpFastWarning, stacklevel=2)
    if torch_dtype is None:
        _warn_of_slow_dtype(skeleton.model, torch_device)
    found = _describe(model, opened.tokenizer, name=name_or_path, revision=revision, peft=peft, notes=notes)
    seconds = time.perf_counter() - begin
    return replace(found, path=files.folder, sha=files.commit, seconds=seconds, device=torch_device, streamed=streamed)


def _read(
    where: str,
    source: Mapping[str, Any],
    dtype: torch.dtype | None,
    device: torch.device,
    parallel: str | None,
    *,
    allow_missing: bool,
) -> tuple[torch.nn.Module, list[str]]:
    """A model with its weights, and what is to be said of them."""
    notes: list[str] = []
    with warnings_as_ours(notes):
        if parallel is None:
            model, missing, unexpected = _from_pretrained(where, source, dtype, device, allow_missing)
        else:
            model, missing, unexpected = _on_several(where, source, dtype, parallel, allow_missing)
    return model, [*notes, *about_missing(missing), *about_unexpected(unexpected)]


def _adapted(
    read: Callable[[], tuple[torch.nn.Module, list[str]]],
    peft: str,
    tokenizer: PreTrainedTokenizerBase,
    shared: AdapterBase | None,
    parallel: str | None,
) -> tuple[torch.nn.Module, list[str]]:
    """A model with an adapter on it, and what is to be said of both."""
    if shared is not None:
        return shared.with_adapter(read, peft, tokenizer)
    if parallel is not None:
        from wmdp_fast.models.adapter_on_parts import refuse_adapter

        refuse_adapter(peft, shared=True)
    base, notes = read()
    if parallel is not None and (rows := vocabulary_size(base)) != len(tokenizer):
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows}, which is not cut or grown for the adapter"
            f" {peft} where processes hold parts of it ({parallel}): take parallel fsdp, or stream it"
        )
    model, of_adapter = with_adapter(base, peft, tokenizer)
    return model, [*notes, *of_adapter]


def wrap_model(
    model: PreTrainedModel | torch.nn.Module, tokenizer: PreTrainedTokenizerBase, *, name: str | None = None
) -> LoadedModel:
    """Describes a model that is in memory already; it stays as it is, training mode included.

    Args:
        model: A causal language model of transformers, or one that PEFT has wrapped.
        tokenizer: Its tokenizer.
        name: What to call it; its `name_or_path` if None.

    Warns:
        WmdpFastWarning: Its attention leaves out what its configuration asks for (soft caps, sinks).

    Raises:
        ModelError: It has no `config`, or no parameters.
        TokenizerError: The tokenizer has neither a BOS nor an EOS token.
    """
    called = name or getattr(model, "name_or_path", "") or type(model).__name__
    notes = about_left_out(model)
    for note in notes:
        warnings.warn(f"{called}: {note}", WmdpFastWarning, stacklevel=2)
    return _describe(model, tokenizer, name=called, notes=notes)


def wrap_streamed(streamed: StreamedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> LoadedModel:
    """Describes a model of which some layers are in memory, and the others are read when they are run.

    Args:
        streamed: The model.
        tokenizer: Its tokenizer.
        name: What to call it.

    Raises:
        TokenizerError: The tokenizer has neither a BOS nor an EOS token.
    """
    skeleton = streamed.skeleton
    found = _describe(skeleton.model, tokenizer, name=name, notes=skeleton.notes)
    return replace(found, device=skeleton.device, streamed=streamed)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluates a model without a trace: training flags and torch's random state are put back afterwards.

    So is what rotary embeddings remember of earlier batches, of which they know nothing inside, and a configuration
    that wants tuples returned, which does not hold inside. Other threads that want the model wait.

    The model computes in the type of its weights, as it is said to, whatever autocast surrounds the call; so does
    lm-eval's (`HFLM._model_call`).

    Gradients are off by `no_grad`: what a module caches under `inference_mode` could not be used in training later.
    """
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with (
        only_user(model),
        fresh_rotary(model),
        objects_returned(model),
        torch.random.fork_rng(devices=cuda),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        training = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            yield
        finally:
            for module, flag in training:
                module.training = flag


def files_identity(loaded: LoadedModel) -> str:
    """What tells a model loaded from files from any other, without reading its weights.

    The commit on the hub; for a folder, a hash over names, sizes and times of its weights, configuration and code. With
    those of its adapter, if there is one.

    Raises:
        ModelError: The model was in memory.
    """
    if loaded.path is None:
        raise ModelError(f"{loaded.name} was in memory: there are no files to know it by")
    return identity.files_identity(loaded.name, loaded.path, loaded.sha, peft=loaded.peft, delta=loaded.delta)


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype a user asked for, or None for that of the checkpoint.

    Raises:
        ValueError: It is not one that models can be scored in.
    """
    if dtype == "auto":
        return None
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, not {dtype}")
    return found


def parse_device(device: str | torch.device) -> torch.device:
    """The device a user asked for.

    Raises:
        ModelError: It is not there.
        ValueError: It is neither the CPU nor CUDA.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not {device}")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            why = "PyTorch finds no GPU" if torch.version.cuda else "this PyTorch is built for the CPU alone"
            raise ModelError(f"device {device}: {why}; use device cpu, or see https://pytorch.org/get-started/locally")
        if (found.index or 0) >= count:
            raise ModelError(f"device {device}: there are only {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return found


def _describe(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    revision: str | None = None,
    peft: str | None = None,
    notes: Sequence[str],
) -> LoadedModel:
    """Describes a model in memory; where it was read from and how long that took is set by who read it."""
    config = getattr(model, "config", None)
    parameter = next(model.parameters(), None)
    if config is None or parameter is None:
        lacks = "config" if config is None else "parameters"
        raise ModelError(f"{name} is not a model of transformers: it has no {lacks}")
    prefix = prefix_token_id(tokenizer)
    if prefix is None:
        raise TokenizerError(f"the tokenizer of {name} has neither a BOS nor an EOS token; set one, e.g. `bos_token`")
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        path=None,
        revision=revision,
        sha=None,
        peft=peft,
        delta=None,
        dtype=getattr(model, "dtype", parameter.dtype),
        device=getattr(model, "device", parameter.device),
        max_length=max_length(config, tokenizer),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        prefix_token_id=prefix,
        seconds=0.0,
        warnings=tuple(notes),
    )


def _from_pretrained(
    where: str, source: Mapping[str, Any], dtype: torch.dtype | None, device: torch.device, allow_missing: bool
) -> tuple[PreTrainedModel, list[str], list[str]]:
    from transformers import AutoModelForCausalLM

    # With accelerate the weights go to the GPU as they are read; without it, through the host's memory.
    device_map = {"": device} if device.type == "cuda" and find_spec("accelerate") else None
    model, missing, unexpected = read_pretrained(
        AutoModelForCausalLM,
        where,
        allow_missing=allow_missing,
        dtype=dtype or "auto",
        device_map=device_map,
        **source,
    )
    if device_map is None:
        try:
            moved: Any = model
            model = moved.to(device)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{where} does not fit into memory on {device}: try dtype bfloat16, or device cpu"
            ) from error
    return model, missing, unexpected


def _warn_of_slow_dtype(model: torch.nn.Module, device: torch.device) -> None:
    """Warns of a 16-bit type that was not asked for and that the CPU only emulates."""
    dtype = next(model.parameters()).dtype
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or not has_onednn:
        return
    kernels = torch.ops.mkldnn
    native = {torch.bfloat16: kernels._is_mkldnn_bf16_supported, torch.float16: kernels._is_mkldnn_fp16_supported}
    if dtype in native and not native[dtype]():
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"this CPU emulates {name}, the checkpoint's dtype: dtype float32 takes twice the memory but is several"
            f" times faster here (dtype {name} silences this)",
            WmdpFastWarning,
            stacklevel=3,
        )


def _on_several(
    where: str, source: Mapping[str, Any], dtype: torch.dtype | None, parallel: str, allow_missing: bool
) -> tuple[PreTrainedModel, list[str], list[str]]:
    """This process's part of a model that those of its group hold together."""
    from torch.distributed.tensor import DTensor
    from transformers import AutoModelForCausalLM

    group: Any = torch.distributed
    try:
        module: Any = importlib.import_module("transformers.distributed")
        options = {"fsdp_size": group.get_world_size()} if parallel == "fsdp" else {"tp_plan": "auto"}
        config = module.DistributedConfig(**options)
    except (ImportError, AttributeError, TypeError) as error:
        raise ModelError(f"this version of transformers cannot load with parallel {parallel}: {error}") from error
    if parallel == "tp":
        _refuse_cut_heads(where, source, group.get_world_size())
    found = read_pretrained(
        AutoModelForCausalLM,
        where,
        allow_missing=allow_missing,
        dtype=dtype or "auto",
        distributed_config=config,
        **source,
    )
    if not any(isinstance(parameter, DTensor) for parameter in found[0].parameters()):
        raise ModelError(
            f"{where}: transformers has no plan for parts of a {type(found[0]).__name__} ({parallel}), so that every"
            " process would have all of it; take parallel fsdp, or stream it"
        )
    return found


def _refuse_cut_heads(where: str, source: Mapping[str, Any], processes: int) -> None:
    """Raises ModelError if a head would be in two processes: what comes of that, no proof of ours would see."""
    from transformers import AutoConfig

    whole: Any = AutoConfig.from_pretrained(where, **source)
    config = whole.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None) or config.num_attention_heads
        if heads % processes:
            raise ModelError(
                f"{where} has {name} {heads}, which do not divide by {processes} processes (tp): take another number"
                " of them, or parallel fsdp"
            )
