"""Whether a text that perplexity is measured on was held out from training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast._rust import read_documents
from wmdp_fast.data.corpora import find_corpus
from wmdp_fast.prompts.answers import has_answers, read_answers
from wmdp_fast.prompts.documents import CorpusTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.unlearning.request import Request


def trained_on(request: Request, texts: Sequence[Text]) -> list[str]:
    """What is to be said of texts that share a file or documents with the corpora; usually nothing.

    Args:
        request: What the user asked for; its corpora have been read before.
        texts: What perplexity is to be measured on.

    Returns:
        A sentence for each text and corpus that have something in common.
    """
    found = []
    for kind, corpora in (("forget", request.forget), ("retain", request.retain)):
        for corpus in corpora:
            for text in texts:
                if (shared := _shared(corpus, text, request)) is not None:
                    name = corpus.name if isinstance(corpus, CorpusTokens) else os.fspath(corpus)
                    found.append(f"the text {text.name} is not held out: {shared} the {kind} corpus {name}")
    return list(dict.fromkeys(found))


def _shared(corpus: str | os.PathLike[str] | CorpusTokens, text: Text, request: Request) -> str | None:
    """What a text has in common with a corpus, before its name; None if nothing."""
    if isinstance(corpus, CorpusTokens):
        return "its documents are those of" if corpus.content_hash == text.content_hash else None
    _, files, _ = find_corpus(os.fspath(corpus), data=request.data)
    if {file.resolve() for file in files} & {Path(file).resolve() for file in text.files}:
        return "its file is of"
    known = _texts(files, request.config.field, request.documents_read)
    both = sum(document in known for document in text.documents if document)
    return f"{both} of its {len(text.documents)} documents are in" if both else None


def _texts(files: Sequence[Path], field: str, limit: int) -> set[str]:
    """The documents of a corpus; of prompts and responses each, and both as one text."""
    if not has_answers(files, field):
        return set(read_documents(list(files), field=field, limit=limit))
    return {text for one in read_answers(files, limit=limit) for text in (one.prompt, one.response, one.joined)}
