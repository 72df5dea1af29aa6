"""LoRA factors in the live model, by PEFT, and out of it again: merged into its tensors, or as an adapter on disk.

The factors are what is trained, so all that a run does with what it trains (states, best weights, the original model)
it does with them. Only what is saved is different: tensors of the model with the factors merged in, or the factors.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from wmdp_fast.checkpoints import checkpoint, tensor_file
from wmdp_fast.checkpoints.saved_dtype import Saving, choose
from wmdp_fast.exceptions import InternalError, ModelError
from wmdp_fast.models.reading import failures_as
from wmdp_fast.unlearning.seeds import mixed_seed
from wmdp_fast.unlearning.trained_weights import TrainedWeights, as_found, exchanged, only_trained

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from wmdp_fast.checkpoints.shard_copies import ShardCopies
    from wmdp_fast.unlearning.lora import LoRA
    from wmdp_fast.unlearning.parameters import TrainedParameter
    from wmdp_fast.unlearning.source import Source
    from wmdp_fast.unlearning.training_config import TrainingConfig

_NAME = "default"

# What PEFT calls the files of an adapter.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class LoRAWeights(TrainedWeights):
    """LoRA factors beside some matrices of a model. They are in the model inside `in_model` only.

    Args:
        picked: The matrices.
        source: The model.
        save_dtype: The setting of that name.
        lora: The setting.
        seed: Of the factors' first values.
        save_adapter: Whether the factors are saved; otherwise the matrices with these merged in.

    Raises:
        ModelError: The model has an adapter already.
        ValueError: `save_dtype` is set for a model that has no files.
    """

    def __init__(
        self,
        picked: Sequence[TrainedParameter],
        source: Source,
        save_dtype: str,
        lora: LoRA,
        *,
        seed: int,
        save_adapter: bool,
    ) -> None:
        super().__init__(picked, source, save_dtype)
        model = source.decoder.model
        if hasattr(model, "peft_config"):
            raise ModelError(f"{source.name} has an adapter already; merge it into the model first")
        self._lora, self._seed, self._save_adapter = lora, seed, save_adapter
        # The matrices are no parameters of the run, but they are what it changes in the end.
        self._matrices, self.parameters = self.parameters, {}
        self._untouched = {name: parameter.data for name, parameter in self._matrices.items()}
        self._paths = {name: name.removesuffix(".weight") for name in self._matrices}
        kinds = {isinstance(model.get_submodule(path), Conv1D) for path in self._paths.values()}
        if len(kinds) > 1:
            raise ModelError(f"{source.name} has linear layers of two kinds, which one adapter of PEFT cannot have")
        self._transposed = kinds == {True}
        self._targets = _short_targets(picked, source) if save_adapter else {}
        self._layers: dict[str, Any] = {}
        self._is_merged = False

    @property
    def narrow(self) -> None:
        """Factors are in float32."""

    @contextlib.contextmanager
    def in_model(self, *, keep: bool = True) -> Iterator[None]:
        """Inside, the model has the factors. Then they are merged in, or all is as before if there was an error.

        Args:
            keep: Whether they are merged in; if not, all is as before in any case.
        """
        kept = False
        with as_found(self.model):
            try:
                self._insert()
                only_trained(self.model, self.parameters.values())
                yield
                if keep and not self._is_merged:
                    self._merge(self._in_the_models_type())
                kept = keep
            finally:
                if not kept:
                    self._take_out()
                    self.put_back()
                self._source.decoder.model.__dict__.pop("peft_config", None)
                self._untouched = {}

    @contextlib.contextmanager
    def training(self, step: int, seed: int) -> Iterator[None]:
        """Inside, factors drop out what they should, drawn from the step and the seed."""
        if not self._lora.dropout:
            yield
            return
        dropouts = [layer.lora_dropout for layer in self._layers.values()]
        shared = self._source.shared
        mixed = mixed_seed((seed, step) if shared is None else (seed, step, shared.rank))
        devices = [self.device] if self.device.type == "cuda" else []
        for one in dropouts:
            one.train()
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(mixed)
                yield
        finally:
            for one in dropouts:
                one.eval()

    @contextlib.contextmanager
    def as_original(self) -> Iterator[None]:
        """Inside, the model is the original one, whether factors are in it or merged into it."""
        if self._is_merged:
            with exchanged(self._matrices, self._untouched):
                yield
        else:
            with exchanged(self.parameters, self.originals):
                yield

    def put_back(self) -> None:
        """Gives the matrices their original values."""
        for name, parameter in self._matrices.items():
            parameter.data = self._untouched[name]
        self._is_merged = False

    def digest(self) -> str:
        """SHA-256 of the matrices and of the factors' first values."""
        return tensor_file.digest_of(_Whole({**self._untouched, **self.originals}))

    def saving(self) -> Saving:
        """In what type the matrices would be saved now, and what rounding the merged ones to it loses."""
        if self._save_adapter:
            dtypes = {name: parameter.dtype for name, parameter in self.parameters.items()}
            return Saving(dtypes, as_checkpoint=True, trained_in=torch.float32, lost=0.0, lost_as_checkpoint=0.0)
        # A model that has no files is saved in the types that it has.
        wanted = self._save_dtype if self._source.base is not None else "checkpoint"
        return choose(wanted, _Merged(self), self._untouched, self._stored)

    @contextlib.contextmanager
    def as_saved(self) -> Iterator[None]:
        """Inside, the model has the matrices that would be saved now, without factors, if its type can hold them."""
        if self._is_merged or (values := self._as_saved(self.saving())) is None:
            yield
            return
        self._merge(values)
        try:
            yield
        finally:
            self.put_back()
            self._put_in()

    def round(self) -> Saving:
        """Gives the model the matrices that are saved, if its type can hold them, and says what rounding changed."""
        saving = self.saving()
        if (values := self._as_saved(saving)) is not None:
            self._merge(values)
        return saving

    def changed(self, saving: Saving) -> dict[str, Tensor]:
        """The tensors that are saved, by the names that they are saved by."""
        if self._save_adapter:
            return self._adapter_tensors()
        merged, base = _Merged(self), self._source.base
        if base is None:
            return {name: parameter.detach().cpu().clone() for name, parameter in self._matrices.items()}
        dtype = None if saving.as_checkpoint else next(iter(saving.dtypes.values()))
        found: dict[str, Tensor] = {}
        for name, tensor in merged.items():  # one in float32 at a time
            found |= checkpoint.stored_tensors(self._source.decoder.model, {name: tensor}, base, dtype)
        return found

    def shard_copies(self, folder: Path) -> ShardCopies | None:
        """As of other weights; none if the factors are what is saved."""
        return None if self._save_adapter else super().shard_copies(folder)

    def saved_from_memory(self, saved: checkpoint.Checkpoint) -> tuple[str, dict[str, Tensor]]:
        """As of other weights: here they are the matrices."""
        base = self._source.decoder.model
        before = checkpoint.stored_tensors(base, self._untouched, saved)
        changed = checkpoint.stored_tensors(base, self._matrices, saved)
        return tensor_file.digest_of(before), changed

    def write_adapter(self, folder: Path, base: str) -> None:
        """Writes the factors as PEFT does.

        Args:
            folder: Where to.
            base: What the configuration calls the model: its name on the hub, or its folder.
        """
        described = self._peft_config(**self._targets).to_dict()
        described |= {"base_model_name_or_path": base, "revision": self._source.commit, "inference_mode": True}
        plain = {name: sorted(one) if isinstance(one, (set, frozenset)) else one for name, one in described.items()}
        text = json.dumps(plain, indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
        tensor_file.write_tensors(folder / ADAPTER_WEIGHTS, self._adapter_tensors(), {"format": "pt"})

    def merged(self, name: str) -> Tensor:
        """A matrix with its factors merged in, float32."""
        layer = self._layers[name]
        product = layer.lora_B[_NAME].weight.detach() @ layer.lora_A[_NAME].weight.detach()
        if layer.fan_in_fan_out:
            product = product.t()
        return self._untouched[name].to(torch.float32, copy=True).add_(product, alpha=layer.scaling[_NAME])

    def names(self) -> list[str]:
        """Of the matrices, in the model."""
        return list(self._matrices)

    def _first_values(self) -> dict[str, Tensor]:
        return {}  # there are no factors yet

    def _insert(self) -> None:
        """Lets PEFT put factors in, and gives them their first values, which depend on the seed alone."""
        import peft

        model: Any = self._source.decoder.model
        config = self._peft_config(target_modules=list(self._paths.values()))
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of what is checked below
            with failures_as(ModelError, f"PEFT cannot put LoRA on {self._source.name}"):
                peft.inject_adapter_in_model(config, model, adapter_name=_NAME)
        self._layers = {name: model.get_submodule(path) for name, path in self._paths.items()}
        generator = torch.Generator("cpu").manual_seed(self._seed)
        for name, layer in self._layers.items():
            if not hasattr(layer, "lora_A"):
                raise InternalError(f"PEFT has put no factors beside {name}")
            # PEFT gives them the type of the matrix.
            first, second = (getattr(layer, part)[_NAME].to(torch.float32) for part in ("lora_A", "lora_B"))
            bound = 1 / math.sqrt(first.in_features)
            first.weight.data.copy_(torch.empty(first.weight.shape).uniform_(-bound, bound, generator=generator))
            second.weight.data.zero_()
            self.parameters[f"{self._paths[name]}.lora_A.{_NAME}.weight"] = first.weight
            self.parameters[f"{self._paths[name]}.lora_B.{_NAME}.weight"] = second.weight
        self.originals = self.copies()

    def _peft_config(self, **targets: Any) -> Any:
        import peft

        alpha: Any = self._lora.alpha
        return peft.LoraConfig(
            r=self._lora.r,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
            lora_dropout=self._lora.dropout,
            fan_in_fan_out=self._transposed,
            bias="none",
            task_type="CAUSAL_LM",
            **targets,
        )

    def _put_in(self) -> None:
        for name, layer in self._layers.items():
            self._replace(name, layer)

    def _take_out(self) -> None:
        model: Any = self._source.decoder.model
        for name, path in self._paths.items():
            layer = model.get_submodule(path)
            if hasattr(layer, "base_layer"):
                self._replace(name, layer.base_layer)

    def _replace(self, name: str, module: nn.Module) -> None:
        parent, _, child = self._paths[name].rpartition(".")
        setattr(self._source.decoder.model.get_submodule(parent), child, module)

    def _merge(self, values: Mapping[str, Tensor]) -> None:
        """Takes the factors out, and puts other tensors in place of the matrices."""
        self._take_out()
        for name, parameter in self._matrices.items():
            parameter.data = values[name]
        self._is_merged = True

    def _as_saved(self, saving: Saving) -> dict[str, Tensor] | None:
        """The matrices as they are saved, if the model's type can hold them; None if not, or if factors are saved."""
        if self._save_adapter:
            return None
        types = {name: parameter.dtype for name, parameter in self._matrices.items()}
        if any(torch.promote_types(types[name], dtype) != types[name] for name, dtype in saving.dtypes.items()):
            return None
        return {name: self.merged(name).to(saving.dtypes[name]).to(types[name]) for name in types}

    def _in_the_models_type(self) -> dict[str, Tensor]:
        return {name: self.merged(name).to(parameter.dtype) for name, parameter in self._matrices.items()}

    def _adapter_tensors(self) -> dict[str, Tensor]:
        """The factors by the names that PEFT saves them by."""
        prefix = f"base_model.model.{_place(self._source)}"
        return {
            f"{prefix}{name.replace(f'.{_NAME}.', '.')}": parameter.detach().cpu().clone()
            for name, parameter in self.parameters.items()
        }


def weights_of(config: TrainingConfig, picked: Sequence[TrainedParameter], source: Source) -> TrainedWeights:
    """What a run trains: parameters of the model themselves, or factors beside them.

    Args:
        config: The settings.
        picked: The parameters that they say.
        source: The model.

    Raises:
        ModelError: Factors are to be trained, and the model has an adapter already.
        ValueError: `save_dtype` is set for a model that has no files.
    """
    if config.lora is None:
        return TrainedWeights(picked, source, config.save_dtype)
    return LoRAWeights(
        picked, source, config.save_dtype, config.lora, seed=config.seed, save_adapter=config.save_adapter
    )


class _Whole(Mapping[str, "Tensor"]):
    """Tensors as a whole, each put together when it is asked for where processes hold parts of it (a DTensor)."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor: Any = self._tensors[name]
        whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _Merged(Mapping[str, "Tensor"]):
    """The matrices with their factors merged in, each computed when it is asked for."""

    def __init__(self, weights: LoRAWeights) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights.merged(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights.names())

    def __len__(self) -> int:
        return len(self._weights.names())


def _place(source: Source) -> str:
    """What stands before the names of the model without its head in those of the whole one, such as `model.`."""
    model: Any = source.decoder.model
    if source.whole is None:
        return f"{model.base_model_prefix}."
    name = next(name for name, module in source.whole.named_modules() if module is model)
    return f"{name}." if name else ""


def _short_targets(picked: Sequence[TrainedParameter], source: Source) -> dict[str, Any]:
    """How an adapter's configuration says which layers it is for: as shortly as says the same, as others write it."""
    model = source.whole or source.decoder.model
    place = "" if source.whole is None else _place(source)
    paths = {f"{place}{one.name.removesuffix('.weight')}" for one in picked}
    linears = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    layers = sorted({one.layer for one in picked if one.layer is not None})
    prefix = f"{place}{source.decoder.prefix}."
    some = {} if len(layers) == source.num_layers else {"layers_to_transform": layers}

    def matched(ends: set[str]) -> set[str]:
        of_layers = [
            name for name in linears if not some or name.startswith(tuple(f"{prefix}{one}." for one in layers))
        ]
        return {name for name in of_layers if any(name.endswith(f".{end}") for end in ends)}

    within = {path.removeprefix(prefix).partition(".")[2] for path in paths}
    for ends in ({name.rpartition(".")[2] for name in within}, within):
        if matched(ends) == paths:
            return {"target_modules": sorted(ends), **some}
    return {"target_modules": sorted(f"{_place(source)}{one.name.removesuffix('.weight')}" for one in picked)}
