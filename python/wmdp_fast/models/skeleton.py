"""A model without numbers, and the parts of its checkpoint: each layer, the embedding, the head, and the rest.

transformers' own code for loading puts in what is read, so names that differ from the model's, experts that are stacked
and types are its business. That code is private to transformers; all of it that is used is used here, and where a
version has it otherwise, the model is refused.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
import transformers

from wmdp_fast.checkpoints.layer_reader import StoredTensor, stored_tensors, unnamed_dtype
from wmdp_fast.checkpoints.stored_rows import StoredRows
from wmdp_fast.checkpoints.weight_files import CONFIG, shown
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.configurations import return_objects
from wmdp_fast.models.decoder import Decoder, decoder_of
from wmdp_fast.models.reading import about_unexpected, check_config, check_weights, failures_as, without_progress
from wmdp_fast.models.threads import loading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

    from wmdp_fast.checkpoints.weight_files import WeightFiles


@dataclass(frozen=True)
class Part:
    """A part of a model that is filled and emptied at once.

    Attributes:
        sources: What it is made from, by the names in the checkpoint.
        empty: Its parameters and stored buffers by their names in the model, without numbers.
        as_stored: Whether the numbers are those of the checkpoint, but for names and types.
    """

    sources: dict[str, StoredTensor]
    empty: dict[str, Tensor]
    as_stored: bool = True

    @property
    def stored_bytes(self) -> int:
        """How much is read to fill it."""
        return sum(source.nbytes for source in self.sources.values())

    @property
    def nbytes(self) -> int:
        """How much memory it takes when it is filled; what has two names is counted once."""
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in self.empty.values()}.values())

    @property
    def arriving_bytes(self) -> int:
        """How much memory it takes at most while it is filled."""
        # What is stacked or split is there twice for a moment; of what is only cast, a few tensors are, a thread each.
        if len(self.sources) != len(self.empty):
            return self.nbytes + max(self.nbytes, self.stored_bytes)
        cast = [source.nbytes for name, source in self.sources.items() if source.dtype not in self._dtypes]
        return self.nbytes + sum(sorted(cast)[-4:])

    @property
    def arriving_at_once_bytes(self) -> int:
        """The same where all that it is made from is in memory before any of it is put in."""
        as_it_is = len(self.sources) == len(self.empty) and {one.dtype for one in self.sources.values()} <= self._dtypes
        return self.nbytes if as_it_is else self.nbytes + max(self.nbytes, self.stored_bytes)

    @property
    def matrix(self) -> StoredTensor | None:
        """What it is made from, if that is one matrix that is taken as it is stored."""
        tensors = list({id(tensor): tensor for tensor in self.empty.values()}.values())
        if not self.as_stored or len(self.sources) != 1 or len(tensors) != 1:
            return None
        [source], [tensor] = self.sources.values(), tensors
        same = source.shape == tuple(tensor.shape) and source.dtype == tensor.dtype
        return source if same and len(source.shape) == 2 and source.nbytes else None

    @property
    def _dtypes(self) -> set[torch.dtype]:
        return {tensor.dtype for tensor in self.empty.values()}


@dataclass(frozen=True)
class Skeleton:
    """A model whose layers, embedding and head are without numbers; what else it has is in memory.

    Attributes:
        model: The model.
        decoder: The same without its head, and its layers.
        device: Where numbers go.
        dtype: Their type, where the model does not want another.
        layers: The layers.
        embedding: The embedding of tokens.
        head: What makes logits; if that is tied to the embedding, the same numbers.
        rest_bytes: Memory that all else takes.
        notes: What results should say of the checkpoint.
        twins: For a parameter of several names, all of them.
        vocabulary: Rows of the embedding in the checkpoint, of which the model may have been given fewer.
        as_built: The model with its modules as they were built, by whose names parts are filled and emptied, if others
            were put around some of them since; None if not.
    """

    model: PreTrainedModel
    decoder: Decoder
    device: torch.device
    dtype: torch.dtype
    layers: tuple[Part, ...]
    embedding: Part
    head: Part
    rest_bytes: int
    notes: tuple[str, ...]
    twins: Mapping[str, tuple[str, ...]]
    vocabulary: int
    as_built: PreTrainedModel | None = None

    @property
    def layers_as_stored(self) -> list[list[tuple[Any, ...]]]:
        """What tells the layers' tensors from those of another checkpoint, as far as files say it without numbers."""
        return [
            sorted((name, str(one.dtype), one.shape, one.start) for name, one in part.sources.items())
            for part in self.layers
        ]

    def fill(self, part: Part, sources: Mapping[str, Any] | None = None) -> None:
        """Reads a part's numbers and puts them in.

        Args:
            part: The part.
            sources: What it is made from, if that is in memory already: by name, what gives a tensor when it is asked
                for all of it (`[...]`).

        Raises:
            ModelError: A file ends too early, or does not fit any more.
        """
        model = self._named
        _load(model, part.sources if sources is None else sources, self.dtype, self.device)
        for name in part.empty:
            filled = _get(model, name)
            filled.requires_grad_(False)
            for twin in self.twins.get(name, ()):
                if filled.device.type != "meta":
                    _set(model, twin, filled)

    def has_rows(self, part: Part) -> bool:
        """Whether a part is a matrix whose rows can be read when they are wanted."""
        return self.device.type == "cpu" and part.matrix is not None

    def fill_with_rows(self, part: Part) -> None:
        """Puts in a matrix of which no row is read yet, see `StoredRows`."""
        matrix = part.matrix
        if matrix is None:
            raise ValueError("only a matrix that is taken as it is stored has rows")
        filled = StoredRows(matrix).parameter()
        for name in part.empty:
            _set(self._named, name, filled)

    def filled(self, part: Part) -> Tensor | None:
        """The first tensor of a part, if it has its numbers."""
        for name in part.empty:
            tensor = _get(self._named, name)
            return None if tensor.is_meta else tensor
        return None

    def empty(self, part: Part) -> None:
        """Takes a part's numbers out again, which frees their memory."""
        for name, tensor in part.empty.items():
            _set(self._named, name, tensor)

    def keeping_names(self) -> Skeleton:
        """The same, which finds its parts whatever is put around modules of the model from now on."""
        return replace(self, as_built=_same_modules(self.model))

    @contextmanager
    def layers_described(self) -> Iterator[None]:
        """Inside, parameters of layers say their shape, type and device; all numbers are 0, and take no memory."""
        for part in self.layers:
            for name, tensor in part.empty.items():
                zeros = torch.zeros((), dtype=tensor.dtype, device=self.device).expand(tensor.shape)
                is_parameter = isinstance(tensor, torch.nn.Parameter)
                _set(self._named, name, torch.nn.Parameter(zeros, requires_grad=False) if is_parameter else zeros)
        try:
            yield
        finally:
            for part in self.layers:
                self.empty(part)

    @property
    def _named(self) -> PreTrainedModel:
        """The model by the names of the checkpoint."""
        return self.model if self.as_built is None else self.as_built


