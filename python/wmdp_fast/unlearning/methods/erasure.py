"""ELM on a model: targets and text come from the original model, once, so that training needs no forward pass of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from wmdp_fast.exceptions import InternalError, ModelError
from wmdp_fast.models.row_length import length_rules
from wmdp_fast.models.threads import computing
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.unlearning.batches import packed_documents, padded_documents
from wmdp_fast.unlearning.language_model import DocumentLosses, LanguageModel
from wmdp_fast.unlearning.method import CardText, MethodState, StepOutput
from wmdp_fast.unlearning.methods.erasure_targets import Softened, Steering, likeliest
from wmdp_fast.unlearning.methods.outcome import effects_after, effects_card, effects_findings
from wmdp_fast.unlearning.methods.steered_text import steered_text
from wmdp_fast.unlearning.reductions import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.method import Findings, Setup, StepInput

    Kind = Literal["forget", "retain"]

# Documents that text is generated for at a time.
_TOGETHER = 16


@dataclass(frozen=True, kw_only=True)
class Writing:
    """The texts that make an expert and a novice of the original model, and how it writes between them.

    Attributes:
        expert_prefix: What makes it an expert.
        novice_prefix: What makes it a novice.
        topic_change: What follows a forget document and begins what it writes.
        tokens: How many it writes after that, at most.
        gamma: How far it is steered away from the expert.
        seed: Of what it writes.
    """

    expert_prefix: str
    novice_prefix: str
    topic_change: str
    tokens: int
    gamma: float
    seed: int


class Erasure:
    """ELM on one model.

    What the original model is needed for is computed in `prepare`, for the documents that the run comes to, and kept:
    of a forget token the entries of its target that are not 0 (8 bytes each, of which there are few where eta is
    large, and at most `top_k`), of a retain token its target (4 bytes), and the generated text (4 bytes a token).

    Args:
        setup: What it works on.
        weights: Of the terms `forget`, `retain` and `fluency`; one whose weight is 0 is left out.
        steering: How targets on forget documents differ from what the original model says.
        writing: Prefixes, and how text is generated.
        gradient_checkpointing: Whether layers are run again for their gradients.

    Attributes:
        model: The model.
        metrics: The terms of the loss, weights included.

    Raises:
        ModelError: The model has no tokenizer, so that prefixes cannot be put before documents.
    """

    def __init__(
        self,
        setup: Setup,
        weights: Mapping[str, float],
        steering: Steering,
        writing: Writing,
        *,
        gradient_checkpointing: bool,
    ) -> None:
        if setup.tokenizer is None:
            raise ModelError(f"{setup.name} has no tokenizer, which ELM needs for its prefixes; pass tokenizer=...")
        self.model = LanguageModel(setup, gradient_checkpointing=gradient_checkpointing)
        self._weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.metrics: tuple[str, ...] = tuple(f"{name}_loss" for name in self._weights)
        self._setup, self._steering, self._writing = setup, steering, writing
        self._tokenizer = setup.tokenizer
        topics = range(setup.batches.num_topics)
        # Of each topic's documents by their numbers.
        self._targets: list[dict[int, Softened]] = [{} for _ in topics]
        self._likeliest: list[dict[int, Tensor]] = [{} for _ in topics]
        self._texts: list[dict[int, Tensor]] = [{} for _ in topics]

    def why_padded(self, padded: Batch, packed: Batch) -> str | None:
        """Why documents must be padded: the model says something else without padding."""
        return self.model.why_padded(padded, packed)

    def prepare(self) -> None:
        """Computes all that is wanted of the original model, which the model still is.

        Raises:
            ModelError: The model takes no documents so long as those with a prefix, or with generated text.
        """
        self._check_lengths()
        with computing(), torch.no_grad():
            for step in range(self._setup.total_steps):
                topic, pairs = self._setup.batches.pairs(step)
                for forget, retain in pairs:
                    if not self._targets[topic].keys() >= set(forget.documents):
                        self._targets[topic] |= self._forget_targets(topic, forget)
                    if "retain" in self._weights and not self._likeliest[topic].keys() >= set(retain.documents):
                        self._likeliest[topic] |= self._retain_targets(topic, retain)
            if "fluency" in self._weights:
                for topic, targets in enumerate(self._targets):
                    self._texts[topic] = self._written(topic, sorted(targets))

    def state(self) -> MethodState:
        """What `prepare` has computed."""
        tensors: dict[str, Tensor] = {}
        values = []
        for topic, targets in enumerate(self._targets):
            forget = sorted(targets)
            joined = Softened.joined([targets[number] for number in forget])
            tensors |= {f"targets.{topic}.{name}": value for name, value in vars(joined).items()}
            columns = {"likeliest": self._likeliest[topic], "texts": self._texts[topic]}
            known = {name: [[number, len(one)] for number, one in sorted(of.items())] for name, of in columns.items()}
            for name, of in columns.items():
                if of:
                    tensors[f"{name}.{topic}"] = torch.cat([of[number] for number in sorted(of)])
            values.append({"targets": [[number, len(targets[number].kept)] for number in forget], **known})
        return MethodState(tensors=tensors, values=values)

    def restore(self, state: MethodState) -> None:
        """Takes over what `prepare` had computed."""
        tensors = {name: tensor.cpu() for name, tensor in state.tensors.items()}
        for topic, values in enumerate(state.values):
            joined = Softened(*(tensors[f"targets.{topic}.{name}"] for name in ("tokens", "shares", "kept")))
            numbers, sizes = zip(*values["targets"], strict=True)
            self._targets[topic] = dict(zip(numbers, joined.split(sizes), strict=True))
            for name, of in (("likeliest", self._likeliest), ("texts", self._texts)):
                if values[name]:
                    numbers, sizes = zip(*values[name], strict=True)
                    of[topic] = dict(zip(numbers, torch.split(tensors[f"{name}.{topic}"], list(sizes)), strict=True))

    def describe(self) -> str:
        """How much is kept of the original model."""
        targets = [one for topic in self._targets for one in topic.values()]
        tokens, entries = (sum(getattr(one, name).numel() for one in targets) for name in ("kept", "tokens"))
        written = sum(len(one) for topic in self._texts for one in topic.values())
        line = f"targets of {tokens} forget tokens with {entries / max(1, tokens):.1f} entries each"
        if written:
            line += f", and {written} tokens of text to stay fluent"
        return line

    def step(self, given: StepInput) -> StepOutput:
        """Gradients of all terms, and `metrics`."""
        gradients: dict[str, Tensor] = {}
        measured = []
        for forget, retain in given.pairs:
            row = []
            for name, weight in self._weights.items():
                # One after the other, so that one graph is alive at a time.
                loss = weight * self._loss(name, given.topic, forget, retain)
                self.model.gradients(loss / len(given.pairs), into=gradients)
                row.append(loss.detach())
            measured.append(torch.stack(row))
        return StepOutput(gradients, torch.stack(measured).mean(dim=0))

    def findings(self, steps: int) -> Findings:
        """What the run did to losses on forget and on retain documents, with the weights as they are.

        Args:
            steps: How many have been done: forget documents beyond theirs are taken, if there are any.
        """
        effects = effects_after(self.model, self._setup.batches, steps)
        return effects_findings(effects, forgets=True)

    def card(self, record: Mapping[str, Any]) -> CardText:
        """What the model card says of ELM."""
        fluency = (
            "Text that it wrote itself when led away from the subject was trained too, so that it stays fluent."
            if "fluency" in self._weights
            else "There was no term for fluent text where knowledge is gone, which the published method has."
        )
        return effects_card(
            record,
            source="ELM, erasure of language memory (Gandikota et al. 2024, arXiv:2410.02760)",
            summary=(
                "On the forget corpora, the model was trained to say what it would say as one who does not know the"
                f" subject; on the retain corpora, what it said before. {fluency}"
            ),
        )

    def _loss(self, name: str, topic: int, forget: Batch, retain: Batch) -> Tensor:
        """A term without its weight: the mean over documents of the mean over their tokens."""
        if name == "fluency":
            return cross_entropy(self.model.losses(self._continued(topic, forget)), "sequence_mean")
        device = self._setup.batches.device
        if name == "forget":
            batch, known = forget, [self._targets[topic][number] for number in forget.documents]
            counts = [len(one.kept) for one in known]
            tokens, shares = Softened.joined(known).rows()
        else:
            batch, ids = retain, [self._likeliest[topic][number] for number in retain.documents]
            counts = [len(one) for one in ids]
            tokens = torch.cat(ids).long().unsqueeze(1)
            shares = torch.ones(tokens.shape, dtype=torch.float32, device=tokens.device)
        losses = self.model.soft_losses(batch, tokens.to(device), shares.to(device))
        document = torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))
        return cross_entropy(DocumentLosses(losses, document, len(counts)), "sequence_mean")

    def _forget_targets(self, topic: int, batch: Batch) -> dict[int, Softened]:
        """What a batch's forget documents are trained towards, by their numbers."""
        rows = self._rows("forget", topic, batch.documents)
        expert, novice = (
            self.model.hidden(self._batch([self._prefixed(prefix, row) for row in rows], len(prefix) + 1))
            for prefix in (self._ids(self._writing.expert_prefix + "\n"), self._ids(self._writing.novice_prefix + "\n"))
        )
        strengths = torch.cat([self._steering.strengths(len(row)) for row in rows])
        own = self.model.hidden(batch)
        targets = self._steering.targets(self.model.logits, own, expert, novice, strengths)
        return dict(zip(batch.documents, targets.split([len(row) - 1 for row in rows]), strict=True))

    def _retain_targets(self, topic: int, batch: Batch) -> dict[int, Tensor]:
        """The original model's likeliest tokens for a batch's retain documents, by their numbers."""
        sizes = [len(row) - 1 for row in self._rows("retain", topic, batch.documents)]
        tokens = likeliest(self.model.logits, self.model.hidden(batch))
        return dict(zip(batch.documents, torch.split(tokens, sizes), strict=True))

    def _written(self, topic: int, numbers: Sequence[int]) -> dict[int, Tensor]:
        """What the original model writes after each of some forget documents, what changes the subject included."""
        writing, change = self._writing, self._ids(self._writing.topic_change)
        expert, novice = (self._ids(text.removesuffix(":")) for text in (writing.expert_prefix, writing.novice_prefix))
        written = {}
        for begin in range(0, len(numbers), _TOGETHER):
            some = numbers[begin : begin + _TOGETHER]
            rows = self._rows("forget", topic, some)
            tokens = steered_text(
                self._setup.model,
                [[*row.tolist(), *change] for row in rows],
                [[*self._first(row), *expert] for row in rows],
                [[*self._first(row), *novice] for row in rows],
                writing.gamma,
                torch.stack([self._draws(topic, number) for number in some]),
            )
            for number, row in zip(some, tokens.tolist(), strict=True):
                kept = [*change, *_before_end(row, self._ends())]
                written[number] = torch.tensor(kept, dtype=torch.int32, device="cpu")
        # All processes that share the model write; a draw between two tokens could fall either way.
        shared = self._setup.shared
        return written if shared is None else shared.from_first(written)

    def _draws(self, topic: int, number: int) -> Tensor:
        """What the tokens of a document's text come of, whatever it is generated together with."""
        mixed = np.random.SeedSequence([self._writing.seed, topic, number])
        return torch.from_numpy(np.random.default_rng(mixed).random(self._writing.tokens))

    def _continued(self, topic: int, batch: Batch) -> Batch:
        """A batch's documents with the text that follows them, which alone counts."""
        rows = self._rows("forget", topic, batch.documents)
        texts = [self._texts[topic][number].numpy().astype(np.int64) for number in batch.documents]
        return self._batch([np.concatenate(one) for one in zip(rows, texts, strict=True)], [len(row) for row in rows])

    def _batch(self, rows: Sequence[NDArray[np.int64]], not_counted: int | Sequence[int]) -> Batch:
        """Documents as the run has them, packed or padded; of each, so many first tokens do not count."""
        batches = self._setup.batches
        offsets = np.cumsum([0, *map(len, rows)])
        prompts = np.broadcast_to(np.asarray(not_counted, dtype=np.int64), (len(rows),))
        corpus = CorpusTokens("", np.concatenate(rows), offsets, "", prompt_lengths=prompts)
        longest = max(map(len, rows))
        if batches.packed:
            return packed_documents(corpus, 0, batch_size=len(rows), max_length=longest, device=batches.device)
        return padded_documents(
            corpus, 0, batch_size=len(rows), max_length=longest, pad_id=batches.pad_id, device=batches.device
        )

    def _rows(self, kind: Kind, topic: int, numbers: Sequence[int]) -> list[NDArray[np.int64]]:
        """The tokens of some documents, as long as the run takes them."""
        batches = self._setup.batches
        corpora = batches.forget_corpora if kind == "forget" else batches.retain_corpora
        length = batches.max_lengths[topic] if kind == "forget" else batches.retain_max_length
        return [corpora[topic].document(number)[:length].astype(np.int64) for number in numbers]

    def _prefixed(self, prefix: Sequence[int], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """A document after a prefix, behind the token that begins it, if it has one."""
        first = self._first(row)
        return np.concatenate([np.array([*first, *prefix], dtype=np.int64), row[len(first) :]])

    def _first(self, row: NDArray[np.int64]) -> list[int]:
        """The special token that a document begins with, if it does."""
        first = int(row[0])
        return [first] if first == self._tokenizer.bos_token_id else []

    def _ids(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens."""
        found: Any = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if not found:
            raise ModelError(f"the tokenizer of {self._setup.name} makes no token of {text!r}")
        return list(map(int, found))

    def _ends(self) -> set[int]:
        """The tokens that end a text."""
        ends: Any = self._setup.decoder.model.config.get_text_config().eos_token_id
        listed = ends if isinstance(ends, list) else [ends]
        return {one for one in (*listed, self._tokenizer.eos_token_id) if isinstance(one, int)}

    def _check_lengths(self) -> None:
        """Raises ModelError if documents with a prefix or with generated text are too long for the model."""
        writing, batches = self._writing, self._setup.batches
        if self._setup.model is None:
            raise InternalError("ELM needs the whole model")
        longest = max(
            int(np.diff(corpus.offsets).clip(max=length).max())
            for corpus, length in zip(batches.forget_corpora, batches.max_lengths, strict=True)
        )
        prefixes = (len(self._ids(text + "\n")) for text in (writing.expert_prefix, writing.novice_prefix))
        wanted = longest + max(prefixes)
        if "fluency" in self._weights:
            wanted = max(wanted, longest + len(self._ids(writing.topic_change)) + writing.tokens)
        limit = getattr(self._setup.decoder.model.config.get_text_config(), "max_position_embeddings", None)
        limits = [rule.limit for rule in length_rules(self._setup.model, wanted)]
        least = min([limit, *limits] if isinstance(limit, int) else limits, default=wanted)
        if wanted > least:
            raise ModelError(
                f"forget documents with a prefix or generated text have up to {wanted} tokens, and {self._setup.name}"
                f" takes {least}: lower max_length or fluency_tokens"
            )


def _before_end(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """A text up to the first token that ends it."""
    places = [at for at, token in enumerate(tokens) if token in ends]
    return list(tokens[: places[0]] if places else tokens)
