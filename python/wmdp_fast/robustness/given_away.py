"""Whether a text that attacks train on gives away what is reported: a model then learns it anew, forgotten or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast._rust import read_documents
from wmdp_fast.data.corpora import find_corpus
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.robustness.split import normalized
from wmdp_fast.robustness.subject import DOCUMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from wmdp_fast.prompts.documents import Corpus
    from wmdp_fast.robustness.questions import Questions
    from wmdp_fast.robustness.subject import CorpusName

# A question of fewer words may stand in any text.
_LEAST_WORDS = 6


def given_away(
    questions: Questions, corpora: Mapping[CorpusName, Corpus], data: str | PathLike[str] | None
) -> list[str]:
    """A sentence for each text that has reported questions with their answers in it; usually none.

    A question counts if a document has its words in their order, and those of its right answer after them. Case and
    punctuation do not matter. Rewordings are not found, nor is anything in a text that was given as tokens.

    Args:
        questions: Those of the attack.
        corpora: The texts by what they are.
        data: Folder with corpora by name, in place of the hub.

    Raises:
        DataUnavailableError, DatasetError: A text is missing or faulty.
    """
    every = [one for read in questions.read for one in read.questions]
    reported = [one for one, chosen in zip(every, questions.is_for_choosing, strict=True) if not chosen]
    asked = [(normalized(one.question), normalized(one.choices[one.answer])) for one in reported]
    found = []
    for name, corpus in corpora.items():
        if isinstance(corpus, CorpusTokens):
            continue
        _, files, _ = find_corpus(corpus, data=data)
        documents = [f" {normalized(text)} " for text in read_documents(list(files), limit=DOCUMENTS)]
        count = sum(_stands_in(question, answer, documents) for question, answer in asked)
        if count:
            found.append(
                f"the {name} text gives away {count} of the {len(asked)} questions that are reported, each with its"
                " right answer: what is trained on it is learned anew and was not kept; take these documents out"
            )
    return found


def _stands_in(question: str, answer: str, documents: list[str]) -> bool:
    if len(question.split()) < _LEAST_WORDS:
        return False
    return any(f" {answer} " in f" {rest}" for text in documents for rest in text.split(f" {question} ", 1)[1:])