def build_skeleton(
    where: str,
    source: Mapping[str, Any],
    files: WeightFiles,
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    headless: bool = False,
    rows: int | None = None,
) -> Skeleton:
    """Builds a model from its configuration, and finds out of which tensors of its checkpoint each part is made.

    Args:
        where: Folder, or name on the hub.
        source: More to tell transformers, such as the `revision`.
        files: Its weights, on this machine.
        dtype: The type to compute in; None is the checkpoint's.
        device: Where to.
        headless: Whether the checkpoint may be one without a head, which is not going to be used.
        rows: Rows that embedding and head are to have, where the checkpoint has more; None for all.

    Raises:
        ModelError: The checkpoint is damaged or lacks weights, or the model is of a kind that cannot be taken apart; or
            it has fewer rows.
    """
    config = check_config(files.folder, where, source)
    _refuse_kind(where, config)
    of_text = config.get_text_config()
    vocabulary = int(of_text.vocab_size)
    if rows is not None:
        if rows > vocabulary:
            raise ModelError(
                f"the tokenizer has {rows} tokens and {where} {vocabulary}: rows for the others would have to be made"
                " up, which is done in memory only"
            )
        of_text.vocab_size = rows
    with failures_as(ModelError, f"{where} cannot be loaded"):
        stored = stored_tensors(files)
        own: Any = config.dtype or unnamed_dtype(files, stored)
        kind: torch.dtype = dtype or own
        model = _without_numbers(config, kind, where)
        if rows is not None:
            stored = _with_fewer_rows(model, stored, rows)
    if not type(model).__module__.startswith("transformers."):
        raise ModelError(f"{where} comes with code of its own, which is not streamed")
    with failures_as(ModelError, f"{where} cannot be streamed with transformers {transformers.__version__}"):
        absent, notes = _dry_run(where, model, stored, kind, headless=headless)
        decoder = decoder_of(model)
        _fill_what_is_computed(model, absent, device)
        return _in_parts(model, decoder, *_sources(model, stored), kind, device, notes, vocabulary)


