"""A model of which the weights of its layers are read when their turn comes, and never lie in memory together.

While a layer computes, a thread reads the next one. See `skeleton` for how numbers get into the model, and `sweep` for
the order in which it is run.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wmdp_fast.checkpoints.stored_rows import rows_behind
from wmdp_fast.models.fused import fused_parts
from wmdp_fast.models.fused.trials import Trials
from wmdp_fast.models.row_reading import rows_when_called
from wmdp_fast.models.sweep import capture, layers_on_demand
from wmdp_fast.runtime.memory import resident_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast.checkpoints.stored_rows import StoredRows
    from wmdp_fast.models.read_together import ReadTogether
    from wmdp_fast.models.skeleton import Part, Skeleton


# What allocators and libraries take besides, as a share of the memory that a process may take.
SLACK = 0.03


@dataclass
class ReadCost:
    """What streaming has cost so far.

    Attributes:
        bytes_read: Bytes of the checkpoint that were read.
        seconds_waiting: Time in which nothing was computed, as weights were not there yet.
        usual_token_budget: The token budget of a model in memory, where memory was too little for such batches.
    """

    bytes_read: int = 0
    seconds_waiting: float = 0.0
    usual_token_budget: int | None = None

    def record(self) -> dict[str, int | float]:
        """What results say of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class StreamedModel:
    """A model without numbers, and the parts of its checkpoint, which are read when they are used.

    Attributes:
        skeleton: The model and its parts.
        memory: Bytes that the process may take in all.
        order: The numbers of the layers that are run: all of them, or for a trial some.
        kinds: One layer of each kind, or all where the model cannot do without some of them.
        form: How many things a layer returns, see `sweep.capture`.
        fuse: Whether what is faster in one piece is computed so, see `fused_parts`.
        most_tokens: Tokens of a chunk at most; None leaves it to the memory.
        cost: What it has cost so far.
        together: The processes that read its layers together; None if this one reads them alone. Then all of them call
            `read_ahead` and go through all of `order` alike often.
        resident: The numbers of layers that are in memory and stay there, such as those that are trained.
    """

    skeleton: Skeleton
    memory: int
    order: Sequence[int]
    kinds: Sequence[int] = ()
    form: int | None = None
    fuse: bool = False
    most_tokens: int | None = None
    cost: ReadCost = field(default_factory=ReadCost)
    together: ReadTogether | None = None
    resident: frozenset[int] = frozenset()
    _trials: Trials = field(default_factory=Trials)
    _arriving: dict[int, Future[None]] = field(default_factory=dict)
    _reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "wmdp-fast-weights"))

    def read_ahead(self) -> None:
        """Begins to read the first layer."""
        self._begin(self.order[0])

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Inside, a layer has its numbers, and those of the next one are being read."""
        following = self.order[self.order.index(index) + 1 :][:1]
        begin = time.perf_counter()
        self._begin(index)
        if (arriving := self._arriving.pop(index, None)) is not None:
            arriving.result()
        self.cost.seconds_waiting += time.perf_counter() - begin
        for next_one in following:
            self._begin(next_one)
        layer = self.skeleton.decoder.layers[index]
        try:
            if self.fuse:
                is_last = index == len(self.skeleton.decoder.layers) - 1
                with fused_parts(layer, self._trials, last_layer=layer if is_last else None):
                    yield layer
            else:
                yield layer
        finally:
            if index not in self.resident:
                self.skeleton.empty(self.skeleton.layers[index])

    @contextmanager
    def embedding(self) -> Iterator[StoredRows | None]:
        """Inside, the embedding has its numbers: all, or rows of them as it is called, which it then gives."""
        module = self.skeleton.model.get_input_embeddings()
        with self._part(self.skeleton.embedding, module, isinstance(module, nn.Embedding)) as rows:
            yield rows

    @contextmanager
    def head(self, keep: int = 0, *, in_parts: bool = False) -> Iterator[StoredRows | None]:
        """Inside, the head has its numbers: all, or rows of them as they are wanted, which it then gives.

        Args:
            keep: How many bytes of rows may stay after they were used.
            in_parts: Whether it may compute with some rows after the other when it is called, see `rows_when_called`.
        """
        untyped: Any = self.skeleton.model
        module = untyped.get_output_embeddings()
        with self._part(self.skeleton.head, module, type(module) is nn.Linear, in_parts) as rows:
            if rows is not None:
                rows.keep = keep
            yield rows

    @contextmanager
    def on_demand(self, *, in_parts: bool = False) -> Iterator[None]:
        """Inside, the model can be called as one that is in memory, which reads its layers at each call.

        Those that are not in `order` hand on what they are given.

        Args:
            in_parts: Whether its head may round in another way to need less memory, see `head`.
        """
        with self.decoder_on_demand(), self.head(in_parts=in_parts):
            yield

    @contextmanager
    def decoder_on_demand(self) -> Iterator[None]:
        """The same for the model without its head, whose numbers are not read."""
        with self.embedding(), self.dropping():
            decoder = self.skeleton.decoder
            with layers_on_demand(decoder, self.order, self.layer, self.form):
                yield

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Afterwards nothing that was read ahead is left."""
        try:
            yield
        except BaseException:
            if self.together is not None:
                self.together.stop()
            raise
        finally:
            for index, future in list(self._arriving.items()):
                future.exception()
                self.skeleton.empty(self.skeleton.layers[index])
                del self._arriving[index]

    def one_of_each(self) -> StreamedModel:
        """The same with only one layer of each kind, for trials, which each process makes alone."""
        return replace(self, order=self.kinds, together=None)

    def below(self, count: int) -> StreamedModel:
        """The same with only the first layers."""
        kinds = tuple(index for index in self.kinds if index < count)
        return replace(self, order=range(count), kinds=kinds)

    @contextmanager
    def weights_of(self, index: int | None) -> Iterator[None]:
        """Inside, a layer has its numbers, whether or not it is one of `order`; for None, the embedding has."""
        if index is None:
            with self.embedding() as rows:
                if rows is not None:
                    rows.read_all()
                yield
        elif index in self.order and index not in self.resident:
            with self.layer(index):
                yield
        else:
            yield

    @property
    def stored_bytes(self) -> int:
        """Bytes of the checkpoint that are read to run it once."""
        layers = [part for index, part in enumerate(self.skeleton.layers) if index not in self.resident]
        return sum(part.stored_bytes for part in (*layers, self.skeleton.embedding, self.skeleton.head))

    def arriving_bytes(self, part: Part) -> int:
        """Bytes that a layer takes at most while it is filled."""
        return part.arriving_bytes if self.together is None else part.arriving_at_once_bytes

    def working_bytes(self, tokens: int) -> int:
        """Bytes that a layer makes of a batch of so many tokens, by the rule of `auto_token_budget`."""
        config: Any = self.skeleton.model.config.get_text_config()
        hidden: int = config.hidden_size
        width: Any = getattr(config, "intermediate_size", None) or 4 * hidden
        # Of some models each layer has a width of its own.
        widest = max(width) if isinstance(width, list) else width
        return tokens * self.skeleton.dtype.itemsize * (8 * hidden + 3 * int(widest))

    def _begin(self, index: int) -> None:
        if index not in self._arriving and index not in self.resident:
            self._arriving[index] = self._reader.submit(self._fill_layer, self.skeleton.layers[index])

    def _fill_layer(self, part: Part) -> None:
        if self.together is None:
            self._fill(part)
            return
        sources, read = self.together.read(part.sources)
        self.skeleton.fill(part, sources)
        self.cost.bytes_read += read

    def _fill(self, part: Part) -> None:
        self.skeleton.fill(part)
        self.cost.bytes_read += part.stored_bytes

    @contextmanager
    def _part(
        self, part: Part, module: nn.Module | None, by_rows: bool, in_parts: bool = False
    ) -> Iterator[StoredRows | None]:
        if (there := self.skeleton.filled(part)) is not None:
            # A head that is tied to the embedding.
            with rows_when_called(module, rows_behind(there), in_parts=in_parts) as rows:
                yield rows
            return
        begin = time.perf_counter()
        by_rows = by_rows and self.skeleton.has_rows(part)
        # On the same thread as layers, as transformers looks at the whole model while it loads.
        self._reader.submit(self.skeleton.fill_with_rows if by_rows else self._fill, part).result()
        self.cost.seconds_waiting += time.perf_counter() - begin
        rows = rows_behind(self.skeleton.filled(part))
        try:
            with rows_when_called(module, rows, in_parts=in_parts):
                yield rows
        finally:
            self.cost.bytes_read += 0 if rows is None else rows.bytes_read
            self.skeleton.empty(part)


