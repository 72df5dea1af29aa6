"""LLMU on a model: the forget and retain losses of other methods, and one on prompts with unrelated answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.unlearning.batches import packed_documents, padded_documents
from wmdp_fast.unlearning.method import StepOutput
from wmdp_fast.unlearning.methods.forget_retain import ForgetRetain
from wmdp_fast.unlearning.methods.forget_retain import Settings as ForgetRetainSettings
from wmdp_fast.unlearning.reductions import cross_entropy

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.method import Setup, StepInput


class Settings(ForgetRetainSettings, Protocol):
    """What `LLMU` asks of its settings, see `LLMUConfig`."""

    @property
    def unrelated_weight(self) -> float:
        """Of the loss on unrelated answers."""

    @property
    def num_unrelated(self) -> int:
        """Unrelated answers for each prompt."""

    @property
    def unrelated_tokens(self) -> int:
        """Maximum tokens of one."""

    @property
    def prompt_tokens(self) -> int:
        """Maximum tokens of a document that are a prompt."""

    @property
    def seed(self) -> int:
        """Of what is drawn."""


class LLMU(ForgetRetain):
    """Adds the loss on unrelated answers to those on forget and on retain documents.

    Which answers a step has follows from the seed and the step's number.

    Args:
        setup: What it works on.
        config: The settings.

    Attributes:
        metrics: Those of `ForgetRetain`; and nats per token of unrelated answers, without the weight, unless it is 0.

    Raises:
        ValueError: A retain corpus has nothing to draw answers from.
    """

    def __init__(self, setup: Setup, config: Settings) -> None:
        super().__init__(setup, config)
        self._draws = config
        self._answers: list[list[NDArray[np.int64]]] = []
        if config.unrelated_weight:
            self.metrics = (*self.metrics, "unrelated_nll")
            self._answers = [self._answers_in(corpus) for corpus in setup.batches.retain_corpora]

    def describe(self) -> str | None:
        """What stands for a prompt, where there is none."""
        documents = [one.name for one in self._setup.batches.forget_corpora if one.kind == "documents"]
        if not documents or not self._answers:
            return None
        return (
            f"{', '.join(documents)}: documents have no prompts, so the first {self._draws.prompt_tokens} tokens of"
            " each, and at most half, are given unrelated answers"
        )

    def step(self, given: StepInput) -> StepOutput:
        """Gradients of all terms, and `metrics`."""
        gradients: dict[str, Tensor] = {}
        measured, tokens, parts = [], 0, len(given.pairs)
        for part, (forget, retain) in enumerate(given.pairs):
            forget_terms = self.forget_term(given.topic, forget, gradients, parts)
            retain_terms = self.retain_term(retain, gradients, parts)
            terms = [forget_terms[0], retain_terms[0], forget_terms[1], retain_terms[1]]
            tokens += forget.num_tokens + retain.num_tokens
            if self._answers:
                unrelated = self.unrelated(given, part)
                nll = cross_entropy(self.model.losses(unrelated), "sequence_mean")
                self._differentiated(self._draws.unrelated_weight * nll, gradients, parts)
                terms.append(nll.detach())
                tokens += unrelated.num_tokens
            measured.append(torch.stack(terms))
        return StepOutput(gradients, torch.stack(measured).mean(dim=0), tokens)

    def unrelated(self, given: StepInput, part: int) -> Batch:
        """The prompts of a part's forget documents, each with unrelated answers; only these count."""
        config, batches = self._draws, self._setup.batches
        draw = np.random.default_rng([config.seed, given.index, part])
        answers, limit = self._answers[given.topic], batches.max_lengths[given.topic]
        rows, lengths = [], []
        for number in given.pairs[part][0].documents:
            prompt = self._prompt(batches.forget_corpora[given.topic], number, limit)
            few = config.num_unrelated > len(answers)
            for chosen in draw.choice(len(answers), size=config.num_unrelated, replace=few):
                rows.append(np.concatenate([prompt, answers[chosen][: limit - len(prompt)]]))
                lengths.append(len(prompt))
        corpus = CorpusTokens(
            "unrelated answers",
            np.concatenate(rows),
            np.cumsum([0, *map(len, rows)]),
            content_hash="",
            prompt_lengths=np.array(lengths),
        )
        if batches.packed:
            return packed_documents(corpus, 0, batch_size=len(rows), max_length=limit, device=batches.device)
        return padded_documents(
            corpus, 0, batch_size=len(rows), max_length=limit, pad_id=batches.pad_id, device=batches.device
        )

    def _prompt(self, corpus: CorpusTokens, number: int, limit: int) -> NDArray[np.int64]:
        """A forget document's prompt, or what stands for one; it leaves room for a token of an answer."""
        document = corpus.document(number)[:limit]
        if corpus.prompt_lengths is not None:
            return document[: min(int(corpus.prompt_lengths[number]), limit - 1)]
        return document[: min(self._draws.prompt_tokens, max(len(document) // 2, 1))]

    def _answers_in(self, corpus: CorpusTokens) -> list[NDArray[np.int64]]:
        """The responses of a retain corpus, or the text of its documents without a BOS, each cut."""
        bos = self._setup.decoder.model.config.get_text_config().bos_token_id
        found = []
        for number in range(len(corpus)):
            document = corpus.document(number)[: self._setup.batches.retain_max_length]
            begin = int(document[0] == bos) if corpus.prompt_lengths is None else int(corpus.prompt_lengths[number])
            found.append(document[begin:][: self._draws.unrelated_tokens])
        if not (kept := [one for one in found if len(one)]):
            raise ValueError(f"the retain corpus {corpus.name} has no text to draw unrelated answers from")
        return kept