def _with_fewer_rows(model: PreTrainedModel, stored: Mapping[str, StoredTensor], rows: int) -> dict[str, StoredTensor]:
    """Tensors of a checkpoint, those that the embedding and the head are made from with their first rows alone."""
    untyped: Any = model
    ends = [model.get_input_embeddings(), untyped.get_output_embeddings()]
    theirs = {id(one) for module in ends if module is not None for one in module.parameters()}
    sources, _ = _sources(model, stored)
    names = [name for name, one in model.state_dict(keep_vars=True).items() if id(one) in theirs]
    cut = {source.name: source.first_rows(rows) for name in names for source in sources.get(name, ())}
    return {**stored, **cut}


def _refuse_kind(where: str, config: PretrainedConfig) -> None:
    """Raises ModelError for what a configuration says cannot be streamed."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else type(quantization).__name__
        raise ModelError(f"{where} is quantized ({shown(method)}), which is not streamed: it is loaded as a whole only")
    if getattr(type(config), "extra_files", None):
        raise ModelError(f"{where} is made from more than {CONFIG} and its weights, which is not streamed")


def _without_numbers(config: PretrainedConfig, dtype: torch.dtype, where: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    config.name_or_path = where
    untyped: Any = AutoModelForCausalLM
    with loading(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        model: PreTrainedModel = untyped.from_config(config, dtype=dtype).eval()
    return_objects(model)
    return model


@dataclass(frozen=True)
class _Unread:
    """A stored tensor without its numbers."""

    stored: StoredTensor

    def __getitem__(self, _everything: object) -> Tensor:
        return torch.empty(self.stored.shape, dtype=self.stored.dtype, device="meta")


def _dry_run(
    where: str, model: PreTrainedModel, stored: Mapping[str, StoredTensor], dtype: torch.dtype, *, headless: bool
) -> tuple[set[str], list[str]]:
    """Loads all of a checkpoint but its numbers, and ties what is tied.

    Arguments are those of `build_skeleton`.

    Returns:
        What is not in the checkpoint and need not be, and what results should say of it.
    """
    unread = {name: _Unread(one) for name, one in stored.items()}
    info: Any = _load(model, unread, dtype, torch.device("meta"))
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    if headless:
        info.missing_keys -= _names_of_head(model)
    absent = set(info.missing_keys)
    model._adjust_missing_and_unexpected_keys(info)
    _, unexpected = check_weights(where, type(model).__name__, info.to_dict())
    return absent, about_unexpected(unexpected)


def _names_of_head(model: PreTrainedModel) -> set[str]:
    """The names of the head's parameters that are its own, and not the embedding's."""
    untyped: Any = model
    head, embedding = untyped.get_output_embeddings(), model.get_input_embeddings()
    own = set() if head is None else {id(parameter) for parameter in head.parameters()}
    own -= {id(parameter) for parameter in embedding.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def _load(model: PreTrainedModel, sources: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """Puts tensors of a checkpoint into a model by transformers' own code; returns what that says of it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    # Made anew each time, as converters remember what they have converted.
    mapping: Any = get_model_conversion_mapping(model)
    options = LoadStateDictConfig(
        device_map={"": device},
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=mapping,
    )
    # Until 5.14 it has to be told that there is no tensor parallelism.
    parallel = {"tp_plan": None} if "tp_plan" in signature(convert_and_load_state_dict_in_model).parameters else {}
    with without_progress(), torch.no_grad():
        info, _ = convert_and_load_state_dict_in_model(
            model, dict(sources), options, disk_offload_index=None, **parallel
        )
    if info.conversion_errors:
        names = ", ".join(sorted(info.conversion_errors)[:4])
        raise ModelError(
            f"{names} cannot be made from the checkpoint: it lacks parts of them, or has them in other shapes than"
            f" {CONFIG} says; copy or download the checkpoint again, or correct {CONFIG}"
        )
    return info


