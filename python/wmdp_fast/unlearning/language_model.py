"""The whole model on batches of documents, for methods whose losses are about what it says.

What such a method works with: the cross-entropy of every token of a batch, or its KL divergence from the original
model, as numbers that can be differentiated. Documents are packed without padding where that gives the same, the
logits of a batch are never there at once (`token_losses`), and the original model is not a second one but this one with
the original values of what is trained put in. A method takes its forget loss and differentiates it before it takes its
retain loss, so that one of the two graphs is in memory at a time::

    model = LanguageModel(setup)
    loss = -model.losses(forget).means().mean()
    gradients = model.gradients(loss)
    loss = model.losses(retain).means().mean()
    model.gradients(loss, into=gradients)
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from wmdp_fast.exceptions import InternalError, ModelError, what_was_raised
from wmdp_fast.models.attention.packed import NotPackableError, packed_attention, packed_batch
from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.models.fused.lean_gates import LEAN_GATES
from wmdp_fast.models.fused.linear import LINEAR_LAYERS
from wmdp_fast.models.fused.trials import Trials, replaced_modules
from wmdp_fast.models.head import head_of
from wmdp_fast.models.threads import computing
from wmdp_fast.scoring.padded import is_out_of_memory
from wmdp_fast.unlearning.batches import lengthened
from wmdp_fast.unlearning.gradients import add_gradients
from wmdp_fast.unlearning.token_losses import cross_entropies, kl_divergences, soft_cross_entropies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from wmdp_fast.models.fused.trials import ModulePart
    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.method import Setup

# Logits held at once, by the kind of device; with what is made of them they take twice their memory, three times of a
# divergence. 256 rows of 50,000 tokens multiply a third faster on a CPU than 85, and no slower than more.
_LOGITS = {"cpu": 3 << 22, "cuda": 1 << 26}

# Tokens of a document whose gradient is tried with and without padding.
_EXCERPT = 64


@dataclass(frozen=True)
class DocumentLosses:
    """The losses of a batch's tokens, each but the first of a document being predicted from those before it.

    Attributes:
        nll: Of each predicted token that counts, in nats, float32 [N].
        document: The place of its document in the batch, int64 [N], ascending.
        num_documents: D.
    """

    nll: Tensor
    document: Tensor
    num_documents: int

    def sums(self) -> Tensor:
        """By document, float32 [D]; 0 for one of which nothing counts."""
        # A product, since what would add them up one by one does it in no fixed order on a GPU.
        return self._membership().t() @ self.nll

    def means(self) -> Tensor:
        """By document, float32 [D]; 0 for one of which nothing counts."""
        return self.sums() / self.counts().clamp_min(1)

    def counts(self) -> Tensor:
        """Tokens that count by document, float32 [D]."""
        return self._membership().sum(dim=0)

    def mean(self) -> Tensor:
        """Over all tokens, whatever their document."""
        return self.nll.mean()

    def _membership(self) -> Tensor:
        places = torch.arange(self.num_documents, device=self.document.device)
        return (self.document.unsqueeze(1) == places).to(self.nll.dtype)


@dataclass(frozen=True)
class _Predicted:
    """The tokens of a batch that count, and what predicts them.

    Attributes:
        row: The row of each, int64 [N].
        at: The position that predicts it, the one before its own.
        targets: The tokens.
        document: The places of their documents in the batch.
    """

    row: Tensor
    at: Tensor
    targets: Tensor
    document: Tensor

    def none(self) -> _Predicted:
        """None of them."""
        return _Predicted(self.row[:0], self.at[:0], self.targets[:0], self.document[:0])


class LanguageModel:
    """A model with its head, of which some parameters are trained.

    Args:
        setup: What the method works on.
        gradient_checkpointing: Whether layers are run again for their gradients, so that what they compute in between
            need not be kept: a third more time for a fraction of the memory.

    Raises:
        ModelError: The model's logits do not follow from its last hidden states.

    Example:
        >>> import torch
        >>> import wmdp_fast as wf
        >>> from wmdp_fast import demo
        >>> class Measured(wf.Method):
        ...     metrics = ("nll", "kl")
        ...
        ...     def __init__(self, setup):
        ...         self.model = wf.LanguageModel(setup)
        ...
        ...     def step(self, given):
        ...         ((_forget, retain),) = given.pairs
        ...         with torch.no_grad():
        ...             losses = self.model.losses(retain).means().mean(), self.model.kl(retain).mean()
        ...         return wf.StepOutput({}, torch.stack(losses))
        ...
        ...     def card(self, record):
        ...         return wf.CardText(method="measuring", summary="Nothing was done.", change="", ways_back=())
        >>> class MeasuredConfig(wf.SSDConfig):  # the settings of another method without steps
        ...     method_name = "measured"
        ...
        ...     def method(self, setup):
        ...         return Measured(setup)
        >>> corpora = {domain: demo.corpus_path(domain) for domain in ("forget", "retain")}
        >>> result = wf.unlearn(demo.model_path(), **corpora, config=MeasuredConfig(dtype="float32"), progress=False)
        >>> result.metrics[0]["kl"]  # nothing has been trained
        0.0
    """

    def __init__(self, setup: Setup, *, gradient_checkpointing: bool = False) -> None:
        if setup.model is None:
            raise InternalError("a method over logits needs the whole model: its configuration may not have a depth")
        self._setup, self._trained = setup, dict(setup.trained)
        self._checkpointing = gradient_checkpointing
        # Layers that are run again keep nothing anyway.
        self._parts: tuple[ModulePart, ...] = (
            (LINEAR_LAYERS,) if gradient_checkpointing else (LINEAR_LAYERS, LEAN_GATES)
        )
        if setup.shared is not None:
            # Layers have no whole weights to be tried with until they run.
            self._parts = ()
        self._trials = Trials()
        device = setup.batches.device
        with computing():
            head = head_of(setup.model, device)
        if head is None:
            raise ModelError(
                f"{setup.name}: {type(setup.model).__name__} makes its logits from more than its last hidden states, so"
                " their losses cannot be taken in parts; unlearn it with a method on hidden states, such as rmu"
            )
        self._head, self._base = head, setup.decoder.model
        ours = {id(parameter) for parameter in self._trained.values()}
        self._trained_head = [one for one in _head_parameters(setup.model, self._base) if id(one) in ours]
        rows = max(1, _LOGITS["cuda" if device.type == "cuda" else "cpu"] // head.vocabulary_size)
        self._options: dict[str, Any] = {"rows": rows, "head": self._trained_head}
        self._takes_positions = "position_ids" in inspect.signature(self._base.forward).parameters

    def why_padded(self, padded: Batch, packed: Batch) -> str | None:
        """Why documents must be padded; None if they need not be.

        The losses of some documents are tried both ways, and the gradients of their first tokens: those of a whole
        padded batch would take more memory than any step.
        """
        with computing():
            with torch.no_grad():
                expected = self.losses(padded).nll
            slopes = self._gradients_of_excerpts(packed=False)
            try:
                with torch.no_grad():
                    found = self.losses(packed).nll
                packed_slopes = self._gradients_of_excerpts(packed=True)
            except NotPackableError as error:
                return str(error)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                return f"tried without padding, {what_was_raised(error)}"
        # Half the digits of the dtype: batches of another shape round differently.
        allowed = torch.finfo(self._base.dtype).eps ** 0.5
        difference = _relative_difference([found], [expected])
        if not difference <= allowed:
            return f"packed, losses of tokens differ by {difference:.1g} of what they are with padding"
        difference = _relative_difference(packed_slopes, slopes)
        if not difference <= allowed:
            return f"packed, gradients differ by {difference:.1g} of what they are with padding"
        return None

    def losses(self, batch: Batch, *, padded_to: int | None = None) -> DocumentLosses:
        """The cross-entropy of every token that counts, with gradients for what is trained.

        The first token of a document is never predicted, so neither is a BOS.

        Args:
            batch: Documents.
            padded_to: Pads the documents to so many tokens and counts the padding too, as some published code does;
                the batch must be padded.

        Raises:
            ValueError: Nothing in the batch counts.
        """
        padding = padded_to is not None
        if padded_to is not None:
            batch = lengthened(batch, padded_to, self._setup.batches.pad_id)

        def losses_of(own: Batch, predicted: _Predicted) -> Tensor:
            hidden = self._states(own, padding=padding)[predicted.row, predicted.at]
            return cross_entropies(self._head.logits, hidden, predicted.targets, **self._options)

        nll, document = self._of_tokens(losses_of, batch, padding=padding)
        return DocumentLosses(nll, document, len(batch.documents))

    def hidden(self, batch: Batch) -> Tensor:
        """The last hidden states of the positions that predict a token that counts, `[N, d]`, with gradients."""

        def states_of(own: Batch, predicted: _Predicted) -> Tensor:
            return self._states(own)[predicted.row, predicted.at]

        return self._of_tokens(states_of, batch)[0]

    def soft_losses(self, batch: Batch, tokens: Tensor, shares: Tensor) -> Tensor:
        """The cross-entropy to a distribution over a few tokens, for every token that counts: float32 `[N]`.

        Args:
            batch: Documents.
            tokens: Token ids for each of them, int64 `[N, K]`.
            shares: Their probabilities, float32 `[N, K]`.
        """

        def losses_of(own: Batch, predicted: _Predicted, tokens: Tensor, shares: Tensor) -> Tensor:
            hidden = self._states(own)[predicted.row, predicted.at]
            return soft_cross_entropies(self._head.logits, hidden, tokens, shares, **self._options)

        return self._of_tokens(losses_of, batch, tokens, shares)[0]

    def kl(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        """KL(p0 || p) wherever a token that counts is predicted, p0 being the original model's: float32 `[N]`.

        The original model's states are computed in the same way as the model's, so this is exactly 0 while nothing has
        been trained.

        Args:
            batch: Documents.
            temperature: What both logits are divided by.
        """

        def divergences_of(own: Batch, predicted: _Predicted) -> Tensor:
            with self.originals():
                original = self._states(own)[predicted.row, predicted.at]
            return self._divergences(self._states(own)[predicted.row, predicted.at], original, temperature)

        return self._of_tokens(divergences_of, batch)[0]

    def losses_and_kl(self, batch: Batch, *, temperature: float = 1.0) -> tuple[DocumentLosses, DocumentLosses]:
        """What `losses` and `kl` are, the latter by document too, from one run of the model and one of the original.

        Args:
            batch: Documents.
            temperature: What both logits are divided by for the divergence, and for that alone.
        """

        def both_of(own: Batch, predicted: _Predicted) -> Tensor:
            with self.originals():
                original = self._states(own)[predicted.row, predicted.at]
            hidden = self._states(own)[predicted.row, predicted.at]
            nll = cross_entropies(self._head.logits, hidden, predicted.targets, **self._options)
            return torch.stack([nll, self._divergences(hidden, original, temperature)], dim=1)

        both, document = self._of_tokens(both_of, batch)
        nlls, kls = (DocumentLosses(one, document, len(batch.documents)) for one in both.unbind(dim=1))
        return nlls, kls

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of a few hidden states `[R, d]`: `[R, V]`. As few as memory allows: V is large."""
        return self._head.logits(hidden)

    @contextmanager
    def originals(self) -> Iterator[None]:
        """Inside, the model is the original one, and nothing is differentiated.

        Not while the gradient of a loss is still to be computed.
        """
        with self._setup.as_original(), torch.no_grad():
            yield

    def gradients(self, loss: Tensor, into: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Differentiates a loss with respect to what is trained, and lets go of its graph.

        Args:
            loss: A number.
            into: Gradients of other parts of a step's loss, by name, to which these are added in place.

        Returns:
            `into`, or new ones; each of its parameter's shape and type.
        """
        gradients = {} if into is None else into
        add_gradients(loss, self._trained, gradients, self._setup.shared)
        return gradients

    def _of_tokens(
        self, compute: Callable[..., Tensor], batch: Batch, *given: Tensor, padding: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Something of every token that counts in a batch, `[N, ...]`, and the places of their documents.

        Args:
            compute: Computes it for a batch, or for a part of one, of which it is given what is predicted.
            batch: The batch. Of one that processes share, this one computes its documents and gets all.
            given: What else it is given, a row for each token `[N, ...]`.
            padding: Whether padding counts.

        Raises:
            ValueError: Nothing in the batch counts.
        """
        predicted, shared = _predicted(batch, padding=padding), self._setup.shared
        if len(predicted.row) == 0:
            raise ValueError("a batch has no token whose loss counts: give documents of two tokens or more")
        if shared is None:
            return compute(batch, predicted, *given), predicted.document
        part, is_own = shared.part_of(batch)
        own, rows = _predicted(part, padding=padding), shared.rows_of_own(predicted.document, len(batch.documents))
        made = compute(part, own if is_own else own.none(), *(one[rows] for one in given))
        return shared.gathered(made, predicted.document, len(batch.documents)), predicted.document

    def _states(self, batch: Batch, *, padding: bool = False) -> Tensor:
        """The last hidden states of all positions, `[B, S, d]`."""
        inputs = dict(batch.inputs)
        if batch.layout is None and self._takes_positions and not padding:
            # Those of a document by itself; left to themselves, models count the padding before it.
            inputs["position_ids"] = (batch.attention_mask.cumsum(dim=1) - 1).clamp_min(0)
        with self._running(batch), self._checkpointed(batch):
            return self._head.hidden(**inputs)

    @contextmanager
    def _running(self, batch: Batch, part: nn.Module | None = None) -> Iterator[None]:
        """Inside, the model, or a part of it, runs a batch, with linear layers that are faster where there are such.

        And with feed-forward blocks that keep less. No others are replaced: they have no gradients, and the original
        model must differ in nothing but its weights.
        """
        with replaced_modules(part or self._base, self._parts, self._trials):
            if batch.layout is None:
                yield
            else:
                with packed_attention(self._base), packed_batch(batch.layout):
                    yield

    @contextmanager
    def _checkpointed(self, batch: Batch) -> Iterator[None]:
        """Inside, layers keep nothing but their input for their gradients, if that is wanted."""
        if not (self._checkpointing and torch.is_grad_enabled()):
            yield
            return
        layers = list(self._setup.decoder.layers)
        with replaced_forwards({layer: partial(self._run_again, layer, layer.forward, batch) for layer in layers}):
            yield

    def _run_again(self, layer: nn.Module, forward: Any, batch: Batch, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            # Factors that drop out some of their inputs must drop out the same.
            preserve_rng_state=any(one.training for one in layer.modules()),
            # By then the model is as it was found again.
            context_fn=lambda: (nullcontext(), self._running(batch, layer)),
            **kwargs,
        )

    def _divergences(self, hidden: Tensor, original: Tensor, temperature: float) -> Tensor:
        return kl_divergences(
            self._head.logits,
            hidden,
            lambda at: self._original_logits(original[at]),
            temperature=temperature,
            **self._options,
        )

    def _original_logits(self, hidden: Tensor) -> Tensor:
        if not self._trained_head:
            return self._head.logits(hidden)
        with self.originals():
            return self._head.logits(hidden)

    def _gradients_of_excerpts(self, *, packed: bool) -> list[Tensor]:
        """The gradients of the mean loss of the first tokens of forget documents."""
        reader = self._setup.batches
        few = replace(reader, max_lengths=[min(_EXCERPT, length) for length in reader.max_lengths])
        # What counts may begin later.
        batch = replace(few.forget(0, 0, packed=packed), counted=None)
        return list(self.gradients(self.losses(batch).mean()).values())


def _predicted(batch: Batch, *, padding: bool = False) -> _Predicted:
    """What counts in a batch; `padding` counts that too."""
    ids, real = batch.inputs["input_ids"], batch.attention_mask.bool()
    if batch.layout is not None:
        first = batch.inputs["position_ids"] == 0
        document = first.cumsum(dim=1) - 1
        predicted = ~first[:, 1:]
    else:
        document = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
        predicted = torch.ones_like(real[:, 1:]) if padding else real[:, :-1]
    counted = real if batch.counted is None else batch.counted.bool()
    predicted = predicted & (counted | ~real if padding else counted & real)[:, 1:]
    row, at = predicted.nonzero(as_tuple=True)
    return _Predicted(row, at, ids[row, at + 1], document[row, at])


def _head_parameters(model: nn.Module, base: nn.Module) -> list[nn.Parameter]:
    """The parameters that make logits of last hidden states; of a tied head they are the embedding's too."""
    within = set(base.modules())
    found = {
        id(parameter): parameter
        for module in model.modules()
        if module not in within
        for parameter in module.parameters(recurse=False)
    }
    return list(found.values())


def _relative_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The length of the difference of some tensors from others, all together, over that of the others."""
    differences = [torch.linalg.vector_norm(a.float() - b.float()) for a, b in zip(found, expected, strict=True)]
    lengths = [torch.linalg.vector_norm(one.float()) for one in expected]
    ratio = torch.linalg.vector_norm(torch.stack(differences)) / torch.linalg.vector_norm(torch.stack(lengths))
    return float(ratio)
