"""What about the corpora of a run its user may not have meant, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from wmdp_fast.prompts.documents import CorpusTokens

# Shorter documents may be in two corpora by chance.
_SHORTEST_SHARED = 8

# Longer documents are not looked at for being blank.
_LONGEST_BLANK = 64


def corpus_doubts(
    forget: Sequence[CorpusTokens], retain: Sequence[CorpusTokens], tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[str]:
    """Sentences on documents to forget and to keep, and on blank ones.

    Args:
        forget: What is to be forgotten.
        retain: What is to be kept.
        tokenizer: Made the tokens; None if they were given as such.
    """
    for kept in _distinct(retain):
        known = {document.tobytes() for document in _documents(kept)}
        for corpus in _distinct(forget):
            if both := sum(document.tobytes() in known for document in _documents(corpus)):
                yield (
                    f"{both} of the {len(corpus)} documents of the forget corpus {corpus.name} are in the retain corpus"
                    f" {kept.name} too: the run is to forget and to keep them"
                )
    for corpus in _distinct([*forget, *retain]):
        if blank := 0 if tokenizer is None else _num_blank(corpus, tokenizer):
            yield f"{blank} of the {len(corpus)} documents of the corpus {corpus.name} are white space and nothing else"


def cut_corpora(corpora: Sequence[CorpusTokens], limits: Sequence[int], wanted: int) -> Iterator[str]:
    """Sentences on corpora that end while documents are cut off.

    Args:
        corpora: What is read.
        limits: For each the tokens that a document was cut to.
        wanted: Documents of a corpus that the run would take.
    """
    longest = {id(corpus): limit for corpus, limit in zip(corpora, limits, strict=True)}
    for corpus in _distinct(corpora):
        limit = longest[id(corpus)]
        cut = int((np.diff(corpus.offsets) >= limit).sum())
        if len(corpus) < wanted and 2 * cut >= len(corpus):
            yield (
                f"the corpus {corpus.name} ends after {len(corpus)} documents, of which {cut} have {limit} tokens or"
                " more, and no more are read of each: cut them into passages, a document each, to have all of them"
            )


def _distinct(corpora: Sequence[CorpusTokens]) -> list[CorpusTokens]:
    return list({id(corpus): corpus for corpus in corpora}.values())


def _documents(corpus: CorpusTokens) -> Iterator[NDArray[np.int64]]:
    """The documents that are not in two corpora by chance."""
    every = (corpus.document(number) for number in range(len(corpus)))
    return (document for document in every if len(document) >= _SHORTEST_SHARED)


def _num_blank(corpus: CorpusTokens, tokenizer: PreTrainedTokenizerBase) -> int:
    short = np.flatnonzero(np.diff(corpus.offsets) <= _LONGEST_BLANK).tolist()
    texts = (tokenizer.decode(corpus.document(number).tolist(), skip_special_tokens=True) for number in short)
    return sum(not str(text).strip() for text in texts)