def _sources(
    model: PreTrainedModel, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, list[StoredTensor]], set[str]]:
    """By the names of a model's parameters, the tensors of a checkpoint that they are made from.

    Of parameters that are split from one tensor, the first has it.

    Returns:
        These, and the names of tensors that are not just renamed.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    names, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, list[StoredTensor]] = defaultdict(list)
    converted = set()
    for name, tensor in stored.items():
        target, converter = rename_source_key(name, renamings, converters, prefix, names)
        if target not in names and name in names:
            target, converter = rename_source_key(name, [], [], prefix, names)
        if target in names:
            found[target].append(tensor)
        if converter is not None:
            converted.add(name)
    return found, converted


def _in_parts(
    model: PreTrainedModel,
    decoder: Decoder,
    sources: Mapping[str, list[StoredTensor]],
    converted: set[str],
    dtype: torch.dtype,
    device: torch.device,
    notes: list[str],
    vocabulary: int,
) -> Skeleton:
    """Sorts parameters, given with the tensors that each is made from, by the parts of a model.

    What is in none of the parts that are read when they are used is read now.
    """
    tensors = {name: one for name, one in model.state_dict(keep_vars=True).items() if one.is_meta}
    names_of: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        names_of[id(tensor)].append(name)
    twins = {name: tuple(names) for names in names_of.values() if len(names) > 1 for name in names}

    def part(names: Iterable[str]) -> Part:
        own = [source for name in names for source in sources.get(name, ())]
        by_name = {source.name: source for source in own}
        return Part(by_name, {name: tensors[name] for name in names}, as_stored=not converted & set(by_name))

    [prefix] = [name for name, module in model.named_modules() if module is decoder.layers]
    layers: list[list[str]] = [[] for _ in decoder.layers]
    rest = []
    untyped: Any = model
    embedding = _names_in(model.get_input_embeddings(), names_of)
    head = _names_in(untyped.get_output_embeddings(), names_of)
    for name in tensors:
        number = name.removeprefix(f"{prefix}.").partition(".")[0]
        if name.startswith(f"{prefix}.") and number.isdecimal():
            layers[int(number)].append(name)
        elif name not in {*embedding, *head}:
            rest.append(name)
    if any(set(twins.get(name, ())) - set(names) for names in layers for name in names):
        raise ModelError(f"{type(model).__name__} has weights that several layers share, which is not streamed")
    parts, always = tuple(map(part, layers)), part(rest)
    skeleton = Skeleton(
        model,
        decoder,
        device,
        dtype,
        parts,
        part(embedding),
        part(head),
        always.nbytes,
        tuple(notes),
        twins,
        vocabulary,
    )
    skeleton.fill(always)
    return skeleton


def _names_in(module: nn.Module | None, names_of: Mapping[int, list[str]]) -> list[str]:
    """All names of a module's parameters, those by which other modules have them included."""
    parameters = [] if module is None else list(module.parameters())
    return [name for parameter in parameters for name in names_of[id(parameter)]]


def _fill_what_is_computed(model: PreTrainedModel, names: Iterable[str], device: torch.device) -> None:
    """Gives numbers to what is in no checkpoint: buffers that a model computes, and weights that it may do without."""
    for name in names:
        tensor = _get(model, name)
        made = torch.empty_like(tensor, device=device)
        _set(model, name, torch.nn.Parameter(made) if isinstance(tensor, torch.nn.Parameter) else made)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name in module._non_persistent_buffers_set:
                module._buffers[name] = torch.empty_like(buffer, device=device)
    untyped: Any = model
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        untyped.initialize_weights()


def _same_modules(module: Any) -> Any:
    """Modules with the very parameters and buffers of others, which stay where they are when those are replaced."""
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    children = {name: None if one is None else _same_modules(one) for name, one in module._modules.items()}
    vars(twin)["_modules"] = children
    return twin


def _get(model: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), own)
    return tensor


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    where: dict[str, Any] = module._parameters if own in module._parameters else module._buffers
    where[own] = tensor
