"""What a benchmark of a method over logits or activations trains, and on which documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wmdp_fast.bench.rmu_worker import config_of
from wmdp_fast.prompts.documents import CorpusTokens, load_corpus

# The shortest random document is so small a part of the longest.
_SHORTEST = 8

# Tokens of a document that nothing is timed on.
EXCERPT = 16


@dataclass(frozen=True, kw_only=True)
class MethodJob:
    """What to train, and how.

    Attributes:
        method: `graddiff`, `npo` or `rr`.
        model: Folder of a model; or else `shape`.
        shape: A model of one of `shapes.SHAPES` with random weights.
        parameters: Which parameters of all layers are trained; of `rr`, of those up to its highest target.
        batch_size: Documents of each kind in a step.
        length: Maximum tokens of a document. Random ones have at least an eighth of that, and all lengths in between
            are as likely.
        text: A file of documents in place of random ones, of which every other one is a forget document.
        tokenizer: Folder of a tokenizer for it; None is the model's.
        steps: Timed steps.
        warm_steps: Steps before them.
        dtype: `float32`, `bfloat16` or `float16`; with a model also `auto`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        worker: `wmdp-fast` or `plain`.
    """

    method: str
    model: str | None = None
    shape: str | None = None
    parameters: str = "mlp.down_proj"
    batch_size: int = 4
    length: int = 512
    text: str | None = None
    tokenizer: str | None = None
    steps: int = 4
    warm_steps: int = 1
    dtype: str = "float32"
    device: str = "auto"
    worker: str = "wmdp-fast"

    @property
    def all_steps(self) -> int:
        """Steps with those that are not timed."""
        return self.warm_steps + self.steps

    @property
    def num_documents(self) -> int:
        """Of each kind in all steps."""
        return self.all_steps * self.batch_size

    @property
    def target_layers(self) -> tuple[int, ...]:
        """Of `rr`: the layers at the depth that 10 and 20 of 32 are at."""
        num_layers = config_of(self).get_text_config().num_hidden_layers
        return tuple(sorted({max(0, round(share * num_layers / 32) - 1) for share in (10, 20)}))


def corpora_of(job: MethodJob) -> tuple[CorpusTokens, CorpusTokens]:
    """Forget and retain documents of all steps, and a batch of a few tokens behind them, to end the run with.

    Raises:
        ValueError: There is no tokenizer for a text, it has other tokens than the model, or the text is too short.
    """
    rows = _random_documents(job) if job.text is None else _documents_of_text(job)
    forget, retain = (
        _corpus(name, [*kind, *(one[:EXCERPT] for one in kind[: job.batch_size])])
        for name, kind in zip(("forget", "retain"), rows, strict=True)
    )
    return forget, retain


def _random_documents(job: MethodJob) -> list[list[np.ndarray]]:
    tokens = np.random.default_rng(0)
    # The first few ids are often special tokens.
    vocab_size = config_of(job).get_text_config().vocab_size
    shortest = max(2, job.length // _SHORTEST)
    lengths = [np.random.default_rng(kind).integers(shortest, job.length + 1, job.num_documents) for kind in (0, 1)]
    return [[tokens.integers(8, vocab_size, length) for length in kind] for kind in lengths]


def _documents_of_text(job: MethodJob) -> list[list[np.ndarray]]:
    from transformers import AutoTokenizer

    if (source := job.tokenizer or job.model) is None:
        raise ValueError("a shape has no tokenizer for a text: give the folder of one (--tokenizer)")
    # Those of a single token, which predict nothing, may be among them.
    corpus = load_corpus(str(job.text), AutoTokenizer.from_pretrained(source), max_length=job.length)
    documents = [one for one in map(corpus.document, range(len(corpus))) if len(one) > 1]
    if len(documents) < 2 * job.num_documents:
        raise ValueError(
            f"{job.text} has {len(documents)} documents of two tokens or more, but {job.all_steps} steps of"
            f" {job.batch_size} forget and {job.batch_size} retain documents take {2 * job.num_documents}"
        )
    documents = documents[: 2 * job.num_documents]
    if (largest := max(int(one.max()) for one in documents)) >= config_of(job).get_text_config().vocab_size:
        raise ValueError(f"the model has no token {largest}, which the tokenizer {source} makes")
    return [documents[0::2], documents[1::2]]


def _corpus(name: str, documents: list[np.ndarray]) -> CorpusTokens:
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    return CorpusTokens(name, np.concatenate(documents).astype(np.int64), offsets, "")