def memory_in_use(device: torch.device) -> int:
    """Bytes of memory that are taken now: by the process, or of a GPU by its tensors."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else resident_bytes()


def stream(skeleton: Skeleton, memory: int) -> StreamedModel:
    """A skeleton as a model that can be run.

    Raises:
        ModelError: The model does not call its layers one after another.
    """
    layers = skeleton.decoder.layers
    model = StreamedModel(skeleton, memory, range(len(layers)))
    tokens = torch.tensor([[1, 2]], device=skeleton.device)
    call: Any = skeleton.decoder.model
    with model.embedding(), torch.no_grad():
        found = capture(skeleton.decoder, lambda: call(tokens, use_cache=False))
    first: dict[Any, int] = {}
    for index, layer in enumerate(layers):
        first.setdefault(_kind(layer), index)
    model = replace(model, form=found.form, kinds=tuple(first.values()))
    try:
        with model.one_of_each().decoder_on_demand(), torch.no_grad():
            call(tokens, use_cache=False)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        # Some layers need what others have computed.
        return replace(model, kinds=model.order)
    return model


def _kind(layer: nn.Module) -> Any:
    """What layers that compute alike have in common: classes, sizes and settings of all that is in them."""
    settings = []
    for name, module in layer.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str)) and "idx" not in key and not key.endswith("layer_id")
        }
        shapes = tuple((key, tuple(one.shape), one.dtype) for key, one in module.named_parameters(recurse=False))
        settings.append((name, type(module).__name__, tuple(sorted(plain.items())), shapes))
    return tuple(settings)
